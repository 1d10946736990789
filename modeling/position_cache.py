"""
Cache layers for generation that are addressed by position: a row's first valid token is at 0, however it was padded.
A model puts them into an empty `DynamicCache` or `StaticCache`. Transformers' registry of layer types would share them
between the models of a process, also between checkpoints that bring code of different releases.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer


class NewTokens(NamedTuple):
    """
    Where the tokens of a call stand in a cache.

    positions: (1 or B, L) of the L new tokens; those of padding lie behind the row's last token.
    start: the first position where it is the same in all rows and known before the call runs, else `None`.
    mask: (B, L), true at valid ones, or `None` if all are valid.
    end: number of positions that the new tokens may look at, from 0 on; no less than the largest of `positions` + 1.
    """

    positions: torch.Tensor
    start: int | None
    mask: torch.Tensor | None
    end: int

    @classmethod
    def all(cls, hidden_states: torch.Tensor) -> "NewTokens":
        """Of (B, L, ...) without a past."""
        length = hidden_states.shape[1]
        return cls(torch.arange(length, device=hidden_states.device)[None], 0, None, length)

    def part(self, start: int, stop: int) -> "NewTokens":
        """Those of the new tokens from `start` up to `stop`."""
        return NewTokens(
            self.positions[:, start:stop],
            None if self.start is None else self.start + start,
            None if self.mask is None else self.mask[:, start:stop],
            self.end,
        )

    def seen(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """(B, `end`) mask or `None` -> (1 or B, 1, L, `end`), true where a new token looks; `None` for all."""
        if mask is None and self.start is not None and self.start + 1 == self.end:
            return None
        columns = torch.arange(self.end, device=self.positions.device)
        seen = columns <= self.positions[:, None, :, None]
        return seen if mask is None else seen & mask[:, None, None]


def write(buffer: torch.Tensor, states: torch.Tensor, positions: torch.Tensor, start: int | None) -> torch.Tensor:
    """
    Put states into a buffer, in place where no gradient is wanted.

    Args:
        buffer: (B, H, positions, w).
        states: (B, H, L, w).
        positions, start: as in `NewTokens`.

    Returns:
        The buffer, or with gradients a new one.
    """
    states = states.to(buffer.dtype)
    differentiable = torch.is_grad_enabled() and (buffer.requires_grad or states.requires_grad)
    if start is not None:
        stop = start + states.shape[2]
        if differentiable:
            return buffer.slice_scatter(states, 2, start, stop)
        buffer[:, :, start:stop] = states
        return buffer
    index = positions[:, None, :, None].expand_as(states)
    return buffer.scatter(2, index, states) if differentiable else buffer.scatter_(2, index, states)


def read(buffer: torch.Tensor, positions: torch.Tensor, start: int | None) -> torch.Tensor:
    """(B, H, positions, w) -> (B, H, L, w), the states at (1 or B, L) positions."""
    if start is not None:
        return buffer[:, :, start : start + positions.shape[1]]
    return buffer.take_along_dim(positions[:, None, :, None], 2)


class PositionLayerMixin(CacheLayerMixin):
    """
    What the dynamic and the static layer share. `states` names the tensors that hold a state of every position,
    (B, H, positions, w); the keys may have no width, where attention needs none.
    """

    states: tuple[str, ...] = ("keys", "values")
    is_croppable = True
    # the widths of the states are known from the first call only
    supports_early_init = False
    device: torch.device

    @abstractmethod
    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        """Make room for `end` positions of states such as these."""

    @abstractmethod
    def advance(self, num_tokens: int) -> None:
        """Count new tokens."""

    @property
    def batched(self) -> tuple[str, ...]:
        """Names of all tensors whose first dimension is the batch."""
        return self.states

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, new: NewTokens, **more: torch.Tensor):
        """
        Args:
            key_states, value_states: (B, H, L, w) of the new tokens.
            new: where they stand.
            more: those of the further `states`, where a layer has some.

        Returns:
            Keys and values of all positions, (B, H, `new.end` or more, w). With further states the second is a tuple,
            of the values and of them.
        """
        new_states = {"keys": key_states, "values": value_states} | more
        self.prepare(new_states, new.end)
        for name, states in new_states.items():
            setattr(self, name, write(getattr(self, name), states, new.positions, new.start))
        self.advance(key_states.shape[2])
        keys, *others = [getattr(self, name) for name in self.states]
        return keys, others[0] if len(others) == 1 else tuple(others)

    def map(self, function) -> None:
        """Replace every tensor that there is by a function of it."""
        for name in self.batched:
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))

    def check_crop(self, tokens_to_remove: int) -> None:
        if not -int(self.get_seq_length()) <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop({tokens_to_remove}): give minus the number of tokens to remove from the end, at most "
                f"{int(self.get_seq_length())} here"
            )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.map(lambda tensor: tensor[indices])

    def offload(self) -> None:
        self.move("cpu")

    def prefetch(self) -> None:
        self.move(self.device)

    def move(self, device) -> None:
        """Move what grows with the length, and not the little that the next call reads before it."""
        if self.is_initialized:
            for name in self.states:
                setattr(self, name, getattr(self, name).to(device, non_blocking=True))


class PositionLayer(PositionLayerMixin, DynamicLayer):
    """Grows as tokens come: by a thirty-second at a time, so that a token costs no copy of those before it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = value_states.dtype, value_states.device
        self.is_initialized = True

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(new_states["keys"], new_states["values"])
        for name, states in new_states.items():
            buffer = getattr(self, name)
            if buffer is None:
                buffer = states[:, :, :0]
            if buffer.shape[2] < end:
                # exact for a prompt, generous for what follows it
                size = end + end // 32 + 16 if self.length else end
                buffer = F.pad(buffer, (0, 0, 0, size - buffer.shape[2]))
            setattr(self, name, buffer)

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, `-tokens_to_remove` of them; their states stay until others are written there."""
        self.check_crop(tokens_to_remove)
        self.length += tokens_to_remove

    def reset(self) -> None:
        self.length = 0
        self.is_initialized = False
        for name in self.batched:
            setattr(self, name, None)


class StaticPositionLayer(PositionLayerMixin, StaticLayer):
    """Has its tensors of full length from the first call on, and keeps them, as `torch.compile` wants it."""

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(new_states["keys"], new_states["values"])
        if end > self.max_cache_len:
            raise ValueError(f"max_cache_len={self.max_cache_len} is too short for {end} tokens")

    def advance(self, num_tokens: int) -> None:
        self.cumulative_length.add_(num_tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """As that of the dynamic layer."""
        self.check_crop(tokens_to_remove)
        self.cumulative_length.add_(tokens_to_remove)

    def reset(self) -> None:
        if self.is_initialized:
            self.cumulative_length.zero_()
            self.map(torch.Tensor.zero_)
