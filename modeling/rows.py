"""
Which tokens of a batch there are, which row each belongs to, and at which position in it. This is the only file that
knows of padding and of packed documents: a masked token is not there, wherever it stands.

The layers see (1, T, d), the T valid tokens, row after row; without padding the tokens are the input, (B, L, d). Rows
of one length stand together, so that a batch is a few dense groups of rows (row count, length) without any padding. A
traced graph cannot drop tokens, because its shapes may not depend on data: there every row is a whole one of the group
(B, L), its valid tokens first, and `mask` says how many they are.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from torch.autograd import forward_ad


def has_transforms() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is on, which only the literal forms take."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_static() -> bool:
    """Whether shapes may not depend on data: in a traced graph, and under `torch.func`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or has_transforms()


def groups_of(lengths: list[int]) -> tuple[tuple[int, int], ...]:
    """Neighbours of one length: [2, 2, 5] -> ((2, 2), (1, 5))."""
    return tuple((len(list(same)), length) for length, same in groupby(lengths))


class Rows(NamedTuple):
    """
    The rows of one call.

    shape: (B, L) of the input.
    groups: (row count, length) of the groups of rows, in the order of the tokens; R rows and T tokens in all.
    positions: (1, T), the position of each token in its row, tokens in a cache counted.
    source: (T,), where each token stands in the flat (B L) input; `None` if the tokens are the input.
    places: (R,), which of our rows each row of the input is; `None` if the order is the same.
    mask: (R, longest) valid tokens of static rows, no row without one; `None` if all rows are wholly valid.
    valid: (B, L) what was valid in the input, where `source` also holds tokens that are not; else `None`.
    end: how many positions the tokens may look at, those in a cache and, for a cache, columns of padding counted.
    start: the first position of all rows, if it is the same one and known; else `None`.
    cached_mask: (B, end) valid columns, those in the cache too; `None` if all are, or without a cache.
    is_packed: whether the rows are documents, of which a row of the batch may hold several.
    """

    shape: tuple[int, int]
    groups: tuple[tuple[int, int], ...]
    positions: torch.Tensor
    source: torch.Tensor | None = None
    places: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    end: int = 0
    start: int | None = 0
    cached_mask: torch.Tensor | None = None
    is_packed: bool = False

    # how rows are made

    @classmethod
    def whole(cls, shape: tuple[int, int], device: torch.device) -> "Rows":
        """Rows without padding."""
        batch, length = shape
        positions = torch.arange(length, device=device).repeat(batch)[None]
        return cls(shape, ((batch, length),), positions, end=length)

    @classmethod
    def padded(cls, mask: torch.Tensor) -> "Rows":
        """Rows of a (B, L) boolean mask, true at valid tokens."""
        batch, length = mask.shape
        if is_static():
            return cls.compacted(mask)
        lengths, order = mask.sum(-1).sort(stable=True)
        row, column = mask[order].nonzero(as_tuple=True)
        positions = (mask.cumsum(-1) - 1)[order[row], column]
        places = torch.empty_like(order).scatter_(0, order, torch.arange(batch, device=mask.device))
        groups = groups_of(lengths.tolist())
        return cls((batch, length), groups, positions[None], order[row] * length + column, places, end=length)

    @classmethod
    def compacted(cls, mask: torch.Tensor) -> "Rows":
        """As `padded`, with every token kept: the valid ones of each row first."""
        batch, length = mask.shape
        counts = mask.sum(-1, keepdim=True)
        rank = torch.where(mask, mask.cumsum(-1) - 1, counts + (~mask).cumsum(-1) - 1)  # (B, L)
        column = torch.arange(length, device=mask.device)
        first = torch.arange(batch, device=mask.device)[:, None] * length
        source = first + torch.zeros_like(rank).scatter(1, rank, column.expand(batch, -1))
        return cls(
            (batch, length),
            ((batch, length),),
            column.repeat(batch)[None],
            source.flatten(),
            mask=column < counts.clamp(min=1),
            valid=mask,
            end=length,
        )

    @classmethod
    def packed(cls, shape: tuple[int, int], lengths: list[int], device: torch.device) -> "Rows":
        """Documents of these lengths, one after the other, that fill the rows of the batch."""
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        return cls(shape, groups_of(lengths), positions, end=max(lengths), is_packed=True)

    @classmethod
    def after(cls, past: int | torch.Tensor, shape: tuple[int, int], mask: torch.Tensor | None, end: int, device):
        """
        Rows of (B, L) new tokens behind `past` columns of a cache, a tensor where the cache counts on its device.
        `mask` is (B, end), true at valid columns, or `None` if all are.
        """
        batch, length = shape
        new = torch.arange(length, device=device)
        if mask is None:
            positions = (new + past).repeat(batch)[None]
            start = past if isinstance(past, int) else None
            return cls(shape, ((batch, length),), positions, end=end, start=start)
        before = (mask & (torch.arange(end, device=device) < past)).sum(-1)  # (B,)
        new_mask = mask.gather(1, (new + past).expand(batch, -1))
        if not is_static() and new_mask.all():
            rows = cls(shape, ((batch, length),), new[None])
        else:
            # a single token has no order; neither is its key seen before it is valid
            rows = cls.compacted(new_mask)
        positions = (before[:, None] + new).flatten()[None]
        start = None
        if not is_static() and (before == before[0]).all():
            start = int(before[0])
        return rows._replace(positions=positions, end=end, start=start, cached_mask=mask)

    # what they look like

    @property
    def num_rows(self) -> int:
        return sum(count for count, _ in self.groups)

    @property
    def num_tokens(self) -> int:
        return sum(count * length for count, length in self.groups)

    @property
    def lengths(self) -> list[int]:
        """Of each row."""
        return [length for count, length in self.groups for _ in range(count)]

    @property
    def longest(self) -> int:
        return max([length for _, length in self.groups])

    @property
    def has_one_length(self) -> bool:
        return len(self.groups) == 1

    def token_rows(self) -> torch.Tensor:
        """(T,), the row of each token."""
        device = self.positions.device
        if self.has_one_length:
            count, length = self.groups[0]
            return torch.arange(count, device=device)[:, None].expand(-1, length).flatten()
        return torch.arange(self.num_rows, device=device).repeat_interleave(torch.tensor(self.lengths, device=device))

    def token_ranks(self) -> torch.Tensor:
        """(T,), the index of each token among those of its row in this call."""
        if not self.has_one_length:
            return self.positions[0]
        count, length = self.groups[0]
        return torch.arange(length, device=self.positions.device).repeat(count)

    def row_mask(self) -> torch.Tensor | None:
        """(R, longest), true at valid tokens of rows that are padded on the right; `None` if all are."""
        if self.has_one_length:
            return self.mask
        device = self.positions.device
        return torch.arange(self.longest, device=device) < torch.tensor(self.lengths, device=device)[:, None]

    def own_positions(self) -> torch.Tensor:
        """The positions in the shape of the tokens, (1, T) or (B, L)."""
        return self.positions.view(self.shape) if self.source is None else self.positions

    def new_positions(self) -> torch.Tensor:
        """(B, L), the positions of new tokens behind a cache."""
        return self.positions.view(self.groups[0])

    def seen_positions(self) -> torch.Tensor | None:
        """(1 or B, 1, L, `end`), true where a new token after a cache attends; `None` for everywhere."""
        if self.start is not None and self.start + 1 == self.end:
            return None
        columns = torch.arange(self.end, device=self.positions.device)
        return columns <= self.new_positions()[:, None, :, None]

    def part(self, start: int, stop: int) -> "Rows":
        """New tokens behind a cache, from the `start`-th of each row up to the `stop`-th."""
        count, _ = self.groups[0]
        positions = self.new_positions()[:, start:stop]
        return self._replace(
            groups=((count, stop - start),),
            positions=positions.flatten()[None],
            start=None if self.start is None else self.start + start,
        )

    # between the input and the tokens

    def gather(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """(B, L, ...) or, shared by all rows, (1, L, ...) -> (1, T, ...); (B, L, ...) if the tokens are the input."""
        if tensor is None:
            return None
        tensor = tensor.expand(self.shape[0], *tensor.shape[1:])
        return tensor if self.source is None else tensor.flatten(0, 1).index_select(0, self.source)[None]

    def scatter(self, tokens: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(1, T, ...) or (B, L, ...) of the tokens -> (B, L, ...), `fill` where the input is masked."""
        if self.source is None:
            return tokens
        tokens, tail = tokens[0], tokens.shape[2:]
        given = tokens.new_full((self.shape[0] * self.shape[1], *tail), fill).index_copy(0, self.source, tokens)
        given = given.view(*self.shape, *tail)
        return given if self.valid is None else given.masked_fill(~self.valid.view(*self.shape, *[1] * len(tail)), fill)

    def scatter_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """(R, H, longest, `end` or longest) weights of our rows -> (B, H, L, `end`) of the input, 0 where masked."""
        if self.source is None and self.cached_mask is None and not self.is_packed:
            return weights
        count = self.shape[0]
        tokens = (1, -1) if self.source is not None else self.shape
        exists = self.valid
        if exists is None:
            exists = self.scatter(torch.ones_like(self.positions).view(tokens)).bool()
        row, rank = (self.scatter(x.view(tokens)) for x in (self.token_rows(), self.token_ranks()))  # (B, L)
        key_row, key_rank, key_exists = row, rank, exists
        if self.start != 0 or self.cached_mask is not None:
            columns = torch.arange(self.end, device=rank.device).expand(count, -1)
            key_exists = torch.ones_like(columns, dtype=torch.bool) if self.cached_mask is None else self.cached_mask
            key_rank = columns if self.cached_mask is None else (self.cached_mask.cumsum(-1) - 1).clamp(min=0)
            key_row = torch.arange(count, device=rank.device)[:, None].expand_as(key_rank)
        given = weights[row[:, :, None], :, rank[:, :, None], key_rank[:, None]].permute(0, 3, 1, 2)  # (B, H, L, end)
        pairs = exists[:, :, None] & key_exists[:, None] & (row[:, :, None] == key_row[:, None])
        return given.masked_fill(~pairs[:, None], 0.0)

    def in_order(self, tensor: torch.Tensor) -> torch.Tensor:
        """(R, ...) in the order of our rows -> the same in that of the input's."""
        return tensor if self.places is None else tensor.index_select(0, self.places)

    def from_order(self, tensor: torch.Tensor) -> torch.Tensor:
        """(R, ...) in the order of the input's rows -> the same in that of ours."""
        return tensor if self.places is None else tensor.index_select(0, self.places.argsort())

    def scatter_cross(self, weights: torch.Tensor, others: "Rows") -> torch.Tensor:
        """
        (B, H, longest, longest of the others) weights over the tokens of other rows, valid ones first -> (B, H, L,
        their L) of the input, 0 where either is masked.
        """
        (rank, exists), (other_rank, other_exists) = self.places_of_tokens(), others.places_of_tokens()
        row = torch.arange(len(weights), device=weights.device)[:, None, None]
        given = weights[row, :, rank[:, :, None], other_rank[:, None]].permute(0, 3, 1, 2)
        return given.masked_fill(~(exists[:, :, None] & other_exists[:, None])[:, None], 0.0)

    def places_of_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) each: the index of each token among those of its row in this call, and whether there is one."""
        shape = (1, -1) if self.source is not None else self.shape
        rank = self.scatter(self.token_ranks().view(shape))
        if self.valid is not None:
            return rank, self.valid
        return rank, self.scatter(torch.ones_like(self.positions).view(shape)).bool()

    # between the tokens and rows

    def to_rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, T, ...) -> (R, longest, ...), 0 behind the last token of a row."""
        if self.has_one_length:
            return tokens.view(*self.groups[0], *tokens.shape[2:])
        slots = self.token_rows() * self.longest + self.token_ranks()
        padded = tokens.new_zeros(self.num_rows * self.longest, *tokens.shape[2:]).index_copy(0, slots, tokens[0])
        return padded.unflatten(0, (self.num_rows, self.longest))

    def to_tokens(self, padded: torch.Tensor) -> torch.Tensor:
        """(R, longest, ...) -> (1, T, ...)"""
        if self.has_one_length:
            return padded.flatten(0, 1)[None]
        return padded[self.token_rows(), self.token_ranks()][None]

    def split(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """(1, H, T, w) -> (rows, H, length, w) of each group."""
        parts = tokens[0].split([count * length for count, length in self.groups], dim=1)
        return [part.unflatten(1, group).transpose(0, 1) for part, group in zip(parts, self.groups, strict=True)]

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """(rows, H, length, w) of each group -> (1, T, H w)"""
        flat = [part.transpose(1, 2).flatten(2).flatten(0, 1) for part in parts]
        return (flat[0] if len(flat) == 1 else torch.cat(flat))[None]

    def by_token(self, weight: torch.Tensor) -> torch.Tensor:
        """(H, N, w), a vector for each position -> (1, H, T, w)"""
        parts = [weight[:, None, :length].expand(-1, count, -1, -1).flatten(1, 2) for count, length in self.groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[None]

    def shift(self, labels: torch.Tensor, ignored: int) -> torch.Tensor:
        """Labels of the tokens -> those of the next token of the same row, `ignored` at a row's last token."""
        lengths = torch.tensor(self.lengths, device=labels.device)[self.token_rows()]
        shifted = labels.flatten().roll(-1).masked_fill(self.token_ranks() + 1 == lengths, ignored)
        return shifted.view(labels.shape)
