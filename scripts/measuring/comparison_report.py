"""Table and plots of a comparison."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t

from synkhorn import FAMILIES

from ..common.precision import device_type
from .plots import curves, dots, panels, save
from .report import about_line, machine, with_ending, write_report


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; 0 for one value."""
    if len(values) < 2:
        return values[0], 0.0
    return mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def shown(values: list[float]) -> str:
    """A mean with its interval."""
    middle, half = interval(values)
    return f"{middle:.4g} ± {half:.2g}" if len(values) > 1 else f"{middle:.4g}"


def by_entrant(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of each entrant, in the order of their seeds."""
    grouped = defaultdict(list)
    for result in results:
        grouped[result["entrant"]].append(result)
    return dict(grouped)


def table(results: list[dict[str, Any]], metric: str, against: str | None) -> list[str]:
    """A row for each entrant: means over its seeds, and what they differ from `against` by, seed by seed."""
    grouped = by_entrant(results)
    metrics = [metric, *(name for name in results[0]["test"] if name != metric)]
    reference = {result["seed"]: result["test"][metric] for result in grouped.get(against or "", [])}
    head = ["entrant", "seeds", *metrics, *([f"against {against}"] if reference else [])]
    head += ["rate", "steps", "parameters", "seconds", "peak MB"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, own in grouped.items():
        cells = [name, str(len(own)), *(shown([result["test"][metric] for result in own]) for metric in metrics)]
        if reference:
            differences = [x["test"][metric] - reference[x["seed"]] for x in own if x["seed"] in reference]
            middle, half = interval(differences) if differences else (0.0, 0.0)
            cells.append("" if name == against or not differences else f"{middle:+.4f} ± {half:.2g}")
        rates = sorted({f"{result['rate']:g}" for result in own})
        cells += [", ".join(rates), str(own[0].get("steps", "")), f"{own[0]['parameters']:,}"]
        cells.append(f"{mean(result['seconds'] for result in own):.3g}")
        peaks = [result["peak_megabytes"] for result in own if "peak_megabytes" in result]
        cells.append(f"{max(peaks):.0f}" if peaks else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def length_table(results: list[dict[str, Any]], metric: str, unit: str) -> list[str]:
    """The metric by length, means over seeds; nothing where all documents are of one length."""
    groups = {(part["from"], part["to"]) for result in results for part in result["by_length"]}
    if len(groups) < 2:
        return []
    widths = sorted(groups)
    lines = ["", f"{metric} by length, in {unit}:", ""]
    if len(results[0]["by_length"]) < len(widths):
        # each fold has ranges of its own
        widths = [(place, place) for place in range(1, len(results[0]["by_length"]) + 1)]
        head = [f"fifth {place}" for place, _ in widths]
    else:
        head = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in widths]
    lines += ["| entrant | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for name, own in by_entrant(results).items():
        parts = zip(*(result["by_length"] for result in own), strict=True)
        lines.append(f"| {name} | " + " | ".join(f"{mean(x[metric] for x in part):.4g}" for part in parts) + " |")
    return lines


def sort_table(results: list[dict[str, Any]]) -> list[str]:
    """How near the sorts of Sinkhorn models are to permutations, by layer, means over seeds."""
    sorted_ones = {name: own for name, own in by_entrant(results).items() if "sort" in own[0]}
    if not sorted_ones:
        return []
    layers = range(max(len(own[0]["sort"]) for own in sorted_ones.values()))
    lines = [
        "",
        "Of how many blocks a row of the sort matrices is a mixture, and in how many a column is (the exponential of "
        "the entropy; 1: a permutation), and the largest difference of a column's sum from 1:",
        "",
        "| entrant | " + " | ".join(f"layer {k} rows | columns | column error" for k in layers) + " |",
        "|---|" + "---:|" * 3 * len(layers),
    ]
    for name, own in sorted_ones.items():
        parts = zip(*(result["sort"] for result in own), strict=True)
        cells = [f"{mean(x[key] for x in part):.3f}" for part in parts for key in ("rows", "columns", "column_error")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def is_ours(entrant: dict[str, Any]) -> bool:
    """Whether an entrant is a model of a family of ours other than plain dot-product attention, which is BERT's."""
    if entrant.get("synthesizers") == ["dot_product"]:
        return False
    kinds = {entrant.get("model_type"), entrant.get("convert")}
    return "start_from" in entrant or "trained_as" in entrant or not kinds.isdisjoint(FAMILIES)


def finding(grouped: dict[str, list[dict[str, Any]]], task: Any, against: str | None) -> str:
    """What a figure shows: the best entrant, and the one that it is held against."""
    means = {name: mean(x["test"][task.metric] for x in own) for name, own in grouped.items()}
    best = (max if task.greater_is_better else min)(means, key=means.__getitem__)
    told = [best] if against not in means or against == best else [best, against]
    guess = "" if task.chance is None else f" A guess: {task.chance:.3f}."
    return f"{task.metric}: " + ", ".join(f"{name} {means[name]:.3f}" for name in told) + "." + guess


def draw(results: list[dict[str, Any]], spec: dict[str, Any], task: Any, path: Path) -> None:
    """Draw the metric against seconds of training and memory, and against the length of the rows."""
    metric, grouped = task.metric, by_entrant(results)
    ours = [name for name in grouped if is_ours(spec["entrants"][name])]
    costs = {"seconds of training": {}, "peak memory in MB": {}}  # type: dict[str, dict[str, tuple[float, float, float]]]
    for name, own in grouped.items():
        middle, half = interval([x["test"][metric] for x in own])
        costs["seconds of training"][name] = mean(x["seconds"] for x in own), middle, half
        if all(x.get("peak_megabytes", 0) > 0 for x in own):
            costs["peak memory in MB"][name] = max(x["peak_megabytes"] for x in own), middle, half
    by_length = {
        name: {
            mean((x["from"] + x["to"]) / 2 for x in part): mean(x[metric] for x in part)
            for part in zip(*(x["by_length"] for x in own), strict=True)
        }
        for name, own in grouped.items()
    }
    has_lengths = len(next(iter(by_length.values()))) > 1
    shown = {label: points for label, points in costs.items() if points}
    question = spec["title"].split(":")[0]
    figure, (line,) = panels(question, finding(grouped, task, spec["against"]), columns=len(shown) + has_lengths)
    # names stand between the panels
    figure.subplots_adjust(wspace=0.35 + 0.03 * max(map(len, grouped)))
    for axis, (label, points) in zip(line, shown.items(), strict=False):
        dots(axis, points, ours)
        axis.set(xlabel=label, ylabel=metric)
    if has_lengths:
        curves(line[-1], by_length, ours, named=[*by_length], scale="linear")
        line[-1].set(xlabel=f"length, in {task.length_unit}", ylabel=metric)
    save(figure, path)


def report(path: Path, spec: dict[str, Any], results: list[dict[str, Any]], task: Any, command: str) -> str:
    """Write the table, the figures and the plots of the results that there are, and return the table."""
    about = machine(device_type())
    for result in results:
        result.setdefault("machine", about)
    (budget, amount), *_ = spec["budget"].items()
    guess = "" if task.chance is None else f" A guess has {task.chance:.3f}."
    lines = [
        f"# {spec['title']}",
        "",
        f"{task.metric} on the test split, which is read once: mean ± 95 % interval over seeds. Each training: "
        f"{amount:,} {budget.replace('_', ' ')}. The rate is the best on the validation split.{guess} To repeat:",
        "",
        f"    {command}",
        "",
        *dict.fromkeys(about_line(result["machine"]) for result in results),
        "",
        *table(results, task.metric, spec["against"]),
        *length_table(results, task.metric, task.length_unit),
        *sort_table(results),
    ]
    text = "\n".join(lines) + "\n"
    write_report(path, text, {"machine": about, "spec": spec, "metric": task.metric, "results": results})
    draw(results, spec, task, with_ending(path, ".png"))
    return text
