"""Topic 3, the architecture: the modules with their shapes from a forward pass, and the innovations with their tests."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import plotly.graph_objects as go
import torch
from torch import nn

from synkhorn import FAMILIES

from ..exhibit import ROOT, Shown, Text, exhibit
from ..plots import laid_out
from .concept import one_layer

DRAWN = {"synthesizer": "dense+dot_product", "sinkhorn": "sinkhorn"}
LENGTH, WIDTH = 128, 64
# what is new: the paper's equation, the configuration's field, and a test that proves the code
INNOVATIONS: dict[str, tuple[tuple[tuple[str, str], str, str, str], ...]] = {
    "synthesizer": (
        (
            ("dense", "dense（稠密合成）"),
            r"$S=\mathrm{relu}(XW_1+b_1)W_2+b_2$",
            "synthesizers",
            "a_query_row_depends_on_its_own_token_only",
        ),
        (("random", "random（随机合成）"), r"$S=R$", "synthesizers", "the_random_matrix_is_learned"),
        (
            ("factorized random", "分解的 random"),
            r"$S=R_1R_2^\top$",
            "rank",
            "factorized_random_differs_from_row_to_row",
        ),
        (
            ("factorized dense", "分解的 dense"),
            r"$S_{i,pb+q}=A_{ip}B_{iq}$",
            "factors",
            "factorized_dense_covers_every_pair_of_factors",
        ),
        (
            ("mixture", "混合"),
            r"$S=\sum_i\alpha_iS_i$",
            "mixture_weighting",
            "a_mixture_has_the_sum_and_a_weight_for_each_head_and_member",
        ),
    ),
    "sinkhorn": (
        (
            ("pooled blocks", "块池化"),
            r"$x'_i=\sum_{t\in i}X_t$",
            "block_pooling",
            "the_spread_of_normed_logits_depends_on_no_size",
        ),
        (("sort net", "排序网络"), r"$R=F(x')$", "sort_net", "a_sorted_block_is_one_choice_of_blocks"),
        (
            ("balancing", "双随机归一化"),
            r"$S=\mathrm{sinkhorn}((R+\epsilon)/\tau)$",
            "sinkhorn_iterations",
            "balancing_is_doubly_stochastic_on_the_valid_blocks",
        ),
        (
            ("sorted and own block", "排序块与自身块"),
            r"$Y_i=\mathrm{softmax}(Q_i[\tilde K_i;K_i]^\top)[\tilde V_i;V_i]$",
            "combine",
            "sorted_values_are_values",
        ),
        (
            ("SortCut", "SortCut"),
            r"$Y=\mathrm{softmax}(Q\tilde K_{<c}^\top)\tilde V_{<c}$",
            "sortcut_blocks",
            "eager_and_sdpa_equal_the_loop",
        ),
        (
            ("causal sort", "因果排序"),
            r"$S_{ij}=0\ (j\ge i)$",
            "causal_balancing",
            "causal_balancing_chooses_from_the_past_and_leaks_nothing",
        ),
    ),
}


def shape_of(outputs: Any) -> str:
    """The shapes of the tensors that a module returns."""
    if isinstance(outputs, torch.Tensor):
        return "×".join(map(str, outputs.shape))
    parts = outputs.values() if hasattr(outputs, "values") else outputs if isinstance(outputs, tuple) else ()
    return ", ".join(filter(None, map(shape_of, parts)))


def tree(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        model = one_layer(DRAWN[family], LENGTH, width=WIDTH, **({"block_size": 16} if family == "sinkhorn" else {}))
        shapes: dict[str, str] = {}
        names = {module: name for name, module in model.named_modules()}
        for module in model.modules():
            module.register_forward_hook(lambda m, inputs, outputs: shapes.update({names[m]: shape_of(outputs)}))
        with torch.no_grad():
            model(torch.randint(64, (1, LENGTH)))
        nodes = []
        for name, module in model.named_modules():
            own = sum(p.numel() for p in module.parameters())
            if name in shapes and not isinstance(module, nn.Dropout):
                nodes.append({"name": name, "class": type(module).__name__, "shape": shapes[name], "parameters": own})
        return {"nodes": nodes, "parameters": sum(p.numel() for p in model.parameters())}

    return compute


def parent_of(name: str, known: set[str]) -> str | None:
    """The closest module around it that is drawn."""
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return None


def show_tree(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        nodes = data["nodes"]
        known = {node["name"] for node in nodes}
        parents = [parent_of(node["name"], known) for node in nodes]
        text = [f"{node['name'].rpartition('.')[2] or 'model'}<br>{node['shape']}" for node in nodes]
        parameters = t("parameters", "参数")
        figure = go.Figure(
            go.Icicle(
                ids=[node["name"] or "model" for node in nodes],
                labels=text,
                parents=["" if p is None else p or "model" for p in parents],
                customdata=[[node["class"], f"{node['parameters']:,}", node["shape"]] for node in nodes],
                hovertemplate="%{id}<br>%{customdata[0]}<br>%{customdata[2]}<br>%{customdata[1]} "
                + parameters
                + "<extra></extra>",
                tiling={"orientation": "h"},
            )
        )
        laid_out(figure, height=40 * len(nodes), uniformtext={"minsize": 8, "mode": "show"})
        inside = sum(n["parameters"] for n in nodes if n["name"].endswith(".attention"))
        own = {"synthesizer": "members", "sinkhorn": "sort"}[family]
        special = sum(n["parameters"] for n in nodes if n["name"].endswith(f".{own}.net"))
        special += sum(n["parameters"] for n in nodes if ".members." in n["name"] and n["name"].count(".") == 4)
        return Shown(
            t("The modules of one layer, with the shapes that passed through them", "一层中的模块及实际经过的张量形状"),
            t(
                f"Where in an encoder does the new attention sit? Drawn from a forward pass of one text of {LENGTH} "
                f"tokens, width {WIDTH}.",
                f"新的注意力位于编码器的什么位置？由一次前向计算画出：一段 {LENGTH} 个词元的文本，宽度 {WIDTH}。",
            ),
            t(
                f"Only the attention differs from a Transformer: {inside:,} of {data['parameters']:,} parameters, of "
                f"which {special:,} are in `{own}`. Embeddings, feed-forward, norms and heads are shared by both families.",
                f"与 Transformer 不同的只有注意力：{data['parameters']:,} 个参数中的 {inside:,} 个，其中 `{own}` 占 "
                f"{special:,} 个。嵌入、前馈、归一化和任务头由两个家族共用。",
            ),
            figure,
        )

    return show


def file_of(test: str) -> str:
    """The file that defines a test of the package, as `file::test`."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if f"def test_{test}(" in path.read_text(encoding="utf-8"):
            return f"{path.name}::test_{test}"
    raise ValueError(f"no file of tests/ defines test_{test}")


def innovations(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        own = {field.name for field in fields(FAMILIES[family].config_class)}
        rows = []
        for titles, equation, field, test in INNOVATIONS[family]:
            if field not in own:
                raise ValueError(f"{field!r} is no field of the configuration of {family}")
            rows.append({"title": titles, "equation": equation, "field": field, "test": file_of(test)})
        return {"rows": rows, "default": {f: str(getattr(FAMILIES[family].config_class(), f)) for f in own}}

    return compute


def show_innovations(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows = [
            [t(*row["title"]), row["equation"], f"`{row['field']}={data['default'][row['field']]}`", f"`{row['test']}`"]
            for row in data["rows"]
        ]
        return Shown(
            t("What is new, and what proves it", "创新点及其证明"),
            t(
                "Which equation, which field of the configuration (with its default) and which test belong together?",
                "每个创新点对应哪个公式、哪个配置字段（附默认值）、哪个测试？",
            ),
            t(
                f"Each of the {len(rows)} parts has a field and a test of its own; the "
                "names of the tests are read from the repository when this page is built.",
                f"{len(rows)} 个部分各有一个配置字段和一个测试；测试名在构建本页时从仓库中读取。",
            ),
            header=[t("part", "部分"), t("equation", "公式"), t("field", "字段"), t("test", "测试")],
            rows=rows,
        )

    return show


for family_name in DRAWN:
    exhibit(f"{family_name}-architecture-figure", tree(family_name))(show_tree(family_name))
    exhibit(f"{family_name}-architecture-table", innovations(family_name))(show_innovations(family_name))
