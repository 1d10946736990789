"""The benchmark's figures as Markdown tables and plots: ratios taken round by round, growth a doubling, slopes."""

import statistics
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np

from ...families import FAMILIES
from .benchmark_models import BERT, FLOOR, GPT2, family, is_causal

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: E402

# one row of figures: a model at a length, in a dtype and a phase
Row = dict
HEADER = ["model", "ms", "least–most", "× floor", "× peer", "MB", "× floor's", "tokens/s"]


def counted(seconds: list[float]) -> list[float]:
    """The rounds that count: all but the first, which warms up, unless there is no other."""
    return seconds[1:] or seconds


def ratio(seconds: list[float], others: list[float]) -> float:
    """The median over the rounds that both took of how many times the one is the other."""
    return statistics.median(counted([mine / other for mine, other in zip(seconds, others, strict=False)]))


def peer_of(model: str) -> str:
    """The peer that a model is compared with."""
    return GPT2 if is_causal(model) else BERT


def key(row: Row) -> tuple:
    return row["length"], row["dtype"], row["phase"]


def with_ratios(rows: list[Row], batch_size: int) -> list[Row]:
    """The rows with what follows from them: medians, spread, tokens per second, ratios to the floor and to the peer."""
    measured = {(row["model"], key(row)): row for row in rows if "seconds" in row}
    complete = []
    for row in rows:
        row = dict(row)
        if "seconds" in row:
            times = counted(row["seconds"])
            row |= {"ms": 1000 * statistics.median(times), "least": 1000 * min(times), "most": 1000 * max(times)}
            row["tokens/s"] = batch_size * row["length"] / statistics.median(times)
            for name, other in (("floor", FLOOR), ("peer", peer_of(row["model"]))):
                if (other, key(row)) in measured:
                    row[f"times {name}"] = ratio(row["seconds"], measured[other, key(row)]["seconds"])
            if (FLOOR, key(row)) in measured:
                row["memory times floor"] = row["MB"] / measured[FLOOR, key(row)]["MB"]
            in_float32 = measured.get((row["model"], key(row | {"dtype": "float32"})))
            if row["dtype"] != "float32" and in_float32:
                row["times float32"] = ratio(row["seconds"], in_float32["seconds"])
        complete.append(row)
    return complete


def cell(row: Row, name: str, form: str) -> str:
    return format(row[name], form) if name in row else "–"


