"""Configuration of the Sinkhorn family."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_backbone import BackboneConfig, check_at_least, check_at_most, check_choice

SORT_NETS = ("linear", "mlp", "bilinear", "pooled", "none")
BLOCK_POOLINGS = ("normed_sum", "sum", "mean", "first")
COMBINES = ("concat", "sum", "logits")
CAUSAL_BALANCINGS = ("softmax", "sinkhorn")
# below it no gradient is left in float32, and far below it the logits overflow
MIN_TEMPERATURE = 1e-6


@strict
class SinkhornConfig(BackboneConfig):
    r"""
    Configuration of Sparse Sinkhorn Attention (Tay et al., arXiv 2002.11296), encoder or causal language model. The
    fields of [`BackboneConfig`] and these:

    Args:
        block_size: tokens b in a block, 1 to `max_position_embeddings`; blocks count from a row's first valid token,
            and the last may be shorter.
        sort_net: what gives the logits of the sort from the pooled blocks: `linear`, `mlp` (two layers, relu),
            `bilinear` (query and key of each block, free of the maximal length), `pooled` (not the paper's: without
            parameters, the mean of the attention's own queries in a block times the mean of the keys in another, in
            causal models the block's first query; `block_pooling` has no effect), or `none`: no sort, so that attention
            stays within the own block.
        block_pooling: how a block becomes one vector: `normed_sum`, the sum of its valid tokens scaled to one norm, so
            that the logits of the sort spread alike at every block size and length; `sum` (the paper's), whose logits
            grow with the block and in causal models with the length; `mean`, or the `first` of the tokens. A causal
            model pools everything up to the block's first token, or takes that token.
        sort_top_k: how many blocks each row of the sort matrix keeps, those of its largest entries, normalised again;
            they are gathered, so that the sort costs O(L k d). `None` for all (the paper's). 1 moves whole blocks, and
            leaves no gradient to the sort net. May be changed on a trained model. Not the paper's.
        sort_hard: straight-through: `sort_top_k` blocks, 1 where it is `None`, with the gradient of the whole soft
            matrix. Not the paper's.
        sorted_blocks: how many sorted blocks m a block attends to beside its own, each by a sort matrix of its own, and
            not to their mixture. 1 is the paper's.
        sinkhorn_iterations: column and row normalisations of the sort matrix, up to 10,000, and at least 1 where it is
            balanced.
        sinkhorn_temperature: temperature tau of the sort, at least 1e-6. Smaller brings each row closer to one choice,
            and needs more iterations: with few, several rows choose the same column, and no permutation results.
            `sort_residuals` in the outputs show how far the columns are from 1.
        gumbel_noise: add Gumbel noise to the logits of the sort, in training only.
        combine: how the sorted and the own block are attended to: `concat`, one softmax over both; `sum`, a softmax
            over each, added; `logits`, the two logits of a slot added, one softmax, sorted values.
        mix_dot_product: add full dot-product attention.
        sortcut_blocks: SortCut: every query attends to that many sorted blocks, the first ones, and to nothing else;
            `None` for the sorted and the own block. Bidirectional models only.
        causal_balancing: how a causal model normalises its sort matrix: `softmax`, the rows only; `sinkhorn`, rows and
            what of the columns is past, which tends to the previous block whatever the sort net says.
        share_sort_net: one sort matrix for all heads of a layer.

    Example:

    ```python
    >>> from synkhorn import SinkhornConfig, SinkhornForMaskedLM
    >>> model = SinkhornForMaskedLM(SinkhornConfig(block_size=32, sort_net="bilinear"))
    ```
    """

    model_type: ClassVar[str] = "sinkhorn"

    block_size: int = 64
    sort_net: str = "linear"
    block_pooling: str = "normed_sum"
    sort_top_k: int | None = None
    sort_hard: bool = False
    sorted_blocks: int = 1
    sinkhorn_iterations: int = 7
    sinkhorn_temperature: float | int = 0.75
    gumbel_noise: bool = True
    combine: str = "concat"
    mix_dot_product: bool = False
    sortcut_blocks: int | None = None
    causal_balancing: str = "softmax"
    share_sort_net: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks of the longest sequence, ceil(N / b)."""
        return math.ceil(self.max_position_embeddings / self.block_size)

    @property
    def num_chosen(self) -> int | None:
        """How many blocks a row of the sort keeps; `None` for all."""
        return 1 if self.sort_hard and self.sort_top_k is None else self.sort_top_k

    @property
    def is_balanced(self) -> bool:
        """Whether the columns of the sort matrix are normalised too."""
        return self.sort_net != "none" and not (self.is_causal and self.causal_balancing == "softmax")

    def check_field(self, field: str, value: Any) -> None:
        super().check_field(field, value)
        if field in ("block_size", "sortcut_blocks", "sort_top_k", "sorted_blocks") and value is not None:
            check_at_least(field, value, 1)
        elif field == "sort_net":
            check_choice(field, value, SORT_NETS)
        elif field == "block_pooling":
            check_choice(field, value, BLOCK_POOLINGS)
        elif field == "combine":
            check_choice(field, value, COMBINES)
        elif field == "causal_balancing":
            check_choice(field, value, CAUSAL_BALANCINGS)
        elif field == "sinkhorn_iterations":
            check_at_least(field, value, 0)
            check_at_most(field, value, 10_000)
        elif field == "sinkhorn_temperature":
            check_at_least(field, value, MIN_TEMPERATURE)
            if value == math.inf:
                raise ValueError(f"sinkhorn_temperature={value!r} must be finite")

    def validate_architecture(self):
        super().validate_architecture()
        if self.block_size > self.max_position_embeddings:
            raise ValueError(
                f"block_size={self.block_size} is more than max_position_embeddings={self.max_position_embeddings}"
            )
        if self.is_balanced:
            check_at_least("sinkhorn_iterations", self.sinkhorn_iterations, 1)
        if self.sortcut_blocks is not None:
            self._validate_sortcut()
        if self.sort_net == "none" and (self.num_chosen is not None or self.sorted_blocks > 1):
            raise ValueError(
                f"sort_top_k={self.sort_top_k}, sort_hard={self.sort_hard}, sorted_blocks={self.sorted_blocks} with "
                "sort_net='none' choose among nothing: leave them out"
            )
        if self.sorted_blocks > 1:
            self._validate_sorted_blocks()

    def _validate_sorted_blocks(self):
        several = f"sorted_blocks={self.sorted_blocks}"
        if self.sort_net == "pooled":
            raise ValueError(
                f"{several} with sort_net='pooled' brings the same block more than once: choose another net"
            )
        if self.combine == "logits":
            raise ValueError(f"{several} with combine='logits' has no one slot to add a logit to: choose concat or sum")
        if self.sortcut_blocks is not None:
            raise ValueError(f"{several} with sortcut_blocks={self.sortcut_blocks}, which counts them: leave one out")

    def _validate_sortcut(self):
        if self.sortcut_blocks > self.num_blocks:
            raise ValueError(
                f"sortcut_blocks={self.sortcut_blocks} is more than the {self.num_blocks} blocks of "
                f"block_size={self.block_size} in max_position_embeddings={self.max_position_embeddings}"
            )
        if self.is_causal:
            raise ValueError(
                f"sortcut_blocks={self.sortcut_blocks} with is_causal=True lets a token see later ones: "
                "leave sortcut_blocks out"
            )
        if self.sort_net == "none":
            raise ValueError(f"sortcut_blocks={self.sortcut_blocks} with sort_net='none' has no sorted block to see")
        if self.combine != "concat":
            raise ValueError(
                f"combine={self.combine!r} with sortcut_blocks={self.sortcut_blocks} has no own block to combine: "
                "leave combine at concat"
            )
