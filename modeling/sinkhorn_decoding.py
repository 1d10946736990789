"""
Decoding with Sparse Sinkhorn Attention: the attention of new tokens to the block that they are in, and to the one that
the sort brings to it, which is computed once, when the block begins. A token then costs O(b), whatever the length.

B is the batch, H the heads, L the number of new tokens, T that of all positions, dh the width of a head, b the size of
a block, n the number of blocks, i the block that a row is in. Blocks before it are full.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows
from .sinkhorn_attention import Options, slot_weights, to_blocks
from .sinkhorn_choice import Choice
from .softmax_attention import fused_attention, seen_softmax


class SortedBlock(NamedTuple):
    """
    What the sort brings to the block that each row is in.

    keys, values: (B, H, m b, dh), m sorted blocks side by side, 0 for block 0.
    shares: (B, H, m, n), row i of each of the m sort matrices, 0 from i on.
    block: (B,), i; -1 where it has not been computed.
    """

    keys: torch.Tensor
    values: torch.Tensor
    shares: torch.Tensor
    block: torch.Tensor

    @classmethod
    def not_computed(cls, keys: torch.Tensor, m: int, block_size: int, num_blocks: int) -> "SortedBlock":
        """For keys (B, H, L, dh)."""
        batch, heads, _, width = keys.shape
        precise = torch.promote_types(keys.dtype, torch.float32)
        return cls(
            keys.new_zeros(batch, heads, m * block_size, width),
            keys.new_zeros(batch, heads, m * block_size, width),
            keys.new_zeros(batch, heads, m, num_blocks, dtype=precise),
            torch.full((batch,), -1, device=keys.device),
        )

    @classmethod
    def of(
        cls,
        row: torch.Tensor,
        index: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        block: torch.Tensor,
        size: int,
        num_blocks: int,
    ):
        """
        The sort multiplied out.

        Args:
            row, index: row i of the sort matrices, (B, H m, 1, n), and the columns that are not 0, as of `choose`.
            keys, values: (B, H, T, dh) of at least the blocks before i.
        """
        shares = Choice.of(row, None, keys.shape[1]).weights  # (B, H, m, n)
        # one that may not be whole, where no block is
        n = min(shares.shape[-1], max(1, keys.shape[2] // size))
        choice = Choice.of(row if index is not None else row[..., :n], index, keys.shape[1])
        keys, values = (
            choice.sorted_blocks(to_blocks(x[:, :, : n * size], size, -2)).flatten(2, 3) for x in (keys, values)
        )
        return cls(keys, values, F.pad(shares, (0, num_blocks - shares.shape[-1])), block)


def block_runs(rows: Rows, block_size: int) -> list[tuple[int, int]]:
    """The new tokens in runs, (start, stop), that lie in one block in each row of the batch."""
    length = rows.groups[0][1]
    if length == 1:
        return [(0, 1)]
    if torch.compiler.is_compiling():
        # a traced graph does not know the positions
        return [(i, i + 1) for i in range(length)]
    begins = (rows.new_positions() % block_size == 0).any(0).tolist()
    edges = [0, *(i for i in range(1, length) if begins[i]), length]
    return list(zip(edges, edges[1:], strict=False))


def decode_blocks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sorted_block: SortedBlock | None,
    rows: Rows,
    options: Options,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The attention of new tokens that lie, in each row of the batch, in one block.

    Args:
        queries: (B, H, L, dh), scaled already.
        keys, values: (B, H, T, dh).
        sorted_block: what the sort brings to the block, or `None` for attention within it.
        rows: those of these tokens.

    Returns:
        (B, H, L, dh) and, where they are needed, the effective weights over the original tokens, (B, H, L, T).
    """
    if rows.start is not None and options.combine == "concat" and not need_weights:
        return decode_concat(queries, keys, values, sorted_block, rows.start, options), None
    size, dropout = options.block_size, options.dropout
    new_positions = rows.new_positions()  # (B, L)
    block = new_positions[:, :1] // size
    positions = block * size + torch.arange(size, device=block.device)  # (B, b)
    index = positions.clamp(max=keys.shape[2] - 1)[:, None, :, None]
    own_keys, own_values = (x.take_along_dim(index, 2) for x in (keys, values))
    past = positions[:, None, None, :] <= new_positions[:, None, :, None]  # (B, 1, L, b)
    own_logits = queries @ own_keys.transpose(-1, -2)  # (B, H, L, b)
    if sorted_block is None:
        own_weights = F.dropout(seen_softmax(own_logits, past).to(values.dtype), dropout)
        outputs = own_weights @ own_values
    else:
        sorted_logits = queries @ sorted_block.keys.transpose(-1, -2)
        arrived = (block > 0)[:, :, None, None].expand(-1, queries.shape[1], 1, sorted_logits.shape[-1])
        valid = torch.ones_like(past[:, :, :1])
        slots = slot_weights(
            sorted_logits[:, :, None], own_logits[:, :, None], arrived, valid, past[:, :, None], options.combine
        )
        sorted_weights, own_weights = (F.dropout(x[:, :, 0].to(values.dtype), dropout) for x in slots)
        outputs = sorted_weights @ sorted_block.values + own_weights @ own_values
    if not need_weights:
        return outputs, None
    length = rows.end
    weights = own_weights.new_zeros(*own_weights.shape[:3], length + size)
    if sorted_block is not None:
        shares = sorted_block.shares[..., : length // size].to(weights.dtype)
        by_sorted = sorted_weights.unflatten(-1, (-1, size))  # (B, H, L, m, b)
        moved = torch.einsum("bhlmt,bhmj->bhljt", by_sorted, shares).flatten(-2)
        weights = weights + F.pad(moved, (0, weights.shape[-1] - moved.shape[-1]))
    index = positions[:, None, None].expand_as(own_weights)
    return outputs, weights.scatter_add(-1, index, own_weights)[..., :length]


def decode_concat(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sorted_block: SortedBlock | None,
    start: int,
    options: Options,
) -> torch.Tensor:
    """`decode_blocks` as one fused call, where the new tokens stand at `start` in every row."""
    length, size = queries.shape[2], options.block_size
    own = slice(start // size * size, start + length)
    keys, values = keys[:, :, own], values[:, :, own]
    if sorted_block is not None and start >= size:
        keys, values = torch.cat((sorted_block.keys, keys), 2), torch.cat((sorted_block.values, values), 2)
    seen = None
    if length > 1:
        # all but what is in the future
        slots = keys.shape[2]
        seen = torch.ones(1, 1, length, slots, dtype=torch.bool, device=keys.device).tril(slots - length)
    return fused_attention(queries, keys, values, None, seen, dropout=options.dropout)
