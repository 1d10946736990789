"""Topic 1, the concept: one sentence under several attentions, and what they cost, counted on models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoConfig, AutoModel

from ..exhibit import Shown, Text, exhibit, number
from ..plots import maps, mean
from ..studies.quality import effective_weights, example_ids
from ..studies.tiny import MODELS, build, review_task, tokenizer, train

MAPPED = {
    "synthesizer": ("dot_product", "dense", "random", "sinkhorn"),
    "sinkhorn": ("dot_product", "local", "sinkhorn", "sortcut"),
}
COUNTED = {
    "synthesizer": ("dot_product", "dense", "random", "factorized_random", "factorized_dense", "dense+dot_product"),
    "sinkhorn": ("dot_product", "sinkhorn", "local", "sortcut", "mix"),
}
WIDTH, LENGTH = 128, 1024
# PyTorch's counter does not know the fused call of the CPU
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, out_shape=None, **kwargs: (
        sdpa_flop_count(q, k, v)
    )
}


def mapped(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        ids, task, weights = example_ids(), review_task(), {}
        for name in MAPPED[family]:
            model = build(name, task)
            train(model, task.draw, task.steps, rate=task.rate)
            weights[name] = effective_weights(model, ids)[-1]
        return {"weights": weights, "text": tokenizer().decode(ids[0])}

    return compute


def show_maps(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        weights = data["weights"]
        figure = maps(
            list(weights.values()),
            list(weights),
            across=t("token that is read", "被读取的词元"),
            down=t("token that reads", "读取的词元"),
        )
        figure.update_layout(coloraxis={"cmin": 0, "cmax": 0.1})
        same = {name: rows_alike(matrix) for name, matrix in weights.items()}
        near = {
            name: mean([sum(row[i // 8 * 8 : i // 8 * 8 + 8]) for i, row in enumerate(m)])
            for name, m in weights.items()
        }
        excerpt = data["text"].removeprefix("<s>")[:90]
        if family == "synthesizer":
            finding = t(
                f"Two rows of a map differ by {same['dense']:.3f} on average with dense, {same['dot_product']:.3f} with "
                f"the dot product and {same['random']:.3f} with random (half the sum of the absolute differences): "
                f"after {review_task().steps} steps dense is still close to an even mean, while the rows of random differ "
                f"from the start. All three fill the whole square; Sinkhorn keeps {near['sinkhorn']:.0%} in the own block.",
                f"任取两行，差异的平均值（绝对差之和的一半）在 dense 下为 {same['dense']:.3f}，点积为 "
                f"{same['dot_product']:.3f}，random 为 {same['random']:.3f}：训练 {review_task().steps} 步之后，dense 仍接近均匀平均，"
                f"而 random 的各行一开始就不同。三者都填满整个方阵；Sinkhorn 则把 {near['sinkhorn']:.0%} 的权重留在自己的块里。",
            )
        else:
            finding = t(
                f"Local attention keeps all of its weight in the own block, Sinkhorn {near['sinkhorn']:.0%}, SortCut "
                f"{near['sortcut']:.0%}. What Sinkhorn spends elsewhere is spread: its sort is soft, and a sorted block "
                "is a weighted mean of all eight. It costs little because whole blocks are mixed, not because the map "
                "is sparse.",
                f"局部注意力的权重全部留在自己的块里，Sinkhorn 留下 {near['sinkhorn']:.0%}，SortCut 留下 {near['sortcut']:.0%}。"
                "Sinkhorn 用在别处的那部分是散开的：排序是软的，排序后的一块是全部八块的加权平均。它之所以便宜，是因为以整块为单位"
                "混合，而不是因为这张图稀疏。",
            )
        return Shown(
            t("One text under four attentions", "同一段文本在四种注意力下的权重"),
            t(
                f"Where does each of the first 64 tokens of a review look (“{excerpt}…”)? Weights of the last layer, "
                "mean of the heads, after training on the sentiment of reviews.",
                f"一条影评的前 64 个词元（“{excerpt}…”）各自看向哪里？最后一层的权重，对各头取平均，模型已在影评情感分类上训练。",
            ),
            finding,
            figure,
        )

    return show


def rows_alike(matrix: list[list[float]]) -> float:
    """The mean distance of two rows, half the sum of their absolute differences."""
    rows = torch.tensor(matrix)
    return float(torch.cdist(rows, rows, p=1).sum() / 2 / len(rows) / (len(rows) - 1))


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def one_layer(name: str, length: int = LENGTH, width: int = WIDTH, **fields: Any) -> nn.Module:
    """A base model of one layer, untrained."""
    family, own = MODELS[name]
    own = own | ({"block_size": 64} if family == "sinkhorn" else {})
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=width,
        max_position_embeddings=length,
        hidden_dropout=0.0,
        pad_token_id=None,
        **own | fields,
    )
    return AutoModel.from_config(config).eval()


def attention_parameters(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if ".attention." in n)


@torch.no_grad()
def operations_of(model: nn.Module, ids: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Multiplications and additions of a forward pass, and its output."""
    with FlopCounterMode(display=False, custom_mapping=FUSED) as flops:
        outputs = model(ids).last_hidden_state
    return flops.get_total_flops(), outputs


