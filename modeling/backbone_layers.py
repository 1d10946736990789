"""The embeddings and the layers that the families share."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_backbone import BackboneConfig
from .backbone_attention import BackboneAttention
from .cross_attention import CrossAttention
from .rows import Rows


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """(..., L) positions -> (..., L, d) sines and cosines (Vaswani et al., arXiv 1706.03762, section 3.5), float32."""
    frequency = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angle = position_ids[..., None].float() * 10000.0 ** (-frequency / hidden_size)  # (..., L, ceil(d / 2))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden_size]


class BackboneEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, as the configuration has them, then norm and dropout."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """(1, T) ids or (1, T, d) embeddings, (1, T) positions, (1, T) types or `None` for type 0 -> (1, T, d)."""
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.position_embedding_type == "learned":
            hidden_states = hidden_states + self.position_embeddings(position_ids)
        elif self.config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, self.config.hidden_size)
            hidden_states = hidden_states + positions.to(hidden_states.dtype)
        if self.config.type_vocab_size:
            types = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            hidden_states = hidden_states + self.token_type_embeddings(types)
        return self.dropout(self.norm(hidden_states))


class BackboneFeedForward(nn.Module):
    """d -> `intermediate_size` -> d with one activation, position by position."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.activation(self.input(hidden_states)))


class BackboneLayer(GradientCheckpointingLayer):
    """
    Attention, attention to an encoder where there is one, and feed-forward, each with a residual and a norm before
    (GPT-2) or after it (BERT).
    """

    def __init__(self, config: BackboneConfig, attention: BackboneAttention, layer_idx: int):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.add_cross_attention:
            self.cross_attention = CrossAttention(config, layer_idx)
            self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = BackboneFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: Rows,
        encoder_tokens: torch.Tensor | None = None,
        encoder_rows: Rows | None = None,
        encoder_cache: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Tokens in, tokens out; `encoder_tokens`, `encoder_rows` and `encoder_cache` are those of `EncoderStates`."""

        def attend(states: torch.Tensor) -> torch.Tensor:
            return self.attention(states, rows, **kwargs)[0]

        def attend_to_encoder(states: torch.Tensor) -> torch.Tensor:
            return self.cross_attention(states, rows, encoder_tokens, encoder_rows, encoder_cache)[0]

        hidden_states = self.residual(hidden_states, attend, self.attention_norm)
        if encoder_tokens is not None:
            hidden_states = self.residual(hidden_states, attend_to_encoder, self.cross_attention_norm)
        return self.residual(hidden_states, self.feed_forward, self.feed_forward_norm)

    def residual(self, states: torch.Tensor, part: Callable[[torch.Tensor], torch.Tensor], norm: nn.Module):
        """A part of the layer with its residual, norm and dropout."""
        if self.norm_first:
            return states + self.dropout(part(norm(states)))
        return norm(states + self.dropout(part(states)))
