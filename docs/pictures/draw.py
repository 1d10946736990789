"""
Draws the pictures of the README, and those of `synkhorn benchmark`, from the recorded figures.

    python docs/pictures/draw.py
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from synkhorn.scripts.measuring.benchmark_decode import plot
from synkhorn.scripts.measuring.benchmark_report import plots
from synkhorn.scripts.measuring.plots import COLOURS, PEER, REFERENCE, curves, panels, save

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent.parent / "benchmarks"


def recorded(name: str) -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def ideas() -> None:
    """Which weights are compared, predicted or sorted, for 16 tokens in blocks of 4."""
    count, block = 16, 4
    draw = np.random.default_rng(3)
    random = draw.random((count, count)) ** 2
    chosen = [2, 3, 0, 1]
    sparse = np.full((count, count), np.nan)
    own = np.full((count, count), np.nan)
    for row in range(0, count, block):
        rows = slice(row, row + block)
        columns = slice(block * chosen[row // block], block * chosen[row // block] + block)
        own[rows, rows] = 0.35 + 0.65 * random[rows, rows]
        sparse[rows, columns] = 0.35 + 0.65 * random[rows, columns]
    kinds = [
        ("Transformer", [(random, REFERENCE)], "Every token's query is compared\nwith every token's key: L² products."),
        (
            "Synthesizer",
            [(np.sort(random, axis=1)[:, draw.permutation(count)], COLOURS[1])],
            "No comparison: the weights are learned,\nor predicted from each token alone.",
        ),
        (
            "Sinkhorn",
            [(own, COLOURS[0]), (sparse, COLOURS[2])],
            "Each block of tokens reads itself (orange)\nand one block that a learned sort brings (green).",
        ),
    ]
    figure, axes = panels(
        "Which tokens does each token read, and where do the weights come from?",
        "Row: the reading token. Column: the token that is read. Darker: more weight.",
        columns=3,
        width=3.9,
        height=3.5,
    )
    for axis, (name, matrices, text) in zip(axes[0], kinds, strict=True):
        axis.grid(False)
        for matrix, colour in matrices:
            axis.imshow(matrix, cmap=LinearSegmentedColormap.from_list(name, ["white", colour]), vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(True)
        axis.set_title(name, fontsize=12, fontweight="bold")
        axis.set_xlabel(text, fontsize=10, labelpad=8)
    save(figure, HERE / "ideas.png")


def genres() -> dict[str, list[float]]:
    """Entrant of benchmarks/text/brown.yaml -> accuracy of each fold."""
    found: dict[str, list[float]] = {}
    for row in recorded("text/brown")["results"]:
        found.setdefault(row["entrant"], []).append(row["test"]["accuracy"])
    return found


def quality_and_cost() -> None:
    """Time of a training step by length, and what reading whole documents gives."""
    points: dict[str, dict[int, float]] = {}
    for name in ("speed/speed", "speed/speed-16384"):
        for row in recorded(name)["results"]:
            if row["phase"] == "forward+backward" and row["dtype"] == "float32" and "times peer" in row:
                points.setdefault(row["model"], {})[row["length"]] = row["times peer"]
    names = {"bert": "BERT", "sinkhorn": "Sinkhorn", "sinkhorn_sortcut": "SortCut", "longformer": "Longformer"}
    names |= {"random": "Synthesizer, random", "nystromformer": "Nyströmformer"}
    accuracy = genres()
    entrants = {
        "frozen MiniLM as Sinkhorn, whole": ("MiniLM as Sinkhorn,\nwhole documents", COLOURS[0]),
        "frozen MiniLM as Sinkhorn, cut at 512": ("the same, cut\nat 512 tokens", REFERENCE),
        "TF-IDF, whole": ("word counts,\nwhole documents", PEER),
        "TF-IDF, 400 words": ("word counts,\nfirst 400 words", PEER),
    }
    whole, cut = (np.mean(accuracy[name]) for name in list(entrants)[:2])
    figure, (pair,) = panels(
        "What does it cost to read long documents, and what does it give?",
        f"A training step on 16,384 tokens takes {points['sinkhorn'][16384]:.0%} of BERT's time. A model that reads "
        f"whole documents tells their genre better: {whole:.3f}, and {cut:.3f} cut at 512 tokens.",
        columns=2,
        width=6,
        height=3.9,
    )
    figure.subplots_adjust(wspace=0.8)
    cost, quality = pair
    chosen = {names[name]: {n: 100 * times for n, times in points[name].items()} for name in names}
    curves(cost, chosen, [names[name] for name in ("sinkhorn", "sinkhorn_sortcut", "random")])
    cost.set(xlabel="tokens", ylabel="time of a training step, % of BERT's")
    for place, (name, (_, colour)) in enumerate(entrants.items()):
        values = accuracy[name]
        quality.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=7)
        quality.plot(np.mean(values), place, "|", color=colour, markersize=22, markeredgewidth=2.5)
        quality.text(np.mean(values), place - 0.28, f"{np.mean(values):.3f}", color=colour, ha="center", fontsize=10)
    quality.set_yticks(range(len(entrants)), [label for label, _ in entrants.values()])
    quality.invert_yaxis()
    quality.set(ylim=(len(entrants) - 0.5, -0.6), xlabel="accuracy, 15 genres, over 2,100 words a document; five folds")
    quality.grid(False, axis="y")
    save(figure, HERE / "quality_and_cost.png")


def main() -> None:
    ideas()
    quality_and_cost()
    for name in ("speed", "speed-bfloat16", "speed-growth"):
        results = recorded(f"speed/{name}")["results"]
        if name == "speed-bfloat16":
            results = [row for row in results if row["dtype"] == "bfloat16"]
        plots(results, BENCHMARKS / "speed" / name)
    for name in ("decode", "decode-batch8"):
        figures = recorded(f"decoding/{name}")
        plot(figures["results"], Namespace(**figures["settings"]), BENCHMARKS / "decoding" / f"{name}.png")


if __name__ == "__main__":
    main()
