"""Further figures with a slider: a causal sort, the size of blocks, the weights of a mixture."""

import time
from typing import Any

import plotly.graph_objects as go
import torch

from synkhorn import SynthesizerConfig, SynthesizerModel, causal_sinkhorn

from ..exhibit import Shown, Text, exhibit
from ..plots import SCALE, laid_out, lines, sliding
from .concept import one_layer, operations_of
from .principle import BLOCKS, logits_8, one_map

ITERATIONS = (0, 1, 2, 4, 7, 15, 30, 60)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256, 512)
LENGTHS = (1024, 4096, 16384)
ALPHAS = tuple(x / 10 for x in range(11))
TOKENS = 24


def causal() -> dict[str, Any]:
    logits = logits_8() / 0.75
    steps = []
    for n in ITERATIONS:
        matrix = causal_sinkhorn(logits, n)[0, 0]
        steps.append({"matrix": matrix.tolist(), "previous": matrix.diagonal(-1)[1:].mean().item()})
    return {"steps": steps}


def show_causal(data: dict[str, Any], t: Text) -> Shown:
    word = t("mass on the previous block: ", "落在前一块上的概率质量：")
    steps = [
        (str(n), [go.Heatmap(z=s["matrix"], colorscale=SCALE, zmin=0, zmax=1)], f"{word}{s['previous']:.2f}")
        for n, s in zip(ITERATIONS, data["steps"], strict=True)
    ]
    first, seven, last = (data["steps"][ITERATIONS.index(n)]["previous"] for n in (0, 7, 60))
    even = sum(1 / i for i in range(2, BLOCKS)) / (BLOCKS - 2)
    return Shown(
        t("A causal sort tends to the previous block", "因果排序趋向前一块"),
        t(
            "What does balancing do to a sort that may only look back? The logits are random: they prefer no block.",
            "只许往回看时，归一化会把排序变成什么样？这里的 logit 是随机的，不偏向任何块。",
        ),
        t(
            f"Without balancing the previous block gets {first:.2f} of the mass (an even choice: {even:.2f}), with seven "
            f"iterations {seven:.2f}, with sixty {last:.2f}, whatever the logits say. So the package's causal models "
            "normalise rows only, unless `causal_balancing='sinkhorn'` asks for the paper's form.",
            f"不做归一化时，前一块得到 {first:.2f} 的概率质量（均匀选择为 {even:.2f}）；7 次迭代后为 {seven:.2f}，60 次后为 "
            f"{last:.2f}，与 logit 无关。因此软件包的因果模型默认只归一化行，除非用 `causal_balancing='sinkhorn'` 要求论文的做法。",
        ),
        sliding(one_map(t), steps, t("iterations: ", "迭代次数："), ITERATIONS.index(0)),
    )


@torch.no_grad()
def block_sizes() -> dict[str, Any]:
    """Operations and time of one layer of width 64 for each size of its blocks."""
    torch.set_num_threads(1)
    rows: dict[str, list[Any]] = {}
    for length in LENGTHS:
        ids = torch.randint(64, (1, length))
        for size in BLOCK_SIZES:
            model, times = one_layer("sinkhorn", length, width=64, block_size=size), []
            operations, _ = operations_of(model, ids)
            for _ in range(3):
                start = time.perf_counter()
                model(ids)
                times.append(time.perf_counter() - start)
            rows.setdefault(str(length), []).append({"operations": operations, "ms": 1000 * min(times)})
    return {"rows": rows}


