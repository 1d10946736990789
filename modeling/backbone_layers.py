"""The embeddings and the layers that the families share."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_backbone import BackboneConfig
from .backbone_attention import BackboneAttention
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
    """Attention and feed-forward, each with a residual and a norm before (GPT-2) or after it (BERT)."""

    def __init__(self, config: BackboneConfig, attention: BackboneAttention):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = BackboneFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, rows: Rows, **kwargs) -> torch.Tensor:
        if self.norm_first:
            attended, _ = self.attention(self.attention_norm(hidden_states), rows, **kwargs)
            hidden_states = hidden_states + self.dropout(attended)
            return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))
        attended, _ = self.attention(hidden_states, rows, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.feed_forward_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))
