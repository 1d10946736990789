"""Topic 2, the principle: what a logit depends on, how balancing converges, and what both cost by length."""

import time
from collections.abc import Callable
from functools import cache
from math import log2
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from synkhorn import sinkhorn
from synkhorn.modeling.rows import Rows
from synkhorn.modeling.sinkhorn_sort import column_residual, gumbel_noise

from ..exhibit import Shown, Text, exhibit, number
from ..plots import SCALE, laid_out, lines, maps, sliding
from .concept import one_layer, operations_of

CHANGED = ("dense", "random", "dot_product")
TOKENS, CHANGE = 24, 9
ITERATIONS = tuple(range(21))
TEMPERATURES = (2.0, 1.0, 0.75, 0.5, 0.3, 0.2, 0.1, 0.05)
BLOCKS = 8
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
# beyond it the matrix of one layer takes a gigabyte
LONGEST_MATRIX = 4096
TIMED = {
    "synthesizer": ("dot_product", "dense", "random", "factorized_random", "factorized_dense"),
    "sinkhorn": ("dot_product", "sinkhorn", "local", "sortcut"),
}


@torch.no_grad()
def changed_logits() -> dict[str, Any]:
    """How much each logit moves where one token is replaced by another, the largest of the heads."""
    moves = {}
    for name in CHANGED:
        model = one_layer(name, TOKENS, initializer_range=0.3)
        rows, logits = Rows.whole((1, TOKENS), torch.device("cpu")), []
        model.layers[0].attention.members[name].register_forward_hook(
            lambda module, inputs, terms, rows=rows, logits=logits: logits.append(terms.padded(rows).written(TOKENS))
        )
        ids = torch.randint(64, (1, TOKENS), generator=torch.Generator().manual_seed(0))
        other = ids.clone()
        other[0, CHANGE] = (ids[0, CHANGE] + 1) % 64
        model(ids)
        model(other)
        moves[name] = (logits[1] - logits[0]).abs().amax((0, 1)).tolist()
    return {"moves": moves}


def show_changed(data: dict[str, Any], t: Text) -> Shown:
    moves = data["moves"]
    scaled = [[[x / max(max(map(max, m)), 1e-12) for x in row] for row in m] for m in moves.values()]
    cells = {name: sum(x > 1e-6 for row in m for x in row) for name, m in moves.items()}
    across, down = t("key", "键"), t("query", "查询")
    return Shown(
        t("Which logits move when one token changes?", "改变一个词元，哪些 logit 会变？"),
        t(
            f"Token {CHANGE} of {TOKENS} is replaced by another. What does each attention notice of it?",
            f"把 {TOKENS} 个词元中的第 {CHANGE} 个换掉，各种注意力会察觉到什么？",
        ),
        t(
            f"Dense: {cells['dense']} logits, one row: a token writes its own row and looks at nobody. Random: "
            f"{cells['random']}: R is the same for every text. Dot product: {cells['dot_product']}, a row and a column: "
            "only here do other tokens react to what the token says.",
            f"dense：{cells['dense']} 个 logit，正好一行——词元只根据自己写出自己的那一行，不看别人。random："
            f"{cells['random']} 个——对任何文本 R 都一样。点积：{cells['dot_product']} 个，一行加一列——只有在这里，其他词元"
            "才会对这个词元的内容作出反应。",
        ),
        maps(scaled, list(moves), across=across, down=down),
    )


def logits_8(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 1, BLOCKS, BLOCKS, generator=torch.Generator().manual_seed(seed))


def residuals(matrix: torch.Tensor) -> tuple[float, float]:
    """The largest |row sum - 1| and |column sum - 1|."""
    return (matrix.sum(-1) - 1).abs().max().item(), column_residual(matrix, None).max().item()


def balanced() -> dict[str, Any]:
    """The sort matrix after each number of iterations, at two temperatures."""
    logits, steps = logits_8(), {}
    for temperature in (0.75, 0.1):
        steps[str(temperature)] = [
            {"matrix": m[0, 0].tolist(), "residuals": residuals(m)}
            for m in (sinkhorn(logits / temperature, None, n) for n in ITERATIONS)
        ]
    return {"steps": steps}