def line(row: Row) -> str:
    """A row of a table; what was not measured has its reason in it."""
    if "missing" in row:
        return f"| `{row['model']}` | {row['missing']} |" + " |" * (len(HEADER) - 2)
    cells = [
        f"`{row['model']}`",
        f"{row['ms']:.1f}" if row["ms"] < 100 else f"{row['ms']:.0f}",
        f"{row['least']:.0f}–{row['most']:.0f}",
        cell(row, "times floor", ".2f"),
        cell(row, "times peer", ".2f"),
        f"{row['MB']:.0f}",
        cell(row, "memory times floor", ".2f"),
        f"{row['tokens/s']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def tables(rows: list[Row]) -> list[str]:
    """A table for each length, dtype and phase, those that see no later token last, as lines of Markdown."""
    lines = []
    for length, dtype, phase in dict.fromkeys(map(key, rows)):
        own = [row for row in rows if key(row) == (length, dtype, phase)]
        half = any("times float32" in row for row in own)
        header = HEADER + ["× float32"] * half
        lines += ["", f"## {length:,} tokens, {phase}, {dtype}", "", "| " + " | ".join(header) + " |"]
        lines += ["|---|" + "---:|" * (len(header) - 1)]
        for row in sorted(own, key=lambda row: is_causal(row["model"])):
            lines.append(line(row) + (f" {cell(row, 'times float32', '.2f')} |" if half else ""))
    return lines


def growth(rows: list[Row]) -> list[dict]:
    """For each model and each length that was measured at its double too: how many times time and memory grow."""
    measured = {(row["model"], *key(row)): row for row in rows if "seconds" in row}
    grown = []
    for (model, length, dtype, phase), row in measured.items():
        longer = measured.get((model, 2 * length, dtype, phase))
        if longer is not None:
            figures = {"time": longer["ms"] / row["ms"], "memory": longer["MB"] / max(row["MB"], 1e-9)}
            grown.append({"model": model, "dtype": dtype, "phase": phase, "from": length, "to": 2 * length} | figures)
    return grown


def growth_table(rows: list[Row]) -> list[str]:
    """`growth` as lines of Markdown; none where no length is another's double."""
    grown = growth(rows)
    starts = sorted({row["from"] for row in grown})
    lines = []
    for dtype, phase in dict.fromkeys((row["dtype"], row["phase"]) for row in grown):
        own = {(row["model"], row["from"]): row for row in grown if (row["dtype"], row["phase"]) == (dtype, phase)}
        lines += ["", f"## Growth where the length doubles, {phase}, {dtype}", ""]
        lines += ["Time / memory; linear is 2, quadratic 4.", ""]
        lines += ["| model | " + " | ".join(f"{start:,} to {2 * start:,}" for start in starts) + " |"]
        lines += ["|---|" + "---:|" * len(starts)]
        for model in dict.fromkeys(model for model, _ in own):
            found = [own.get((model, start)) for start in starts]
            cells = ["–" if row is None else f"{row['time']:.2f} / {row['memory']:.2f}" for row in found]
            lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    return lines


def slope(lengths: list[int], figures: list[float]) -> str:
    """How a figure grows with the length over the last three lengths: the exponent, as a legend has it."""
    if len(lengths) < 2:
        return ""
    exponent = np.polyfit(np.log(lengths[-3:]), np.log(figures[-3:]), 1)[0]
    return f", slope {exponent:.2f}"


MAPS = ((plt.cm.winter, 0.9), (plt.cm.autumn, 0.75), (plt.cm.summer, 0.75))


def styles(models: Iterable[str]) -> dict[str, dict]:
    """Colour, line and marker of each model: ours in the family's colours, peers grey and dashed, the floor black."""
    models = list(models)
    markers = "osD^v<>Pp*hX"
    # a family's colours, up to none so light that it is lost on white
    maps = dict(zip(FAMILIES, cycle(MAPS), strict=False))
    drawn = {}
    for kind in dict.fromkeys(map(family, models)):
        members = [model for model in models if family(model) == kind]
        for number, model in enumerate(members):
            share = number / max(len(members) - 1, 1)
            if kind == FLOOR:
                drawn[model] = {"color": "black", "linewidth": 2.5}
            elif kind == "peer":
                drawn[model] = {"color": plt.cm.Greys(0.45 + 0.4 * share), "linestyle": "--", "markersize": 5}
                drawn[model] |= {"marker": markers[number % len(markers)]}
                drawn[model] |= {"linewidth": 2.0 if model in (BERT, GPT2) else 1.0}
            else:
                colours, lightest = maps[kind]
                drawn[model] = {"color": colours(lightest * share), "marker": markers[number % len(markers)]}
    return drawn


def belongs(model: str, group: str) -> bool:
    """Whether a model is in the picture of a family, or of the causal models."""
    if group == "causal":
        return is_causal(model) or model == FLOOR
    return not is_causal(model) and family(model) in (FLOOR, "peer", group)


def plots(rows: list[Row], output: Path) -> None:
    """Time and memory against the length, in both phases: a picture for each family, for causal models, and dtype."""
    measured = [row for row in rows if "seconds" in row]
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        for name in (*FAMILIES, "causal"):
            own = [row for row in measured if row["dtype"] == dtype and belongs(row["model"], name)]
            models = list(dict.fromkeys(row["model"] for row in own))
            if any(family(model) not in (FLOOR, "peer") for model in models):
                draw(own, models, f"{name}, {dtype}", output.with_name(f"{output.name}-{name}-{dtype}.png"))


def draw(rows: list[Row], models: list[str], title: str, path: Path) -> None:
    """One picture: a row of panels for each phase, time to the left and memory to the right."""
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    figure, panels = plt.subplots(len(phases), 2, figsize=(17, 5.5 * len(phases)), squeeze=False)
    drawn = styles(models)
    for phase, pair in zip(phases, panels, strict=True):
        for panel, figure_of, unit in zip(pair, ("ms", "MB"), ("milliseconds", "peak megabytes"), strict=True):
            curves: dict[str, dict[int, float]] = {}
            for row in sorted(rows, key=lambda row: row["length"]):
                # what takes no more than the model itself has no place on a logarithmic axis
                if row["phase"] == phase and row[figure_of] > 0:
                    curves.setdefault(row["model"], {})[row["length"]] = row[figure_of]
            # the legend in the order of the curves' right ends
            for model, curve in sorted(curves.items(), key=lambda item: (-max(item[1]), -item[1][max(item[1])])):
                lengths, figures = list(curve), list(curve.values())
                style = {"markersize": 4} | drawn[model]
                panel.loglog(lengths, figures, label=model + slope(lengths, figures), **style)
            panel.set(title=f"{phase}: {title}", xlabel="tokens", ylabel=unit)
            ticks = sorted({row["length"] for row in rows})
            panel.set_xticks(ticks, [f"{length:,}" for length in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.grid(alpha=0.3)
            panel.legend(fontsize="x-small", bbox_to_anchor=(1.01, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