def show_block_sizes(data: dict[str, Any], t: Text) -> Shown:
    across = t("tokens of a block", "块长（词元数）")
    labels = {"ms": t("milliseconds", "毫秒"), "operations": t("relative operations", "相对运算量")}
    figure = lines(dict.fromkeys(labels.values(), ((), ())), across, "", log="xy", mode="lines+markers")
    figure.update_xaxes(tickvals=BLOCK_SIZES, ticktext=[str(size) for size in BLOCK_SIZES])
    steps, best = [], {}
    for length, row in data["rows"].items():
        least = min(entry["operations"] for entry in row)
        fastest = min(range(len(row)), key=lambda i, row=row: row[i]["ms"])
        fewest = min(range(len(row)), key=lambda i, row=row: row[i]["operations"])
        best[length] = BLOCK_SIZES[fastest], BLOCK_SIZES[fewest]
        traces = [
            go.Scatter(x=BLOCK_SIZES, y=[entry["ms"] for entry in row]),
            go.Scatter(x=BLOCK_SIZES, y=[entry["operations"] / least for entry in row]),
        ]
        title = t("fastest: blocks of ", "最快的块长：") + str(best[length][0])
        steps.append((f"{int(length):,}", traces, title))
    figure.update_yaxes(range=None, autorange=True)
    short, long = best[str(LENGTHS[0])], best[str(LENGTHS[-1])]
    return Shown(
        t("Block size against cost", "块长与开销"),
        t("Which size of block costs least?", "块长取多少最省？"),
        t(
            f"Small blocks make a large sort matrix, large blocks long local attention. Fewest operations: blocks of "
            f"{short[1]} at {LENGTHS[0]:,} tokens and of {long[1]} at {LENGTHS[-1]:,}; fastest in this run: {short[0]} "
            f"and {long[0]}. Counted, 2bL + L²/b is least at b = √(L/2): the best size grows with the square root of the length.",
            f"块太小，排序矩阵就大；块太大，局部注意力就长。运算量最少的块长：{LENGTHS[0]:,} 个词元时为 {short[1]}，"
            f"{LENGTHS[-1]:,} 个时为 {long[1]}；本次运行最快的为 {short[0]} 和 {long[0]}。按 2bL + L²/b 计算，b = √(L/2) 时运算量最小：最佳块长随长度的平方根增长。",
        ),
        sliding(figure, steps, t("tokens: ", "词元数："), len(LENGTHS) - 1),
    )


@torch.no_grad()
def mixtures() -> dict[str, Any]:
    """Effective weights of one head of a mixture of random and dot product as alpha moves between them."""
    torch.manual_seed(0)
    config = SynthesizerConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=TOKENS,
        synthesizers=["random", "dot_product"],
        initializer_range=0.5,
        pad_token_id=None,
    )
    model = SynthesizerModel(config).eval()
    model.set_attn_implementation("eager")
    texts, steps = torch.randint(64, (16, TOKENS)), []
    for alpha in ALPHAS:
        logit = torch.logit(torch.tensor(alpha).clamp(1e-4, 1 - 1e-4))
        model.layers[0].attention.mixture.copy_(torch.stack((logit, torch.zeros(())))[None])
        weights = model(texts, output_attentions=True).attentions[0][:, 0]
        changes = (weights - weights.mean(0)).abs().sum(-1).mean().item() / 2
        steps.append({"matrix": weights[0].tolist(), "changes": changes})
    return {"steps": steps}


def show_mixtures(data: dict[str, Any], t: Text) -> Shown:
    word = t("a row's mass that changes with the text: ", "每行中随文本变化的概率质量：")
    steps = [
        (f"{a:.1f}", [go.Heatmap(z=s["matrix"], colorscale=SCALE, zmin=0, zmax=0.6)], f"{word}{s['changes']:.2f}")
        for a, s in zip(ALPHAS, data["steps"], strict=True)
    ]
    first, half, last = (data["steps"][i]["changes"] for i in (0, 5, 10))
    figure = one_map(t)
    figure.update_xaxes(title_text=t("token that is read", "被读取的词元"))
    figure.update_yaxes(title_text=t("token that reads", "读取的词元"))
    return Shown(
        t("The weights of a mixture", "混合权重"),
        t(
            "A mixture adds logits before one softmax, weighted by alpha. What does alpha trade? Weight of random; the "
            "dot product has the rest.",
            "混合是在同一个 softmax 之前把 logit 按 α 加权相加。α 在权衡什么？滑块为 random 的权重，其余归点积。",
        ),
        t(
            f"What the text decides against what the position decides. Between 16 texts {first:.2f} of a row's mass "
            f"moves with the dot product alone, {half:.2f} at one half, {last:.2f} with random alone.",
            f"权衡的是“由文本决定”与“由位置决定”。在 16 段文本之间，只用点积时每行有 {first:.2f} 的概率质量随文本变化，各占一半时为 "
            f"{half:.2f}，只用 random 时为 {last:.2f}。",
        ),
        sliding(laid_out(figure), steps, t("weight of random: ", "random 的权重："), 5),
    )


exhibit("sinkhorn-extra-causal", causal)(show_causal)
exhibit("sinkhorn-extra-block-size", block_sizes)(show_block_sizes)
exhibit("synthesizer-extra-mixture", mixtures)(show_mixtures)
