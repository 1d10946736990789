"""Topic 11, the future: relatives and descendants, and two of their ideas measured."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from ..exhibit import Shown, Text, exhibit
from ..plots import COLOURS, laid_out, mean
from ..studies.record import load
from .innovations import TASK_NAMES, scores, spread

# arXiv number (which holds the month), name, and what it shares with the families
RELATIVES = (
    ("1802.08665", "Gumbel-Sinkhorn", "sinkhorn", ("learned permutations", "可学习的置换")),
    ("1904.10509", "Sparse Transformer", "sinkhorn", ("fixed sparse patterns", "固定的稀疏模式")),
    ("2001.04451", "Reformer", "sinkhorn", ("blocks by hashing", "用哈希分块")),
    ("2002.11296", "Sparse Sinkhorn Attention", "sinkhorn", ("this course", "本课程")),
    ("2003.05997", "Routing Transformer", "sinkhorn", ("blocks by clustering", "用聚类分块")),
    ("2005.00743", "Synthesizer", "synthesizer", ("this course", "本课程")),
    ("2105.01601", "MLP-Mixer", "synthesizer", ("one learned matrix over positions", "位置上一个学到的矩阵")),
    ("2105.03824", "FNet", "synthesizer", ("one fixed matrix over positions", "位置上一个固定的矩阵")),
    ("2105.08050", "gMLP", "synthesizer", ("a learned matrix as a gate", "学到的矩阵用作门控")),
    ("2409.01482", "Masked mixers", "synthesizer", ("causal learned matrices", "因果的可学习矩阵")),
    ("2502.11089", "NSA", "sinkhorn", ("chosen blocks, trained natively", "原生训练的块选择")),
    ("2502.13189", "MoBA", "sinkhorn", ("blocks chosen by pooled keys", "按池化键选块")),
    ("2506.01115", "MixiT and Frozen-QK", "synthesizer", ("random attention, untrained", "不训练的随机注意力")),
    ("2509.23436", "LOTFormer", "sinkhorn", ("attention as optimal transport", "以最优传输作注意力")),
    ("2512.24880", "mHC", "sinkhorn", ("balanced matrices between streams", "残差流间的双随机矩阵")),
)
CHANGED = {"synthesizer": "frozen queries and keys", "sinkhorn": "block most alike"}
BESIDE = {"synthesizer": ("dot_product", "random", "fixed_random"), "sinkhorn": ("sinkhorn", "local")}


def relatives(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        rows = [
            {"number": number, "name": name, "year": 2000 + int(number[:2]) + (int(number[2:4]) - 1) / 12, "what": what}
            for number, name, kin, what in RELATIVES
            if kin == family
        ]
        return {"rows": rows}

    return compute


def show_relatives(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows = data["rows"]
        links = [f'<a href="https://arxiv.org/abs/{r["number"]}">{r["name"]}</a>' for r in rows]
        figure = go.Figure(
            go.Scatter(
                x=[row["year"] for row in rows],
                y=list(range(len(rows))),
                mode="markers+text",
                text=[f"{link}<br>{t(*row['what'])}" for link, row in zip(links, rows, strict=True)],
                textposition=["middle right" if row["year"] < 2022.5 else "middle left" for row in rows],
                marker={"size": 11, "color": [COLOURS[1] if "this" in r["what"][0] else COLOURS[0] for r in rows]},
                hoverinfo="skip",
            )
        )
        figure.update_yaxes(visible=False, range=[-0.7, len(rows) - 0.3])
        figure.update_xaxes(range=[2017.5, 2026.9], dtick=1)
        laid_out(figure, height=60 + 62 * len(rows))
        before = [row for row in rows if row["year"] < 2022]
        return Shown(
            t("Relatives and descendants", "近亲与后代"),
            t(
                "Which work shares the idea, before and after? Dates are those of the arXiv numbers; names are links.",
                "前后有哪些工作与之同源？日期取自 arXiv 编号，名称为链接。",
            ),
            t(
                f"Of {len(rows)} works, {len(before)} are from before 2022 and {len(rows) - len(before)} from after: the "
                + (
                    "idea that a matrix over positions may be learned, or even fixed, lives on in mixers."
                    if family == "synthesizer"
                    else "idea of choosing blocks lives on in the sparse attention of language models, and balancing in other "
                    "places than attention."
                ),
                f"共 {len(rows)} 项工作，{len(before)} 项早于 2022 年，{len(rows) - len(before)} 项在其后："
                + (
                    "“位置矩阵可以学，甚至可以固定”的想法延续到了各种 mixer。"
                    if family == "synthesizer"
                    else "“选块”的想法延续到了大语言模型的稀疏注意力，双随机归一化则用到了注意力之外。"
                ),
            ),
            figure,
        )

    return show


def measured_relatives(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        data, record = scores(BESIDE[family], ("copy", "sort")), load("relatives")
        name = CHANGED[family]
        data["accuracy"][name] = {
            task: [record["runs"][f"{name}/{task}/{seed}"]["accuracy"] for seed in range(3)]
            for task in ("copy", "sort")
        }
        data["about"] = record["about"]
        return data

    return compute


def show_measured_relatives(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        own = data["accuracy"]
        titles = {
            "frozen queries and keys": t(
                "dot product, queries and keys frozen (Frozen-QK)", "点积，查询与键冻结（Frozen-QK）"
            ),
            "block most alike": t(
                "the block most alike, nothing learned (as MoBA chooses)", "取最相似的块，不学习（类似 MoBA 的选法）"
            ),
        }
        rows = [
            [titles.get(name, f"`{name}`"), *(spread(values[task]) for task in ("copy", "sort"))]
            for name, values in own.items()
        ]
        copy = {name: mean(values["copy"]) for name, values in own.items()}
        new = copy[CHANGED[family]]
        if family == "synthesizer":
            finding = t(
                f"In copying, trained R reaches {copy['random']:.2f} and fixed R {copy['fixed_random']:.2f}; a dot product "
                f"whose queries and keys stay as drawn reaches {new:.2f}, a trained one {copy['dot_product']:.2f}.",
                f"复制任务上，训练过的 R 为 {copy['random']:.2f}，固定的 R 为 {copy['fixed_random']:.2f}；查询与键保持初值的点积为 "
                f"{new:.2f}，训练过的为 {copy['dot_product']:.2f}。",
            )
        else:
            finding = t(
                f"A learned sort copies {copy['sinkhorn']:.2f} of the tokens; fetching the block whose pooled vector is "
                f"most alike, without learning, {new:.2f}; local attention {copy['local']:.2f}. Likeness does not tell how "
                "far back to look: here the choice has to be learned.",
                f"学到的排序能复制 {copy['sinkhorn']:.2f} 的词元；不学习、直接取池化向量最相似的块为 {new:.2f}；局部注意力为 "
                f"{copy['local']:.2f}。相似度并不告诉模型该往回看多远：这里的选择必须学。",
            )
        return Shown(
            t("Two later ideas, measured", "两个后来的想法，实测"),
            t(
                "Must the attention be learned? Copying and sorting, three seeds.",
                "注意力非学不可吗？复制与排序，三个种子。",
            ),
            finding,
            header=[t("attention", "注意力"), *(t(*TASK_NAMES[task]) for task in ("copy", "sort"))],
            rows=rows,
        )

    return show


for family_name in BESIDE:
    exhibit(f"{family_name}-future-figure", relatives(family_name))(show_relatives(family_name))
    exhibit(f"{family_name}-future-table", measured_relatives(family_name))(show_measured_relatives(family_name))