def show_balanced(data: dict[str, Any], t: Text) -> Shown:
    figure = make_subplots(1, 2, subplot_titles=["τ = 0.75", "τ = 0.1"], horizontal_spacing=0.12, shared_yaxes=True)
    for column in (1, 2):
        figure.add_trace(go.Heatmap(coloraxis="coloraxis"), 1, column)
    figure.update_layout(coloraxis={"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": {"thickness": 10}})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text=t("block that is read", "被读取的块"))
    figure.update_yaxes(title_text=t("sorted block", "排序后的块"), col=1)
    laid_out(figure)
    word = t("largest |column sum − 1|: ", "列和与 1 的最大偏差：")
    steps = []
    for n in ITERATIONS:
        pair = [data["steps"][key][n] for key in ("0.75", "0.1")]
        title = word + t(" and ", " 与 ").join(f"{step['residuals'][1]:.4f}" for step in pair)
        traces = [go.Heatmap(z=step["matrix"], coloraxis="coloraxis") for step in pair]
        steps.append((str(n), traces, title))
    warm, cold = (data["steps"][key] for key in ("0.75", "0.1"))
    return Shown(
        t("Balancing, iteration by iteration", "逐次迭代的双随机归一化"),
        t(
            "How many times must columns and rows be normalised before the matrix is doubly stochastic? Move the slider.",
            "行列要交替归一化多少次，矩阵才成为双随机矩阵？拖动滑块看看。",
        ),
        t(
            f"Rows add up to 1 from the start, because each iteration ends with them. Columns do not: after the default "
            f"seven iterations they are off by up to {warm[7]['residuals'][1]:.4f} at temperature 0.75 and by "
            f"{cold[7]['residuals'][1]:.2f} at 0.1, and after twenty still by {cold[20]['residuals'][1]:.2f}. Seven "
            "iterations are a choice, not convergence; and at 0.75 no cell is near 1: the sort is soft.",
            f"每次迭代都以行归一化结束，所以行和始终为 1；列和则不然：默认的 7 次迭代之后，温度 0.75 下最大偏差为 "
            f"{warm[7]['residuals'][1]:.4f}，温度 0.1 下为 {cold[7]['residuals'][1]:.2f}，迭代 20 次后仍有 "
            f"{cold[20]['residuals'][1]:.2f}。7 次是一种取舍，并不意味着收敛；而且在 0.75 下没有哪个格子接近 1：排序是软的。",
        ),
        sliding(figure, steps, t("iterations: ", "迭代次数："), 7),
    )


def tempered() -> dict[str, Any]:
    logits = logits_8()
    return {
        "steps": [
            {"temperature": x, "matrix": m[0, 0].tolist(), "residual": residuals(m)[1]}
            for x, m in ((x, sinkhorn(logits / x, None, 7)) for x in TEMPERATURES)
        ]
    }


def entropy(matrix: list[list[float]]) -> float:
    """The mean entropy of the rows in bits."""
    return sum(-x * log2(x) for row in matrix for x in row if x > 0) / len(matrix)


def one_map(t: Text) -> go.Figure:
    figure = go.Figure(go.Heatmap(colorscale=SCALE, zmin=0, zmax=1, colorbar={"thickness": 10}))
    figure.update_yaxes(autorange="reversed", title_text=t("sorted block", "排序后的块"))
    figure.update_xaxes(title_text=t("block that is read", "被读取的块"))
    return laid_out(figure)


def show_tempered(data: dict[str, Any], t: Text) -> Shown:
    word, off = t("entropy of a row: ", "每行的熵："), t(" bits; columns off by ", " 比特；列和偏差 ")
    steps = [
        (
            str(step["temperature"]),
            [go.Heatmap(z=step["matrix"], colorscale=SCALE, zmin=0, zmax=1)],
            f"{word}{entropy(step['matrix']):.2f}{off}{step['residual']:.3f}",
        )
        for step in data["steps"]
    ]
    first, last = data["steps"][TEMPERATURES.index(0.75)], data["steps"][-1]
    return Shown(
        t("The temperature", "温度"),
        t(
            "Does a smaller temperature make a permutation of the matrix? Seven iterations at each.",
            "把温度调低，矩阵就会变成置换矩阵吗？每个温度都迭代 7 次。",
        ),
        t(
            f"It makes each row choose: from {entropy(first['matrix']):.2f} bits of entropy at 0.75 to "
            f"{entropy(last['matrix']):.2f} at {last['temperature']}. But several rows choose the same column, which "
            f"is then used up to {1 + last['residual']:.1f} times: without more iterations there is no permutation.",
            f"每一行的选择确实更明确：熵从 0.75 时的 {entropy(first['matrix']):.2f} 比特降到 {last['temperature']} 时的 "
            f"{entropy(last['matrix']):.2f} 比特。但多行会选中同一列，某一列被用了多达 {1 + last['residual']:.1f} 次：不增加"
            "迭代次数，就得不到置换矩阵。",
        ),
        sliding(one_map(t), steps, t("temperature: ", "温度："), TEMPERATURES.index(0.75)),
    )


