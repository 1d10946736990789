"""
The attention of a decoder to the states of an encoder, by dot products (Vaswani et al., arXiv 1706.03762, section
3.2.3), as in the encoder-decoder models of both papers.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from ..configuration.configuration_backbone import BackboneConfig
from .rows import Rows, has_transforms, is_static
from .softmax_attention import fused_attention, merge_heads, seen_attention, split_heads


class EncoderStates(NamedTuple):
    """
    What a decoder attends to beside its own tokens.

    tokens: (1, S, e) or, without padding, (B, S, e), the encoder's states of the valid tokens of all rows.
    rows: which rows they are.
    cache: where their keys and values are kept, or `None`.
    """

    tokens: torch.Tensor
    rows: Rows
    cache: EncoderDecoderCache | None


def encoder_states(
    config: BackboneConfig,
    hidden_states: torch.Tensor | None,
    mask: torch.Tensor | None,
    rows: Rows,
    cache: EncoderDecoderCache | None,
) -> EncoderStates | None:
    """
    Check and prepare what a decoder is given of an encoder.

    Args:
        hidden_states: (B, S, e), or `None` for a decoder alone.
        mask: (B, S), 1 at valid tokens of the encoder; `None` if all are.
        rows: those of the decoder.
        cache: where keys and values are kept.

    Raises:
        ValueError: if they do not fit the decoder.
    """
    if hidden_states is None:
        return None
    if not config.add_cross_attention:
        raise ValueError(
            "encoder_hidden_states was given, but add_cross_attention=False: this model does not attend to an encoder; "
            "load it with add_cross_attention=True"
        )
    width = config.cross_attention_hidden_size or config.hidden_size
    shape = rows.shape[0], hidden_states.shape[1]
    if rows.is_packed:
        raise ValueError("encoder_hidden_states was given with packed input: give one text in each row")
    if hidden_states.dim() != 3 or hidden_states.shape[0] != shape[0] or hidden_states.shape[2] != width:
        raise ValueError(
            f"encoder_hidden_states has shape {tuple(hidden_states.shape)}, but must be (batch={shape[0]}, length, "
            f"width={width})"
        )
    if mask is not None and tuple(mask.shape) != shape:
        raise ValueError(f"encoder_attention_mask has shape {tuple(mask.shape)}, but must be {shape}")
    mask = None if mask is None else mask.to(torch.bool)
    if mask is not None and not is_static() and mask.all():
        mask = None
    rows = Rows.whole(shape, hidden_states.device) if mask is None else Rows.padded(mask)
    return EncoderStates(rows.gather(hidden_states), rows, cache)


def with_cross_cache(cache: Cache | None) -> EncoderDecoderCache | None:
    """The cache of a decoder with cross attention, around one that holds the decoder's own states only."""
    if cache is None or isinstance(cache, EncoderDecoderCache):
        return cache
    return EncoderDecoderCache(cache, DynamicCache())


class CrossAttention(nn.Module):
    """Multi-head attention of a decoder's tokens to an encoder's; nothing is computed for padding but the products."""

    def __init__(self, config: BackboneConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        width = config.cross_attention_hidden_size or config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(width, config.hidden_size)
        self.value = nn.Linear(width, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: Rows,
        encoder_tokens: torch.Tensor,
        encoder_rows: Rows,
        cache: EncoderDecoderCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (1, T, d) or (B, L, d), the tokens of the decoder's rows.
            encoder_tokens: (1, S, e) or (B, S, e), those of the encoder's.

        Returns:
            In the shape of `hidden_states`, and, in the literal form, the weights (B, H, L, S) in the order of the
            input's rows, valid tokens first.
        """
        shape, heads = hidden_states.shape, self.config.num_attention_heads
        queries = self.query(hidden_states).flatten(0, 1)[None] * self.config.head_dim**-0.5
        queries = rows.in_order(split_heads(rows.to_rows(queries), heads))  # (B, H, L, dh)
        keys, values = self.keys_and_values(encoder_tokens, encoder_rows, cache)
        seen = encoder_rows.row_mask()
        if seen is not None:
            # a row without any valid token sees zeros
            seen = encoder_rows.in_order(seen)
            seen = F.pad(seen, (0, keys.shape[2] - seen.shape[1]))
            seen = (seen | ~seen.any(-1, keepdim=True))[:, None, None]
        elif keys.shape[2] > encoder_rows.longest:
            # a static cache is longer than what it holds
            seen = (torch.arange(keys.shape[2], device=keys.device) < encoder_rows.longest)[None, None, None]
        dropout, weights = self.config.attention_dropout if self.training else 0.0, None
        if self.config._attn_implementation == "eager" or has_transforms():
            outputs, weights = seen_attention(queries @ keys.transpose(-1, -2), values, seen, dropout)
            weights = weights[..., : encoder_rows.longest]
        else:
            outputs = fused_attention(queries, keys, values, None, seen, dropout=dropout)
        outputs = rows.to_tokens(rows.from_order(merge_heads(outputs)))
        return self.output(outputs.view(shape)), weights

    def keys_and_values(
        self, tokens: torch.Tensor, rows: Rows, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, S, dh) each, in the order of the input's rows, valid tokens first: those that were kept, or new."""
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        keys, values = (
            rows.in_order(
                split_heads(rows.to_rows(project(tokens).flatten(0, 1)[None]), self.config.num_attention_heads)
            )
            for project in (self.key, self.value)
        )
        if cache is not None:
            keys, values = cache.cross_attention_cache.update(keys, values, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return keys, values
