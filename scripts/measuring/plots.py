"""How every plot looks: a question as the title, the finding below it, and lines that are named at their ends."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.optimize import isotonic_regression

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.axis import Axis  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402
from matplotlib.transforms import ScaledTranslation  # noqa: E402

# colours of our models, for the colour-blind too (Okabe and Ito); peers are grey, the reference is thick and black
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PEER, REFERENCE = "#8c8c8c", "black"
REFERENCES = ("bert", "gpt2", "BERT", "GPT-2", "dot product")
MOST_LINES = 6
DPI = 130
# from a point to its name
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)}


def style(name: str, ours: Sequence[str], is_labelled: bool = True) -> dict[str, Any]:
    """How the line of `name` is drawn: the reference thick and black, one of `ours` in its colour, a peer grey."""
    if name in REFERENCES:
        return {"color": REFERENCE, "linewidth": 3.0, "zorder": 3}
    if name in ours:
        return {"color": COLOURS[list(ours).index(name) % len(COLOURS)], "linewidth": 2.0, "zorder": 4}
    return {"color": PEER if is_labelled else "#d4d4d4", "linewidth": 1.2, "zorder": 2}


def panels(question: str, finding: str, rows: int = 1, columns: int = 1, width: float = 5.2, height: float = 3.6):
    """A figure with its question and finding, and its panels, (rows, columns)."""
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows + 0.9), squeeze=False)
    top = 1 - 0.95 / (height * rows + 0.9)
    figure.subplots_adjust(top=top - 0.04, hspace=0.45, wspace=0.45)
    figure.text(0.01, 0.985, question, fontsize=14, fontweight="bold", va="top")
    figure.text(0.01, 0.985 - 0.36 / (height * rows + 0.9), finding, fontsize=11, color="#444444", va="top")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=9)
    return figure, axes


def curves(
    axis: Axes,
    points: Mapping[str, Mapping[float, float]],
    ours: Sequence[str],
    labels: Mapping[str, str] | None = None,
    named: Sequence[str] | None = None,
    scale: str = "log",
) -> None:
    """
    Draw a line for each name, with its name at its end.

    Args:
        axis: the panel.
        points: name -> x -> y.
        ours: the names that have a colour.
        labels: name -> what stands at the end, where that is another text.
        named: the lines with a name, beside ours and the reference; as many peers as there is room for if not given.
        scale: of both axes, `log` or `linear`.
    """
    main = [name for name in points if name in ours or name in REFERENCES]
    others = [name for name in points if name not in main]
    named = [*main, *(others[: max(0, MOST_LINES - len(main))] if named is None else named)]
    if scale == "log":
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
    ends = []
    for name, curve in points.items():
        x, y = list(curve), list(curve.values())
        axis.plot(x, y, marker="o", markersize=3.5, **style(name, ours, name in named))
        if name in named:
            ends.append((y[-1], x[-1], (labels or {}).get(name, name), style(name, ours)["color"]))
    label_ends(axis, ends)
    ticks = sorted({x for curve in points.values() for x in curve})
    if scale == "log":
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        plain_ticks(axis.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Mark 1, 2, 5, 10, 20, ... on a logarithmic axis, or 1, 10, 100, ... on a long one."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 500 * low else (1,)
    marks = [m * 10.0**e for e in range(-3, 9) for m in steps if low <= m * 10.0**e <= high]
    axis.set_ticks(marks, [f"{mark:,g}" for mark in marks])
    axis.set_minor_locator(NullLocator())


def dots(axis: Axes, points: Mapping[str, tuple[float, float, float]], ours: Sequence[str]) -> None:
    """A dot for each name, (x, y, half of y's interval), with its name beside it; x on a logarithmic axis."""
    axis.set_xscale("log")
    for name, (x, y, half) in points.items():
        colour = style(name, ours)["color"]
        axis.errorbar(x, y, half, fmt="o", markersize=6, capsize=3, color=colour)
    places = [x for x, *_ in points.values()]
    axis.set_xlim(min(places) / 1.25, max(places) * 1.25)
    label_ends(axis, [(y, x, name, style(name, ours)["color"]) for name, (x, y, _) in points.items()], at_edge=True)
    plain_ticks(axis.xaxis)


def multiples(
    question: str,
    finding: str,
    rows: Mapping[str, Mapping[str, Mapping[float, float]]],
    ours: Sequence[str],
    across: str,
    named: Sequence[str] = (),
) -> Figure:
    """
    Small multiples: a column for each of our models, alone in its colour, with all peers behind it in grey.

    Args:
        question, finding: see `panels`.
        rows: label of the vertical axis -> name -> x -> y.
        ours: our models.
        across: label of the horizontal axis.
        named: peers with a name.
    """
    figure, axes = panels(question, f"{finding} Grey: the other models.", len(rows), len(ours), width=2.9, height=2.5)
    figure.subplots_adjust(wspace=0.28, hspace=0.12, left=0.6 / (2.9 * len(ours)))
    for number, (down, points) in enumerate(rows.items()):
        line = axes[number]
        for axis in line[1:]:
            axis.sharey(line[0])
        for axis, model in zip(line, ours, strict=True):
            shown = {name: curve for name, curve in points.items() if name not in ours or name == model}
            curves(axis, shown, [model], labels={model: ""}, named=named)
            axis.tick_params(labelsize=7)
            axis.tick_params(axis="x", rotation=30)
            axis.tick_params(labelleft=axis is line[0], labelbottom=number == len(rows) - 1)
        line[0].set_ylabel(down, fontsize=9)
    for top, bottom, model in zip(axes[0], axes[-1], ours, strict=True):
        top.set_title(model, fontsize=10, color=COLOURS[0])
        bottom.set_xlabel(across, fontsize=8)
    return figure


def label_ends(axis: Axes, ends: list[tuple[float, float, str, Any]], at_edge: bool = False) -> None:
    """
    Write the names of (y, x, name, colour) as near to their points as they do not overlap.

    Args:
        axis: the panel.
        ends: the points.
        at_edge: whether all names stand at the panel's right edge, each with a thin line to its point.
    """
    if not ends:
        return
    is_log = axis.get_yscale() == "log"
    low, high = (math.log(value) if is_log else value for value in axis.get_ylim())
    ends = sorted(ends)
    beside = axis.transData + ScaledTranslation(6 / 72, 0, axis.figure.dpi_scale_trans)
    # a line of text in units of the axis: names keep that distance, and move up and down alike
    steps = 0.065 * (high - low) * np.arange(len(ends))
    places = isotonic_regression([math.log(y) if is_log else y for y, *_ in ends] - steps).x + steps
    for (y, x, name, colour), place in zip(ends, places, strict=True):
        axis.annotate(
            name,
            (x, y),
            xytext=(1.04 if at_edge else x, math.exp(place) if is_log else place),
            textcoords=axis.get_yaxis_transform() if at_edge else beside,
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={**LEADER, "color": colour} if at_edge else None,
        )


def save(figure: Figure, path: Path) -> None:
    """Write the figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
