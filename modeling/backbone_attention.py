"""The attention that the families share, and the contract that a family's own fulfils."""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from ..configuration.configuration_backbone import BackboneConfig
from .rows import Rows, has_transforms
from .softmax_attention import split_heads


class BackboneAttention(nn.Module):
    """
    Multi-head attention over the rows of a batch: project the tokens, attend within each row, come back, project.

    A family writes four methods. T is the number of tokens of all rows, R of rows, H of heads, L the length of the
    longest row, dh the width of a head:

    - `project`: from the tokens, (1, T, d), to whatever the family's attention reads (`inputs`), and to keys and
      values, (1, H, T, w), which a cache keeps; keys may have width 0. Rotary position embeddings are applied here.
    - `attend`: the fast form, from these to (1, T, H dh). `rows` says which tokens belong together; `rows.split`,
      `rows.to_rows` and `Rows.groups` give them as rows. It applies dropout.
    - `attend_literally`: the reference, the paper's formulas step by step, on rows that are padded on the right. It
      serves `attn_implementation="eager"`, returns the weights, and is also used under `torch.func` and
      in forward-mode differentiation.
    - `attend_cached`: for new tokens of a causal model, whose earlier ones are in a cache. Positions count from a row's
      first token, so that keys at positions up to a token's own are those that it sees; no mask is needed.

    A family with a cache of more than keys and values also writes `cached_states` and `start_cache`.

    Parameters are read by the module that owns them, and modules are called, never read: offloading, pruning, adapters
    and sharding all work by hooks.
    """

    def __init__(self, config: BackboneConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    @property
    def dropout(self) -> float:
        return self.config.attention_dropout if self.training else 0.0

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: Rows,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (1, T, d), the tokens, or (B, L, d) where nothing is masked.
            rows: which rows they are.
            position_embeddings: cosines and sines of the rotary embedding, of each token, or `None`.
            cache: the model's cache, or `None`.

        Returns:
            In the shape of the tokens, and, in the literal form, the effective weights (R, H, L, L or positions in the
            cache).
        """
        shape, hidden_states = hidden_states.shape, hidden_states.flatten(0, 1)[None]
        if position_embeddings is not None:
            cosines, sines = (x.flatten(0, 1)[None] for x in position_embeddings)
            position_embeddings = cosines, sines
        inputs, keys, values = self.project(hidden_states, position_embeddings)
        weights = None
        if cache is not None:
            states = {"keys": keys, "values": values} | self.cached_states(inputs)
            cached = {name: self.rows_of(state, rows) for name, state in states.items()}
            new_keys, new_values = cached.pop("keys"), cached.pop("values")
            all_keys, others = cache.update(new_keys, new_values, self.layer_idx, rows, **cached)
            layer = cache.layers[self.layer_idx]
        if cache is not None and rows.start != 0:
            all_states = tuple(x[:, :, : rows.end] for x in (all_keys, *others))
            outputs, weights = self.attend_cached(inputs, all_states, rows, layer)
            outputs = rows.join([outputs])
        else:
            if cache is not None:
                self.start_cache(inputs, rows, layer)
            if self.config._attn_implementation == "eager" or has_transforms():
                outputs, weights = self.attend_literally(inputs, keys, values, rows)
                outputs = rows.to_tokens(outputs.transpose(1, 2).flatten(2))
            else:
                outputs = self.attend(inputs, keys, values, rows)
        return self.output(outputs).view(shape), weights

    @staticmethod
    def rows_of(states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """(1, H, T, w) -> (B, H, L, w), in the order of the input's rows."""
        return rows.in_order(rows.to_rows(states.transpose(1, 2))).transpose(1, 2)

    def project_heads(self, projection: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """(1, T, d) -> (1, H, T, dh)"""
        return split_heads(projection(hidden_states), self.config.num_attention_heads)

    @abstractmethod
    def project(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """(1, T, d) -> whatever `attend` reads, keys and values (1, H, T, w)."""

    @abstractmethod
    def attend(self, inputs: Any, keys: torch.Tensor, values: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The result of `project` -> (1, T, H dh)."""

    @abstractmethod
    def attend_literally(
        self, inputs: Any, keys: torch.Tensor, values: torch.Tensor, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of `project` -> (R, H, L, dh), and the effective weights over a row's tokens, (R, H, L, L)."""

    @abstractmethod
    def attend_cached(
        self, inputs: Any, states: tuple[torch.Tensor, ...], rows: Rows, layer: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        The result of `project` for L new tokens of each row, and the keys, values and further states of all positions,
        (B, H or 1, positions, w) -> (B, H, L, dh) and, in the eager form, the effective weights (B, H, L, positions).
        """

    def cached_states(self, inputs: Any) -> dict[str, torch.Tensor]:
        """What `project` gave -> further states for the cache's layer, (1, H or 1, T, w), by their names there."""
        return {}

    def start_cache(self, inputs: Any, rows: Rows, layer: Any) -> None:
        """Called with what `project` gave for the first tokens of a cache, whose states are in the layer."""