@torch.no_grad()
def counted(name: str) -> dict[str, Any]:
    model = one_layer(name)
    ids = torch.randint(64, (1, LENGTH))
    operations, fast = operations_of(model, ids)
    with LargestTensor() as largest:
        model(ids)
    model.set_attn_implementation("eager")
    gap = (model(ids).last_hidden_state - fast).abs().max().item()
    try:
        one_layer(name, is_causal=True)
        causal = True
    except ValueError:
        causal = False
    longer = attention_parameters(one_layer(name, 2 * LENGTH))
    return {
        "parameters": attention_parameters(model),
        "operations": operations,
        "largest": largest.bytes,
        "gap": gap,
        "causal": causal,
        "free": longer == attention_parameters(model),
    }


def show_counts(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        yes = {True: t("yes", "是"), False: t("no", "否")}
        rows = [
            [
                f"`{name}`",
                row["parameters"],
                number(row["operations"] / 1e6, 0),
                number(row["largest"] / 2**20, 1),
                f"{row['gap']:.0e}" if row["gap"] else "0",
                yes[row["causal"]],
                yes[row["free"]],
            ]
            for name, row in data["counts"].items()
        ]
        counts = data["counts"]
        if family == "synthesizer":
            finding = t(
                f"Random needs no query or key projection, but its matrices make it the largest: "
                f"{counts['random']['parameters']:,} parameters against {counts['dot_product']['parameters']:,}. Only "
                f"the dot product is free of a maximal length; every synthesised row has a column for each position.",
                f"random 不需要查询和键的投影，但它的矩阵使参数最多：{counts['random']['parameters']:,} 对 "
                f"{counts['dot_product']['parameters']:,}。只有点积不受最大长度限制；合成的每一行都要为每个位置准备一列。",
            )
        else:
            ratio = counts["dot_product"]["operations"] / counts["sinkhorn"]["operations"]
            finding = t(
                f"At {LENGTH:,} tokens Sinkhorn needs {ratio:.2f} times fewer operations in the whole layer than the dot "
                f"product, with {counts['sinkhorn']['parameters'] - counts['local']['parameters']:,} parameters more "
                f"than local attention. SortCut has no causal form.",
                f"在 {LENGTH:,} 个词元时，整层的运算量，点积是 Sinkhorn 的 {ratio:.2f} 倍；Sinkhorn 只比局部注意力多 "
                f"{counts['sinkhorn']['parameters'] - counts['local']['parameters']:,} 个参数。SortCut 没有因果形式。",
            )
        return Shown(
            t("Counted on models that were built", "在实际构建的模型上计数"),
            t(
                f"What does one layer have and need? Width {WIDTH}, 4 heads, {LENGTH:,} tokens, blocks of 64. Operations "
                "are of the layer's forward pass; memory is the largest single tensor; the gap is between the fast form "
                "and the formulas.",
                f"一层里有什么、需要什么？宽度 {WIDTH}，4 个头，{LENGTH:,} 个词元，块长 64。运算量是该层前向计算的；"
                "内存列为最大的单个张量；误差是快速实现与公式逐步计算之差。",
            ),
            finding,
            header=[
                t("attention", "注意力"),
                t("parameters of the attention", "注意力参数量"),
                t("million operations", "百万次运算"),
                t("largest tensor, MiB", "最大张量（MiB）"),
                t("largest gap", "最大误差"),
                t("can be causal", "可否因果"),
                t("free of a maximal length", "不受最大长度限制"),
            ],
            rows=rows,
        )

    return show


def counts_of(family: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"counts": {name: counted(name) for name in COUNTED[family]}}


for family_name in MAPPED:
    exhibit(f"{family_name}-concept-figure", mapped(family_name))(show_maps(family_name))
    exhibit(f"{family_name}-concept-table", counts_of(family_name))(show_counts(family_name))