NOISES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def noisy() -> dict[str, Any]:
    """Sort matrices of the same logits under more and more noise, and how often a row's choice stays."""
    logits, steps = logits_8() * 2, []
    torch.manual_seed(0)
    draws = gumbel_noise(logits.expand(200, -1, -1, -1))
    quiet = sinkhorn(logits / 0.75, None, 7)
    for scale in NOISES:
        drawn = sinkhorn((logits + scale * draws) / 0.75, None, 7)
        kept = (drawn.argmax(-1) == quiet.argmax(-1)).float().mean().item()
        steps.append({"scale": scale, "matrix": drawn[0, 0].tolist(), "kept": kept})
    return {"steps": steps}


def show_noisy(data: dict[str, Any], t: Text) -> Shown:
    word = t("rows that keep their first choice: ", "保持首选不变的行：")
    steps = [
        (
            str(step["scale"]),
            [go.Heatmap(z=step["matrix"], colorscale=SCALE, zmin=0, zmax=1)],
            f"{word}{step['kept']:.0%}",
        )
        for step in data["steps"]
    ]
    full = data["steps"][NOISES.index(1.0)]
    return Shown(
        t("Gumbel noise", "Gumbel 噪声"),
        t(
            "In training noise is added to the logits of the sort. How much of the choice is left?",
            "训练时会给排序的 logit 加上噪声。选择还剩下多少？",
        ),
        t(
            f"With noise of the usual scale 1 and logits of spread 2, {full['kept']:.0%} of the rows keep their first "
            "choice (200 draws). So other blocks get a gradient too. In evaluation there is no noise.",
            f"噪声取通常的幅度 1、logit 的标准差为 2 时，{full['kept']:.0%} 的行保持原来的首选（200 次抽样）。因此其他块也能"
            "得到梯度。推理时不加噪声。",
        ),
        sliding(one_map(t), steps, t("scale of the noise: ", "噪声幅度："), NOISES.index(1.0)),
    )


@cache
@torch.no_grad()
def by_length(family: str) -> dict[str, Any]:
    """Operations and milliseconds of one layer of width 64, the best of two passes after one that warms up."""
    torch.set_num_threads(1)
    rows: dict[str, list[Any]] = {name: [] for name in TIMED[family]}
    for length in LENGTHS:
        ids = torch.randint(64, (1, length))
        for name, row in rows.items():
            if name == "random" and length > LONGEST_MATRIX:
                row.append(None)
                continue
            model, times = one_layer(name, length, width=64), []
            operations, _ = operations_of(model, ids)
            for _ in range(2):
                start = time.perf_counter()
                model(ids)
                times.append(time.perf_counter() - start)
            row.append({"operations": operations, "ms": 1000 * min(times)})
    return {"rows": rows}


def growth(row: list[Any], what: str) -> float:
    """How many times more at the longest length than at half of it."""
    known = [entry for entry in row if entry]
    return known[-1][what] / known[-2][what]


