"""What the two outlines of lectures say, beside what was measured."""

from typing import Any

from ..exhibit import EXHIBITS, Shown, Text, exhibit
from ..plots import mean
from .innovations import row_entropy
from .principle import growth


def claims() -> dict[str, Any]:
    """The numbers of other exhibits that the claims are held against."""
    synthetic = EXHIBITS["synthesizer-principle-table"].data()["rows"]
    blocks = EXHIBITS["sinkhorn-principle-table"].data()["rows"]
    steps = EXHIBITS["sinkhorn-principle-figure"].data()["steps"]
    moves = EXHIBITS["synthesizer-principle-figure"].data()["moves"]["dense"]
    document = EXHIBITS["sinkhorn-innovation-2-figure"].data()
    return {
        "dense": growth(synthetic["dense"], "operations"),
        "dot_product": growth(synthetic["dot_product"], "operations"),
        "sinkhorn": growth(blocks["sinkhorn"], "operations"),
        "residuals": {key: rows[7]["residuals"][1] for key, rows in steps.items()},
        "moved": sum(x > 1e-6 for row in moves for x in row),
        "entropy": mean([row_entropy(m) for layer in document["sort"] for m in layer]),
        "column": max(max(layer) for layer in document["residuals"]),
        "right": EXHIBITS["synthesizer-applications-figure"].data()["right"]["mixture"],
        "count": EXHIBITS["synthesizer-applications-figure"].data()["count"],
    }


def show_claims(data: dict[str, Any], t: Text) -> Shown:
    warm, cold = data["residuals"]["0.75"], data["residuals"]["0.1"]
    short, long = (data["right"][i] / data["count"][i] for i in (0, -1))
    rows = [
        [
            t(
                "Synthesised weights lower the cost of long sequences markedly.",
                "合成权重显著降低长序列的计算和内存开销。",
            ),
            t(
                f"When the length doubles, dense needs {data['dense']:.2f} times the operations, the dot product "
                f"{data['dot_product']:.2f} times: both O(L²).",
                f"长度翻倍时，dense 的运算量为 {data['dense']:.2f} 倍，点积为 {data['dot_product']:.2f} 倍：都是 O(L²)。",
            ),
        ],
        [
            t("Weights are generated instead of computed from the input.", "权重是生成的，而不是从输入中计算的。"),
            t(
                f"Half true: replacing one token moves {data['moved']} logits of dense, its own row. Only random ignores the "
                "input.",
                f"只对一半：换掉一个词元，dense 有 {data['moved']} 个 logit 改变，即它自己的那一行。只有 random 不看输入。",
            ),
        ],
        [
            t("Attention becomes a sparse sorting problem.", "注意力计算转化为一个稀疏排序问题。"),
            t(
                f"The sort is soft: rows of a trained model hold {data['entropy']:.2f} bits on average, and effective "
                "weights are not sparse. What is small is the number of keys of a query.",
                f"排序是软的：训练后每行平均有 {data['entropy']:.2f} 比特的熵，有效权重并不稀疏；少的是每个查询的键数。",
            ),
        ],
        [
            t("The attention solves an optimal-transport problem.", "通过解决最优传输问题来计算注意力。"),
            t(
                f"Seven iterations approach it: columns are off by up to {warm:.4f} (τ = 0.75) and {cold:.2f} (τ = 0.1) for "
                f"random logits, {data['column']:.2f} in a trained model.",
                f"7 次迭代只是逼近：随机 logit 的列和偏差最大 {warm:.4f}（τ = 0.75）、{cold:.2f}（τ = 0.1），训练后的模型为 "
                f"{data['column']:.2f}。",
            ),
        ],
        [
            t("Long sequences are handled efficiently.", "能够有效处理长序列。"),
            t(
                f"True of Sinkhorn: {data['sinkhorn']:.2f} times the operations when the length doubles. Not of plain "
                "Synthesizers.",
                f"对 Sinkhorn 成立：长度翻倍时运算量为 {data['sinkhorn']:.2f} 倍；对普通 Synthesizer 不成立。",
            ),
        ],
        [
            t("Accuracy on long documents rises.", "提高长文档的分类准确率。"),
            t(
                f"Not seen: {short:.0%} on the shortest, {long:.0%} on the longest reviews.",
                f"没有看到：最短的影评 {short:.0%}，最长的 {long:.0%}。",
            ),
        ],
        [
            t("Reference for Synthesizer: arXiv 2009.06732.", "Synthesizer 的参考文献：arXiv 2009.06732。"),
            t(
                "That is a survey of efficient Transformers. The paper is [2005.00743](https://arxiv.org/abs/2005.00743): "
                "Yi Tay, Dara Bahri, Donald Metzler, Da-Cheng Juan, Zhe Zhao, Che Zheng.",
                "那是一篇高效 Transformer 综述。论文是 [2005.00743](https://arxiv.org/abs/2005.00743)：Yi Tay、Dara Bahri、Donald "
                "Metzler、Da-Cheng Juan、Zhe Zhao、Che Zheng。",
            ),
        ],
        [
            t(
                "Reference for Sparse Sinkhorn Attention: arXiv 2005.00743.",
                "稀疏 Sinkhorn 注意力的参考文献：arXiv 2005.00743。",
            ),
            t(
                "That is the Synthesizer paper. This one is [2002.11296](https://arxiv.org/abs/2002.11296): Yi Tay, Dara "
                "Bahri, Liu Yang, Donald Metzler, Da-Cheng Juan.",
                "那是 Synthesizer 的论文。这一篇是 [2002.11296](https://arxiv.org/abs/2002.11296)：Yi Tay、Dara Bahri、Liu Yang、Donald "
                "Metzler、Da-Cheng Juan。",
            ),
        ],
    ]
    return Shown(
        t("What the outlines say, and what was measured", "大纲的说法与测量结果"),
        t("Which statements hold?", "哪些说法站得住？"),
        t(
            "One holds, one holds by half; the others do not. Each number is taken from a figure or table of this course.",
            "一条成立，一条成立一半，其余不成立。每个数字都取自本课程的图表。",
        ),
        header=[t("outline", "大纲"), t("measured", "测量")],
        rows=rows,
    )


exhibit("outlines-extra-claims", claims)(show_claims)
