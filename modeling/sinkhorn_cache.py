"""
Decoding with Sparse Sinkhorn Attention: the cache layers, and the rows of the attention that belong to new tokens. What
the sort brings to a block is worked out once, when the block begins; a token then costs O(b), whatever the length.

B is the batch, H the heads, L the number of new tokens, T that of all, d the width of the model and dh that of a head,
b the size of a block, n the number of blocks, i the block that a row is in. A `mask` is (B, T), true at valid tokens,
or `None`. `keys`, `values` and `inputs` are zero at padding.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .block_sort import arrived_mass, divisor, sort_blocks
from .dot_product_attention import fused_attention, seen_softmax
from .position_cache import NewTokens, PositionLayer, PositionLayerMixin, StaticPositionLayer
from .sinkhorn_attention import slot_weights, to_blocks


class SortedBlock(NamedTuple):
    """
    What the sort brings to the block that each row is in.

    keys, values: (B, H, b, dh), slot by slot the means of what arrives.
    mass: (B, H, b), how much of it is valid.
    shares: (B, H, n), row i of the sort matrix.
    block: (B,), i; -1 where it has not been worked out.
    """

    keys: torch.Tensor
    values: torch.Tensor
    mass: torch.Tensor
    shares: torch.Tensor
    block: torch.Tensor

    @classmethod
    def unknown(cls, keys: torch.Tensor, block_size: int, num_blocks: int) -> "SortedBlock":
        """For keys (B, H, L, dh)."""
        batch, heads, _, width = keys.shape
        precise = torch.promote_types(keys.dtype, torch.float32)
        return cls(
            keys.new_zeros(batch, heads, block_size, width),
            keys.new_zeros(batch, heads, block_size, width),
            keys.new_zeros(batch, heads, block_size, dtype=precise),
            keys.new_zeros(batch, heads, num_blocks, dtype=precise),
            torch.full((batch,), -1, device=keys.device),
        )


class SortedBlocksLayerMixin(PositionLayerMixin):
    """
    Holds, beside keys and values, the attention's inputs, (B, 1, T, d), which let a cache be cropped inside a block:
    the next block pools what is left of this one. Without a sort they have no width. From the first tokens on there is

    pooled: (B, 1, n, d), the running sum of the inputs (or the last valid one) up to the first token of each block,
    sorted: the `SortedBlock`.
    """

    states = ("keys", "values", "inputs")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inputs: torch.Tensor | None = None
        self.pooled: torch.Tensor | None = None
        self.sorted: SortedBlock | None = None
        # the block of `sorted` where that is the same in all rows and was known without looking
        self.block: int | None = None

    def keep(self, pooled: torch.Tensor, sorted_block: SortedBlock) -> None:
        """Replace `pooled` and `sorted`."""
        in_place = self.is_compileable or torch.compiler.is_compiling()
        if self.sorted is None or torch.is_grad_enabled() or not in_place:
            self.pooled, self.sorted = pooled, sorted_block
            return
        # a compiled graph keeps the tensors that it knows, and loses attributes that are set after `torch.cond`
        for old, new in zip((self.pooled, *self.sorted), (pooled, *sorted_block), strict=True):
            old.copy_(new)

    def map(self, function) -> None:
        super().map(function)
        if self.sorted is not None:
            self.pooled, self.sorted = function(self.pooled), SortedBlock(*map(function, self.sorted))


class SortedBlocksLayer(SortedBlocksLayerMixin, PositionLayer):
    def reset(self) -> None:
        super().reset()
        self.pooled = self.sorted = None


class StaticSortedBlocksLayer(SortedBlocksLayerMixin, StaticPositionLayer):
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.inputs = None

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        super().prepare(new_states, end)
        if self.inputs is None:
            batch, _, _, width = new_states["inputs"].shape
            self.inputs = new_states["inputs"].new_zeros(batch, 1, self.max_cache_len, width)


def next_pooled(
    pooled: torch.Tensor,
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    block: torch.Tensor,
    block_size: int,
    pooling: str,
) -> torch.Tensor:
    """
    What `causal_pool_blocks` gives for block i, from what it gave for the block before.

    Args:
        pooled: (B, 1, n, d), of which block i - 1 is read.
        inputs: (B, 1, T, d).
        block: i, (B,).
        pooling: `first` for the last valid input, else the sum.

    Returns:
        (B, 1, 1, d)
    """
    window = block[:, None] * block_size + torch.arange(1 - block_size, 1, device=block.device)  # (B, b)
    counted = window >= 0
    window = window.clamp(min=0)
    if mask is not None:
        counted = counted & mask.gather(1, window)
    before = pooled.take_along_dim((block - 1).clamp(min=0)[:, None, None, None], 2)
    before = before.masked_fill((block == 0)[:, None, None, None], 0.0)
    if pooling == "first":
        last = (torch.arange(1, block_size + 1, device=block.device) * counted).argmax(-1, keepdim=True)  # (B, 1)
        latest = inputs.take_along_dim(window.gather(1, last)[:, None, :, None], 2)
        return torch.where(counted.any(-1)[:, None, None, None], latest.to(pooled.dtype), before)
    recent = inputs.take_along_dim(window[:, None, :, None], 2).masked_fill(~counted[:, None, :, None], 0.0)
    return before + recent.sum(2, keepdim=True, dtype=pooled.dtype)


def sort_past_blocks(
    shares: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    block: torch.Tensor,
    block_size: int,
) -> SortedBlock:
    """
    The sort of block i, multiplied out.

    Args:
        shares: (B, H, m), row i of the sort matrix over the first m blocks, 0 from i on.
        keys, values: (B, H, T, dh), no shorter than the blocks before i.
        block: i, (B,).
    """
    m = min(shares.shape[-1], keys.shape[2] // block_size)
    matrices = shares[:, :, None, :m]  # (B, H, 1, m)
    arrived = None
    mass = (block > 0)[:, None, None].expand(-1, shares.shape[1], block_size).to(shares.dtype)
    if mask is not None:
        arrived = arrived_mass(matrices, to_blocks(mask[:, : m * block_size], block_size, -1))  # (B, H, 1, b)
        mass = arrived[:, :, 0]
    keys, values = (
        sort_blocks(matrices, to_blocks(x[:, :, : m * block_size], block_size, -2), arrived)[:, :, 0]
        for x in (keys, values)
    )
    return SortedBlock(keys, values, mass, shares, block)


def block_counts(mask: torch.Tensor | None, n: int, block_size: int, like: torch.Tensor) -> torch.Tensor:
    """Valid tokens up to the first of each block, for a `mean`: (1 or B, n, 1)."""
    if mask is None:
        return (torch.arange(n, device=like.device) * block_size + 1)[None, :, None]
    counts = mask.cumsum(-1)[:, ::block_size][:, :n]
    return F.pad(counts, (0, n - counts.shape[1]), value=1)[..., None]


def block_runs(new_tokens: NewTokens, block_size: int) -> list[tuple[int, int]]:
    """The new tokens in runs, (start, stop), that lie in one block in each row of the batch."""
    length = new_tokens.positions.shape[1]
    if length == 1:
        return [(0, 1)]
    if torch.compiler.is_compiling():
        # a traced graph does not know the positions
        return [(i, i + 1) for i in range(length)]
    begins = (new_tokens.positions % block_size == 0).any(0).tolist()
    edges = [0, *(i for i in range(1, length) if begins[i]), length]
    return list(zip(edges, edges[1:], strict=False))


def own_block(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(B, H, T, w) -> (B, H, b, w) at (1 or B, b) positions; what lies behind the end is anything."""
    return tensor.take_along_dim(positions.clamp(max=tensor.shape[2] - 1)[:, None, :, None], 2)


def decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sorted_block: SortedBlock | None,
    mask: torch.Tensor | None,
    new_tokens: NewTokens,
    block_size: int,
    combine: str,
    dropout: float,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The rows of the attention of new tokens that lie, in each row of the batch, in one block.

    Args:
        queries: (B, H, L, dh), scaled already.
        keys, values: (B, H, T, dh).
        sorted_block: what the sort brings to the block, or `None` for attention within it.
        combine: `concat`, `sum` or `logits`.

    Returns:
        (B, H, L, dh) and, where they are needed, the effective weights over the original tokens, (B, H, L, T).
    """
    if new_tokens.start is not None and mask is None and combine == "concat" and not need_weights:
        return decode_concat(queries, keys, values, sorted_block, new_tokens.start, block_size, dropout), None
    positions = new_tokens.positions // block_size * block_size
    positions = positions[:, :1] + torch.arange(block_size, device=positions.device)  # (1 or B, b)
    own_keys, own_values = own_block(keys, positions), own_block(values, positions)
    past = positions[:, None, None, :] <= new_tokens.positions[:, None, :, None]  # (1 or B, 1, L, b)
    valid = torch.ones_like(positions, dtype=torch.bool)
    if mask is not None:
        valid = mask.gather(1, positions.clamp(max=mask.shape[1] - 1).expand(mask.shape[0], -1))
    own_logits = queries @ own_keys.transpose(-1, -2)  # (B, H, L, b)
    if sorted_block is None:
        own_weights = seen_softmax(own_logits, valid[:, None, None] & past).to(values.dtype)
        own_weights = F.dropout(own_weights, dropout)
        outputs = own_weights @ own_values
    else:
        log_mass = divisor(sorted_block.mass).log()[:, :, None]
        sorted_logits = queries @ sorted_block.keys.transpose(-1, -2) + log_mass
        slots = slot_weights(
            sorted_logits[:, :, None],
            own_logits[:, :, None],
            sorted_block.mass[:, :, None] > 0,
            valid[:, None, None],
            past[:, :, None],
            combine,
        )
        sorted_weights, own_weights = (F.dropout(x[:, :, 0].to(values.dtype), dropout) for x in slots)
        outputs = sorted_weights @ sorted_block.values + own_weights @ own_values
    if not need_weights:
        return outputs, None
    length = mask.shape[1] if mask is not None else new_tokens.end
    weights = own_weights.new_zeros(*own_weights.shape[:3], length + block_size)
    if sorted_block is not None:
        m = length // block_size
        shares = sorted_block.shares[:, :, :m, None]
        if mask is not None:
            shares = shares * to_blocks(mask[:, : m * block_size], block_size, -1)[:, None]
        shares = (shares / divisor(sorted_block.mass)[:, :, None]).to(weights.dtype)  # (B, H, m, b)
        moved = torch.einsum("bhlt,bhjt->bhljt", sorted_weights, shares.expand(-1, -1, -1, block_size)).flatten(-2)
        weights = weights + F.pad(moved, (0, weights.shape[-1] - moved.shape[-1]))
    index = positions[:, None, None].expand_as(own_weights)
    return outputs, weights.scatter_add(-1, index, own_weights)[..., :length]


def decode_concat(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sorted_block: SortedBlock | None,
    start: int,
    block_size: int,
    dropout: float,
) -> torch.Tensor:
    """`decode` as one fused call, where nothing is padded and the new tokens stand at `start` in every row."""
    length = queries.shape[2]
    own = slice(start // block_size * block_size, start + length)
    keys, values = keys[:, :, own], values[:, :, own]
    if sorted_block is not None and start >= block_size:
        keys, values = torch.cat((sorted_block.keys, keys), 2), torch.cat((sorted_block.values, values), 2)
    seen = None
    if length > 1:
        # all but what is in the future
        slots = keys.shape[2]
        seen = torch.ones(1, 1, length, slots, dtype=torch.bool, device=keys.device).tril(slots - length)
    return fused_attention(queries, keys, values, None, seen, dropout=dropout)
