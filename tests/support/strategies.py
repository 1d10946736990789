"""What hypothesis draws: configurations of both families, batches of rows that are padded in every way, and weights."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from variants import SYNTHESIZERS

from synkhorn import SinkhornConfig, SynthesizerConfig
from synkhorn.configuration.configuration_backbone import POSITION_EMBEDDING_TYPES, BackboneConfig
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS, CAUSAL_BALANCINGS, COMBINES, SORT_NETS
from synkhorn.configuration.configuration_synthesizer import MIXTURE_WEIGHTINGS

VOCABULARY = 23
seeds = st.integers(0, 2**16)
implementations = st.sampled_from(["eager", "sdpa"])


@st.composite
def backbone_fields(draw, positions: tuple[str, ...], is_causal: bool | None, longest: int) -> dict:
    position = draw(st.sampled_from(positions))
    head_dim = draw(st.sampled_from([2, 4] if position == "rope" else [1, 2, 3, 5]))
    heads = draw(st.integers(1, 3))
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 2)),
        "intermediate_size": draw(st.integers(1, 7)),
        "norm_first": draw(st.booleans()),
        "embedding_norm": draw(st.booleans()),
        "position_embedding_type": position,
        "type_vocab_size": draw(st.sampled_from([0, 2])),
        "max_position_embeddings": draw(st.integers(1, longest)),
        "is_causal": draw(st.booleans()) if is_causal is None else is_causal,
        "hidden_dropout": 0.0,
        # a norm of one or two numbers would else magnify their rounding
        "layer_norm_eps": 0.1,
    }


@st.composite
def synthesizer_configs(draw, is_causal: bool | None = None, longest: int = 12) -> SynthesizerConfig:
    members = draw(st.lists(st.sampled_from(SYNTHESIZERS), min_size=1, max_size=4, unique=True))
    positions = POSITION_EMBEDDING_TYPES if "dot_product" in members else ("learned", "sinusoidal", "none")
    fields = draw(backbone_fields(positions, is_causal, longest))
    factors = None
    if "factorized_dense" in members and draw(st.booleans()):
        slow = draw(st.integers(1, 5))
        factors = [slow, -(-fields["max_position_embeddings"] // slow) + draw(st.integers(0, 2))]
    return SynthesizerConfig(
        synthesizers=members,
        mixture_weighting=draw(st.sampled_from(MIXTURE_WEIGHTINGS)),
        rank=draw(st.integers(1, 4)),
        factors=factors,
        synthesizer_hidden_size=draw(st.none() | st.integers(1, 4)),
        **fields,
    )


@st.composite
def sinkhorn_configs(draw, is_causal: bool | None = None, longest: int = 12) -> SinkhornConfig:
    fields = draw(backbone_fields(POSITION_EMBEDDING_TYPES, is_causal, longest))
    length = fields["max_position_embeddings"]
    block_size = draw(st.integers(1, min(length, 11)))
    fields |= {
        "block_size": block_size,
        "sort_net": draw(st.sampled_from(SORT_NETS)),
        "block_pooling": draw(st.sampled_from(BLOCK_POOLINGS)),
        "sinkhorn_iterations": draw(st.integers(1, 8)),
        "sinkhorn_temperature": draw(st.sampled_from([0.3, 0.75, 2])),
        "mix_dot_product": draw(st.booleans()),
        "share_sort_net": draw(st.booleans()),
        "causal_balancing": draw(st.sampled_from(CAUSAL_BALANCINGS)),
    }
    if fields["sort_net"] != "none":
        fields |= {"sort_top_k": draw(st.none() | st.integers(1, 4)), "sort_hard": draw(st.booleans())}
        if not fields["is_causal"] and draw(st.booleans()):
            return SinkhornConfig(sortcut_blocks=draw(st.integers(1, -(-length // block_size))), **fields)
    fields["combine"] = draw(st.sampled_from(COMBINES))
    if fields["sort_net"] not in ("none", "pooled") and fields["combine"] != "logits":
        fields["sorted_blocks"] = draw(st.integers(1, 3))
    return SinkhornConfig(**fields)


def configs(is_causal: bool | None = None, longest: int = 12) -> st.SearchStrategy[BackboneConfig]:
    """Of either family."""
    return synthesizer_configs(is_causal, longest) | sinkhorn_configs(is_causal, longest)


class Row(NamedTuple):
    """
    One text of a batch.

    left: padding before it.
    valid: of its tokens, the first of which is, true but at holes.
    """

    left: int
    valid: list[bool]

    def __len__(self) -> int:
        return self.left + len(self.valid)


@st.composite
def padded_rows(draw, longest: int, most: int = 3) -> list[Row]:
    """1 to `most` rows of up to `longest` columns, padded to the left, to the right, inside or not at all."""
    rows = []
    for _ in range(draw(st.integers(1, most))):
        pads = draw(st.integers(0, longest - 1)) if draw(st.booleans()) else 0
        size = draw(st.integers(1, longest - pads))
        holes = draw(st.lists(st.booleans(), min_size=size - 1, max_size=size - 1)) if draw(st.booleans()) else []
        rows.append(Row(pads, [True, *holes] + [True] * (size - 1 - len(holes))))
    return rows


def mask_of(rows: list[Row], length: int | None = None) -> torch.Tensor:
    """(batch, length) boolean mask of the rows, to the right of which comes padding."""
    mask = torch.zeros(len(rows), length or max(map(len, rows)), dtype=torch.bool)
    for row, tokens in enumerate(rows):
        mask[row, tokens.left : len(tokens)] = torch.tensor(tokens.valid)
    return mask


def optional(mask: torch.Tensor) -> torch.Tensor | None:
    """No mask where nothing is padded, as a caller would give it."""
    return None if mask.all() else mask


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
