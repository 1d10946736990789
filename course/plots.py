"""The plots that several exhibits draw: maps, bars, lines, and figures with a slider."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c", "#7b3294", "#999933")
SCALE = "Viridis"
DIVERGING = "RdBu"


def laid_out(figure: go.Figure, height: int = 420, **layout: Any) -> go.Figure:
    """White, with a legend below, so that it fits a narrow screen too."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0},
        font={"size": 12},
        **layout,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def maps(
    matrices: Sequence[Sequence[Sequence[float]]],
    titles: Sequence[str],
    columns: int = 2,
    shared: bool = True,
    labels: Sequence[str] | None = None,
    across: str = "",
    down: str = "",
    colours: str = SCALE,
    middle: float | None = None,
    cell: int = 240,
) -> go.Figure:
    """Matrices as heat maps, on one colour scale where it is `shared`; row 0 is at the top."""
    rows = -(-len(matrices) // columns)
    figure = make_subplots(rows, columns, subplot_titles=titles, horizontal_spacing=0.12, vertical_spacing=0.3 / rows)
    for index, matrix in enumerate(matrices):
        heat = go.Heatmap(
            z=matrix,
            coloraxis="coloraxis" if shared else None,
            colorscale=None if shared else colours,
            showscale=False if not shared else None,
            x=labels,
            y=labels,
        )
        figure.add_trace(heat, index // columns + 1, index % columns + 1)
    if shared:
        figure.update_layout(coloraxis={"colorscale": colours, "cmid": middle, "colorbar": {"thickness": 10}})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text=across, row=rows)
    figure.update_yaxes(title_text=down, col=1)
    figure.update_annotations(font_size=12)
    return laid_out(figure, height=90 + cell * rows)


def lines(
    series: dict[str, tuple[Sequence[Any], Sequence[Any]]], across: str, up: str, log: str = "", mode: str = "lines"
) -> go.Figure:
    """Name -> x and y; `log` names the axes that are logarithmic, such as `xy`."""
    figure = go.Figure()
    for index, (name, (x, y)) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        figure.add_trace(go.Scatter(x=x, y=y, name=name, mode=mode, line={"color": colour}))
    figure.update_xaxes(title_text=across)
    if "x" in log:
        ticks = sorted({value for x, _ in series.values() for value in x})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{value:,}" for value in ticks])
    figure.update_yaxes(title_text=up, **({"type": "log", "dtick": "D2"} if "y" in log else {}))
    return laid_out(figure)


def bars(
    names: Sequence[str], groups: dict[str, Sequence[float]], up: str, spread: dict[str, Sequence[float]] | None = None
) -> go.Figure:
    """Bars of several groups beside each other; `spread` draws error bars."""
    figure = go.Figure()
    for index, (group, values) in enumerate(groups.items()):
        error = {"type": "data", "array": spread[group]} if spread else None
        figure.add_trace(go.Bar(x=list(names), y=values, name=group, error_y=error, marker_color=COLOURS[index]))
    figure.update_yaxes(title_text=up)
    # above: below, slanted names would run into it on a narrow screen
    return laid_out(figure, barmode="group").update_layout(legend={"y": 1.02, "yanchor": "bottom"})


def sliding(
    base: go.Figure, steps: Sequence[tuple[str, list[Any], str]], name: str, active: int, height: int = 480
) -> go.Figure:
    """
    A figure with a slider.

    Args:
        base: the figure, with the layout and as many traces as a step has.
        steps: the label of each step, its traces, and the title that it gives the figure.
        name: put before the label, such as `iterations: `.
        active: the step that is seen first.
    """
    figure = go.Figure(base)
    for trace, new in zip(figure.data, steps[active][1], strict=True):
        trace.update(new)
    figure.frames = [
        go.Frame(name=label, data=traces, layout={"title": {"text": title}}) for label, traces, title in steps
    ]
    figure.update_layout(
        title={"text": steps[active][2], "font": {"size": 13}, "x": 0.02, "y": 0.98, "yanchor": "top"},
        sliders=[
            {
                "active": active,
                "currentvalue": {"prefix": name},
                "pad": {"t": 40, "b": 10},
                "steps": [
                    {
                        "label": label,
                        "method": "animate",
                        "args": [[label], {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}],
                    }
                    for label, _, _ in steps
                ],
            }
        ],
    )
    figure.update_layout(height=height, legend={"y": 1.0, "yanchor": "bottom"}, margin={"t": 70})
    return figure


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample."""
    return sqrt(sum((x - mean(values)) ** 2 for x in values) / (len(values) - 1))


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half
