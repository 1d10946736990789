"""Topic 10: what improves each family, and what it costs."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..exhibit import Shown, Text, exhibit
from ..plots import bars, deviation, mean
from ..studies.quality import SEEDS
from ..studies.record import load
from .concept import one_layer
from .innovations import COMPARED, TASK_NAMES, means, scores, spread

# a sort made hard after training
HARD = {"hard: assignment": ("hard: assignment", "硬排序：指派"), "hard: top-1": ("hard: top-1", "硬排序：每行最大")}
IMPROVED = {
    "synthesizer": ("random", ("dense", "factorized_random", "random+dot_product", "dense+dot_product")),
    "sinkhorn": ("sinkhorn", ("local", "sortcut", "mix")),
}


@cache
@torch.no_grad()
def layer_time(name: str, length: int = 2048) -> float:
    """Milliseconds of a forward pass of one layer of width 64, the best of three."""
    torch.set_num_threads(1)
    model, ids, times = one_layer(name, length, width=64), torch.randint(64, (1, length)), []
    for _ in range(4):
        start = time.perf_counter()
        model(ids)
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def improvements(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        base, others = IMPROVED[family]
        data = scores((base, *others), ("copy", "sort"))
        data["ms"] = {name: layer_time(name) for name in (base, *others)}
        if family == "sinkhorn":
            runs = load("balancing")["runs"]
            for name, run in (
                ("τ = 0.25", runs["sort/7/0.25"]["accuracy"]),
                ("τ = 2", runs["sort/7/2.0"]["accuracy"]),
                ("hard: assignment", runs["sort/7/0.75"]["assignment"]),
                ("hard: top-1", runs["sort/7/0.75"]["best of row"]),
            ):
                data["accuracy"][name] = {"sort": [run]}
        return data

    return compute


def gains(data: dict[str, Any], base: str, task: str) -> dict[str, list[float]]:
    """Accuracy above that of the base with the same seed."""
    own = {name: values[task] for name, values in data["accuracy"].items() if task in values}
    return {name: [a - b for a, b in zip(values, own[base], strict=False)] for name, values in own.items()}


def show_improvements(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        base = IMPROVED[family][0]
        own = data["accuracy"]
        sort, copy = (gains(data, base, task) for task in ("sort", "copy"))
        named = {t(*TASK_NAMES["copy"]): copy, t(*TASK_NAMES["sort"]): sort}
        figure = bars(
            [t(*HARD.get(name, (name, name))).replace("+", "+<br>") for name in own],
            {task: [mean(x[n]) if n in x else None for n in own] for task, x in named.items()},
            t(f"accuracy against {base}", f"与 {base} 的准确率之差"),
            {task: [deviation(x[n]) if len(x.get(n, ())) > 1 else 0 for n in own] for task, x in named.items()},
        )
        best = max((n for n in sort if n != base), key=lambda n: mean(sort[n]))
        better, copied = ([n for n in x if mean(x[n]) > 0.02] for x in (sort, copy))
        sinkhorn = family == "sinkhorn"
        return Shown(
            t("What each improvement buys", "各项改进的收益"),
            t(
                f"How much better than `{base}` are its variants at copying and sorting? Differences between runs of the same seed, "
                f"bars with the standard deviation of {SEEDS} seeds."
                + (
                    " The temperatures and the hard sorts have one seed; they and SortCut are measured at sorting only."
                    if sinkhorn
                    else ""
                ),
                f"与 `{base}` 相比，各变体在复制与排序上好多少？同一种子之间求差，误差线为 {SEEDS} 个种子的标准差。"
                + ("温度与变硬的排序只有一个种子；它们和 SortCut 只在排序任务上测量。" if sinkhorn else ""),
            ),
            t(
                f"In sorting `{best}` gains most, {mean(sort[best]):+.3f}; better than the base by more than 0.02: "
                f"{', '.join(f'`{n}`' for n in better) or 'none'}. In copying: {', '.join(f'`{n}`' for n in copied) or 'none'}. "
                "The next table has the price.",
                f"排序任务上收益最大的是 `{best}`，{mean(sort[best]):+.3f}；比基准高出 0.02 以上的有："
                f"{'、'.join(f'`{n}`' for n in better) or '无'}。复制任务上则为：{'、'.join(f'`{n}`' for n in copied) or '无'}。"
                "各项改进的代价见下表。",
            ),
            figure,
        )

    return show


def show_improvements_table(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        base = IMPROVED[family][0]
        same = t("as the base", "同基准")
        rows = [
            [
                f"`{t(*HARD.get(name, (name, name)))}`",
                *(
                    (spread(own[task]) if len(own[task]) > 1 else f"{own[task][0]:.3f}") if task in own else "–"
                    for task in ("copy", "sort")
                ),
                f"{data['ms'][name] / data['ms'][base]:.2f}" if name in data["ms"] else same,
            ]
            for name, own in data["accuracy"].items()
        ]
        worth = [n for n in data["ms"] if n != base and means(data, "sort")[n] > means(data, "sort")[base]]
        prices = ", ".join(f"`{n}` {data['ms'][n] / data['ms'][base]:.2f}" for n in worth) or "–"
        return Shown(
            t("The same with its cost", "收益与代价"),
            t(
                "What does each improvement cost? Time of one layer at 2,048 tokens, times the base's.",
                "每项改进要付出多少？一层在 2,048 个词元上的时间，以基准为 1。",
            ),
            t(
                f"Better than the base at sorting, with their price: {prices}. At longer texts the price of a dot product "
                "grows with the square of the length.",
                f"排序优于基准的变体及其代价：{prices}。文本更长时，点积的开销按长度的平方增长。",
            ),
            header=[
                t("variant", "变体"),
                t(*TASK_NAMES["copy"]),
                t(*TASK_NAMES["sort"]),
                t("time, base = 1", "时间（基准 = 1）"),
            ],
            rows=rows,
        )

    return show


for family_name in COMPARED:
    exhibit(f"{family_name}-improvements-figure", improvements(family_name))(show_improvements(family_name))
    exhibit(f"{family_name}-improvements-table", improvements(family_name))(show_improvements_table(family_name))
