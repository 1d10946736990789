"""The benchmark's figures as Markdown tables and plots: ratios taken round by round, and growth at a doubling."""

import statistics
from pathlib import Path

from ...families import FAMILIES
from .benchmark_models import BERT, FLOOR, GPT2, family, is_causal
from .plots import multiples, save

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


def belongs(model: str, group: str) -> bool:
    """Whether a model is in the picture of a family, or of the causal models."""
    if group == "causal":
        return is_causal(model) or model == FLOOR
    return not is_causal(model) and family(model) in (FLOOR, "peer", group)


def plots(rows: list[Row], output: Path) -> None:
    """Time and memory against the length: a picture for each family, for causal models, and dtype."""
    measured = [row for row in rows if "seconds" in row]
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        for name in (*FAMILIES, "causal"):
            own = [row for row in measured if row["dtype"] == dtype and belongs(row["model"], name)]
            ours = [model for model in dict.fromkeys(row["model"] for row in own) if family(model) in FAMILIES]
            if ours:
                draw(own, ours, f"{name}, {dtype}", output.with_name(f"{output.name}-{name}-{dtype}.png"))


def draw(rows: list[Row], ours: list[str], title: str, path: Path) -> None:
    """One picture: the time of each phase, and the memory of the last, of each of our models."""
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    kinds = [(phase, "ms", f"{phase}: ms") for phase in phases] + [(phases[-1], "MB", f"{phases[-1]}: peak MB")]
    drawn: dict[str, dict[str, dict[float, float]]] = {}
    for phase, unit, name in kinds:
        points = drawn.setdefault(name, {})
        for row in sorted(rows, key=lambda row: row["length"]):
            # a model that needs no memory beyond its weights has no place on a logarithmic axis
            if row["phase"] == phase and row[unit] > 0:
                points.setdefault(row["model"], {})[row["length"]] = row[unit]
    drawn_ours = [model for model in ours if all(model in points for points in drawn.values())]
    found = finding(rows, ours, phases[-1], max(row["length"] for row in rows))
    question = f"How do time and memory grow with the length? ({title})"
    save(multiples(question, found, drawn, drawn_ours, "tokens", named=[FLOOR]), path)


def finding(rows: list[Row], ours: list[str], phase: str, longest: int) -> str:
    """The speed of our fastest and slowest models at the greatest length, in times the peer's, or else the floor's."""
    measured = [row for row in rows if row["model"] in ours and (row["phase"], row["length"]) == (phase, longest)]
    other, name = peer_of(ours[0]), "times peer"
    if not any(name in row for row in measured):
        other, name = FLOOR, "times floor"
    times = {row["model"]: 1 / row[name] for row in measured if name in row}
    if not times:
        return ""
    fastest, slowest = max(times, key=times.get), min(times, key=times.get)  # type: ignore[arg-type]
    return (
        f"At {longest:,} tokens, {phase}: {times[fastest]:.2g} times the speed of {other} with {fastest}, "
        f"{times[slowest]:.2g} with {slowest}."
    )
