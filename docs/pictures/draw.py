"""
Draws the pictures of the README, and those of `synkhorn benchmark`, from the recorded figures.

    python docs/pictures/draw.py
"""

import json
import re
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


def accuracies() -> dict[str, list[float]]:
    """The rows of benchmarks/training/warm_start.md with three seeds: name -> accuracy of each."""
    found = {}
    for line in (BENCHMARKS / "training" / "warm_start.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        values = [float(cell) for cell in cells[2:5] if re.fullmatch(r"0\.\d{4}", cell)] if len(cells) > 5 else []
        if len(values) == 3:
            found[cells[0].replace("`", "")] = values
    return found


def quality_and_cost() -> None:
    """Time of a training step by length, and accuracy on reviews."""
    points: dict[str, dict[int, float]] = {}
    for name in ("speed/speed", "speed/speed-16384"):
        for row in recorded(name)["results"]:
            if row["phase"] == "forward+backward" and row["dtype"] == "float32" and "times peer" in row:
                points.setdefault(row["model"], {})[row["length"]] = row["times peer"]
    names = {"bert": "BERT", "sinkhorn": "Sinkhorn", "sinkhorn_sortcut": "SortCut", "longformer": "Longformer"}
    names |= {"random": "Synthesizer, random", "nystromformer": "Nyströmformer"}
    figure, (pair,) = panels(
        "What does it cost, and what does it lose?",
        f"A training step on 16,384 tokens takes {points['sinkhorn'][16384]:.0%} of BERT's time. A pre-trained model "
        "converted to Sinkhorn classifies as well as before.",
        columns=2,
        width=6,
        height=3.9,
    )
    figure.subplots_adjust(wspace=0.8)
    cost, quality = pair
    chosen = {names[name]: {n: 100 * times for n, times in points[name].items()} for name in names}
    curves(cost, chosen, [names[name] for name in ("sinkhorn", "sinkhorn_sortcut", "random")])
    cost.set(xlabel="tokens", ylabel="time of a training step, % of BERT's")
    labels = [
        "MiniLM converted to Sinkhorn,\n2,048 tokens",
        "MiniLM itself,\n512 tokens",
        "Sinkhorn from scratch,\n2,048 tokens",
    ]
    for place, values in enumerate(accuracies().values()):
        colour = (COLOURS[0], REFERENCE, PEER)[place]
        quality.plot(values, [place] * 3, "o", color=colour, alpha=0.7, markersize=8)
        quality.text(np.mean(values), place - 0.22, f"{np.mean(values):.3f}", color=colour, ha="center", fontsize=10)
    words = recorded("text/reviews_word_counts")["results"]["2000"]
    quality.axvline(words, color=PEER, linestyle=":", linewidth=1.5)
    quality.text(words, 2.45, f"word counts {words:.3f} ", color=PEER, ha="right", fontsize=10)
    quality.set_yticks(range(3), labels)
    quality.invert_yaxis()
    quality.set(xlim=(0.78, 0.9), ylim=(2.5, -0.6), xlabel="accuracy on 5,000 reviews, trained on 2,000; three seeds")
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
