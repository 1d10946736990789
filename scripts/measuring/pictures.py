"""Pictures of what a model attends to: sort matrices, synthesised attention."""

import base64
import html
import io
from typing import Any, NamedTuple, cast

import matplotlib
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...modeling.rows import Rows

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import PowerNorm  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# characters of a tick label, and labels beyond which an axis counts in numbers
LABEL_WIDTH = 16
MOST_LABELS = 40
# dots per inch, fewer where a side would have more pixels than most viewers open
DPI, MOST_PIXELS = 130, 30_000
SORT_CAPTION = (
    "Row i shows from which blocks the keys and values come that block i reads beside its own: the sort matrix S of "
    "the sorted block i, sum_j S_ij block j. Each row adds up to 1."
)
SORTCUT_CAPTION = (
    "Row i shows from which blocks the keys and values of the sorted block i come: the sort matrix S, sum_j S_ij block "
    "j. Each row adds up to 1. With SortCut every token reads the first {count} sorted blocks, and nothing else."
)
CAUSAL_CAPTION = " The model is causal: block i chooses among earlier blocks only, and block 0 has none."
ATTENTION_CAPTION = (
    "Row i shows how much of each token goes into the output at token i. Each row adds up to 1. Colours follow the "
    "square root of the weight, so that small weights differ."
)
MIXTURE_CAPTION = (
    " The mixture is what the model computes: its members' logits, weighted and added before the one softmax. Each "
    "member below it stands alone, the softmax of its own logits; in brackets its learned weight in the mixture."
)
REFERENCE = "no model: dot product, untrained"
REFERENCE_CAPTION = (
    " The model has no dot-product member. For comparison only, the rows named “no model” show what dot-product "
    "attention with identity projections would do with the same input to the layer: softmax(X Xᵀ / √dh), X cut into "
    "heads. No query or key in them is learned, and the model does not compute them."
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto; padding: 0 1rem }}
blockquote {{ margin: 1rem 0; padding: .5rem 1rem; background: #f4f4f4; white-space: pre-wrap }}
figure {{ margin: 2rem 0 }}
img {{ max-width: 100% }}
pre {{ white-space: pre-wrap; font-size: .8rem }}
figcaption, .note {{ color: #555; font-size: .9rem }}
</style>
<h1>{title}</h1>
<p>{caption}</p>
{note}<blockquote>{text}</blockquote>
{figures}
</html>
"""


class Row(NamedTuple):
    """One row of panels: the matrices (heads, n, n) of one layer, what they are, and a title for each head."""

    layer: int
    name: str
    matrices: torch.Tensor
    titles: list[str]


class Picture(NamedTuple):
    """
    A picture: the rows of all layers, the labels of the n rows and columns and what these are, a caption, and the
    exponent of the colour scale: 1 is linear, 0.5 tells small weights apart. `texts`: the whole text of each row, for
    pictures that are described in words too.
    """

    title: str
    rows: list[Row]
    labels: list[str]
    down: str
    across: str
    caption: str
    exponent: float
    texts: list[str] | None = None


def in_words(picture: Picture) -> list[str]:
    """Lines of text, one for each layer, head and block: its own words, and those of the block it reads most."""
    lines = []
    for row in picture.rows if picture.texts else []:
        for title, matrix in zip(row.titles, row.matrices, strict=True):
            lines.append(f"layer {row.layer}, {title}")
            for i, (weight, j) in enumerate(zip(*(x.tolist() for x in matrix.max(-1)), strict=True)):
                fetched = f"{j} {picture.texts[j]!r} ({weight:.2f})" if weight else "nothing"
                lines.append(f"  {i} {picture.texts[i]!r} <- {fetched}")
    return lines


def shortened(text: str) -> str:
    """`text` in one line, its middle left out where it is longer than a tick label."""
    text, half = " ".join(text.split()), (LABEL_WIDTH - 1) // 2
    text = text if len(text) <= LABEL_WIDTH else f"{text[:half].rstrip()}…{text[-half:].lstrip()}"
    # a dollar sign would start a formula
    return text.replace("$", r"\$")


def head_titles(count: int, m: int = 1) -> list[str]:
    """Of `count` matrices, m of each head."""
    return [f"head {i // m}" + (f", sorted block {i % m}" if m > 1 else "") for i in range(count)]


@torch.no_grad()
def sort_picture(model: PreTrainedModel, ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> Picture:
    """The sort matrices of a Sinkhorn model."""
    sort_matrices = model(ids, output_attentions=True).sort_matrices
    if not sort_matrices or sort_matrices[0] is None:
        raise ValueError(f"sort_net={model.config.sort_net!r} of the checkpoint sorts nothing that could be drawn")
    config = model.config
    texts = tokenizer.batch_decode(ids[0].split(config.block_size))
    caption = SORT_CAPTION if config.sortcut_blocks is None else SORTCUT_CAPTION.format(count=config.sortcut_blocks)
    return Picture(
        title="Sinkhorn sort matrices",
        rows=[
            Row(layer, "sort matrix", matrices[0], head_titles(matrices.shape[1], config.sorted_blocks))
            for layer, matrices in enumerate(sort_matrices)
        ],
        labels=[f"{i}: {shortened(block)}" for i, block in enumerate(texts)],
        down="block that reads",
        across="block that is read",
        caption=caption + (CAUSAL_CAPTION if config.is_causal else ""),
        exponent=1.0,
        texts=texts,
    )


def own_weights(logits: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """Logits (1, H, L, L) of one member by itself -> its attention (H, L, L)."""
    if is_causal:
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), float("-inf"))
    return logits.softmax(-1)[0]


@torch.no_grad()
def attention_picture(model: PreTrainedModel, ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> Picture:
    """The attention of a Synthesizer, and of each member of a mixture by itself, a dot product above all."""
    config = model.config
    seen: dict[nn.Module, Any] = {}
    attentions: list[Any] = [layer.attention for layer in cast(nn.ModuleList, model.layers)]
    for attention in attentions:
        attention.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
        for member in attention.members.values():
            member.register_forward_hook(lambda module, inputs, terms: seen.update({module: terms}))
    batch = Rows.whole((1, ids.shape[1]), ids.device)
    weights = model(ids, output_attentions=True).attentions
    rows = []
    for layer, attention in enumerate(attentions):
        titles = head_titles(config.num_attention_heads)
        name = "mixture" if len(attention.members) > 1 else config.synthesizers[0]
        rows.append(Row(layer, name, weights[layer][0], titles))
        if len(attention.members) > 1:
            # dot product first, right under the mixture that it is compared with
            order = sorted(config.synthesizers, key=lambda name: name != "dot_product")
            for name in order:
                terms = seen[attention.members[name]].padded(batch)
                member = own_weights(terms.written(batch.longest), config.is_causal)
                alphas = [""] * len(titles)
                if attention.mixture is not None:
                    alpha = attention.mixture.softmax(-1)[:, config.synthesizers.index(name)]
                    alphas = [f" ({x:.2f})" for x in alpha.tolist()]
                rows.append(Row(layer, name, member, [a + b for a, b in zip(titles, alphas, strict=True)]))
        elif name != "dot_product":
            split = seen[attention].unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)  # (1, H, L, dh)
            logits = split @ split.transpose(-1, -2) * config.head_dim**-0.5
            rows.append(Row(layer, REFERENCE, own_weights(logits, config.is_causal), titles))
    mixture, dot_product = len(config.synthesizers) > 1, "dot_product" in config.synthesizers
    return Picture(
        title=f"Synthesizer attention: {' + '.join(config.synthesizers)}",
        rows=rows,
        labels=[shortened(token) or "␣" for token in tokenizer.batch_decode(ids[0].split(1))],
        down="token that reads",
        across="token that is read",
        caption=ATTENTION_CAPTION
        + (MIXTURE_CAPTION if mixture else "")
        + ("" if mixture or dot_product else REFERENCE_CAPTION),
        exponent=0.5,
    )


def chosen_layers(picture: Picture, layers: list[int] | None) -> Picture:
    """The picture of some layers only; of all for `None`."""
    existing = sorted({row.layer for row in picture.rows})
    if layers is None:
        return picture
    if not set(layers) <= set(existing):
        raise ValueError(f"--layers {layers} must lie in 0 to {existing[-1]}, the layers of the checkpoint")
    return picture._replace(rows=[row for row in picture.rows if row.layer in layers])


def draw(rows: list[Row], picture: Picture, title: str) -> Figure:
    """Panels of rows by heads, with a colour scale a row; labels at the left and at the bottom only."""
    count = len(picture.labels)
    labelled = count <= MOST_LABELS
    side = max(2.2, 0.15 * count) if labelled else 3.2
    heads = len(rows[0].matrices)
    figure, axes = plt.subplots(
        len(rows),
        heads,
        figsize=(side * heads + 2.6, (side + 0.45) * len(rows) + 2.2),
        squeeze=False,
        layout="constrained",
    )
    for row, panels in zip(rows, axes, strict=True):
        scale = PowerNorm(picture.exponent, vmin=0.0, vmax=row.matrices.max().item())
        for axis, matrix, head in zip(panels, row.matrices, row.titles, strict=True):
            image = axis.imshow(matrix.float().numpy(), norm=scale, cmap="Blues", interpolation="nearest")
            axis.set_title(head, fontsize=9)
            if labelled:
                axis.set(xticks=[], yticks=[])
            axis.tick_params(labelsize=7, length=2)
        if labelled:
            panels[0].set_yticks(range(count), picture.labels)
        panels[0].set_ylabel(f"layer {row.layer}: {row.name}\n{picture.down}", fontsize=9)
        bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("weight", fontsize=8)
    for axis in axes[-1]:
        if labelled:
            axis.set_xticks(range(count), picture.labels, rotation=90)
        axis.set_xlabel(picture.across, fontsize=9)
    figure.suptitle(title, fontsize=12)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG, closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=min(DPI, MOST_PIXELS / max(figure.get_size_inches())))
    plt.close(figure)
    return buffer.getvalue()


def page(picture: Picture, text: str, note: str) -> str:
    """One self-contained HTML page, with a picture for each layer."""
    figures = []
    for layer in sorted({row.layer for row in picture.rows}):
        rows = [row for row in picture.rows if row.layer == layer]
        title = f"Layer {layer}: {', '.join(row.name for row in rows)}"
        encoded = base64.b64encode(png(draw(rows, picture, ""))).decode()
        figures.append(
            f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
        )
    words = in_words(picture)
    if words:
        figures.append("<pre>" + html.escape("\n".join(words)) + "</pre>")
    return PAGE.format(
        title=html.escape(picture.title),
        caption=html.escape(picture.caption),
        note=f'<p class="note">{html.escape(note)}</p>\n' if note else "",
        text=html.escape(text),
        figures="\n".join(figures),
    )