def show_lengths_table(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows = []
        for name, row in data["rows"].items():
            cells = [
                t("matrix of 1 GiB or more", "矩阵不小于 1 GiB")
                if entry is None
                else f"{entry['operations'] / 1e9:.2f} · {entry['ms']:.1f}"
                for entry in row
            ]
            rows.append([f"`{name}`", *cells, f"{growth(row, 'operations'):.2f} · {growth(row, 'ms'):.2f}"])
        grown = {name: (growth(row, "operations"), growth(row, "ms")) for name, row in data["rows"].items()}
        if family == "synthesizer":
            finding = t(
                f"The outline says that synthesised weights cut the cost of long sequences. Counted, they do not: from "
                f"8,192 to 16,384 tokens dense needs {grown['dense'][0]:.2f} times the operations (measured: "
                f"{grown['dense'][1]:.2f} times the time), the dot product {grown['dot_product'][0]:.2f} times. All are "
                "O(L²); only the constant differs.",
                f"大纲说，合成权重能显著降低长序列的开销。数一数就知道并非如此：从 8,192 到 16,384 个词元，dense 的运算量变为 "
                f"{grown['dense'][0]:.2f} 倍（实测时间 {grown['dense'][1]:.2f} 倍），点积为 {grown['dot_product'][0]:.2f} 倍。"
                "它们都是 O(L²)，差别只在常数。",
            )
        else:
            finding = t(
                f"From 8,192 to 16,384 tokens Sinkhorn needs {grown['sinkhorn'][0]:.2f} times the operations and "
                f"{grown['sinkhorn'][1]:.2f} times the time, the dot product {grown['dot_product'][0]:.2f} and "
                f"{grown['dot_product'][1]:.2f}. The remainder beyond 2 is the sort: mixing n blocks costs L²/b.",
                f"从 8,192 到 16,384 个词元，Sinkhorn 的运算量变为 {grown['sinkhorn'][0]:.2f} 倍，时间变为 "
                f"{grown['sinkhorn'][1]:.2f} 倍；点积分别为 {grown['dot_product'][0]:.2f} 倍和 "
                f"{grown['dot_product'][1]:.2f} 倍。超出 2 倍的部分来自排序：混合 n 个块需要 L²/b 次运算。",
            )
        return Shown(
            t("Counted operations beside measured time", "运算量与实测时间"),
            t(
                "What does one layer cost as the text grows? Billion operations · milliseconds of a forward pass; width "
                "64, 4 heads, one thread; last column: how many times more when the length doubles at the end.",
                "文本变长时，一层要花多少？十亿次运算 · 前向计算毫秒数；宽度 64，4 个头，单线程；最后一列：长度最后一次翻倍时的倍数。",
            ),
            finding,
            header=[t("attention", "注意力"), *map(number, LENGTHS), t("doubling", "翻倍时")],
            rows=rows,
        )

    return show


def lengths_of(family: str) -> Callable[[], dict[str, Any]]:
    return lambda: dict(by_length(family))


def show_time(data: dict[str, Any], t: Text) -> Shown:
    """A marker that moves along the lengths, beside the curves of the table's measurements."""
    rows = {name: [(x, e["ms"]) for x, e in zip(LENGTHS, row, strict=True) if e] for name, row in data["rows"].items()}
    across, up = t("tokens", "词元数"), t("milliseconds", "毫秒")
    figure = lines({name: tuple(zip(*row, strict=True)) for name, row in rows.items()}, across, up, log="xy")
    figure.add_trace(go.Scatter(mode="markers", marker={"size": 12, "color": "#d00"}, showlegend=False))
    steps = []
    for length in LENGTHS:
        at = {name: dict(row)[length] for name, row in rows.items() if length in dict(row)}
        best = min(at, key=lambda name: at[name])
        marker = go.Scatter(x=[length] * len(at), y=list(at.values()), mode="markers", showlegend=False)
        fixed = [go.Scatter(x=x, y=y) for x, y in (zip(*row, strict=True) for row in rows.values())]
        title = t("fastest: ", "最快：") + f"{best}, {at[best]:.1f} ms"
        steps.append((f"{length:,}", [*fixed, marker], title))
    crossing = [n for n in LENGTHS if dict(rows["sinkhorn"])[n] < dict(rows["dot_product"])[n]]
    first = f"{crossing[0]:,}" if crossing else "∞"
    return Shown(
        t("Length against time", "长度与时间"),
        t("From which length on does blocking pay?", "从多长的文本开始，分块才划算？"),
        t(
            f"In this run Sinkhorn is faster than the dot product from {first} tokens on; below, the fixed cost of "
            "pooling and balancing outweighs what blocks save.",
            f"在这次运行中，从 {first} 个词元起 Sinkhorn 比点积快；更短时，池化与归一化的固定开销超过了分块省下的时间。",
        ),
        sliding(figure, steps, t("tokens: ", "词元数："), len(LENGTHS) - 1, height=520),
    )


exhibit("synthesizer-principle-figure", changed_logits)(show_changed)
exhibit("sinkhorn-principle-figure", balanced)(show_balanced)
for family_name in TIMED:
    exhibit(f"{family_name}-principle-table", lengths_of(family_name))(show_lengths_table(family_name))
exhibit("sinkhorn-extra-temperature", tempered)(show_tempered)
exhibit("sinkhorn-extra-noise", noisy)(show_noisy)
exhibit("sinkhorn-extra-length", lengths_of("sinkhorn"))(show_time)
