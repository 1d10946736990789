"""
The cache layers of Sinkhorn models: beside keys and values, what the sort has to be computed again from, and what it
brings to the block that each row is in.

B is the batch, H the heads, L the number of new tokens, T that of all positions, d the width of the model, n the number
of blocks of the longest sequence, i the block that a row is in.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .position_cache import PositionLayer, PositionLayerMixin, StaticPositionLayer
from .rows import Rows
from .sinkhorn_decoding import SortedBlock
from .sinkhorn_sort import next_causal_sum


class SortedBlocksLayerMixin(PositionLayerMixin):
    """
    Holds, beside keys and values, the attention's inputs, (B, 1, T, d), which let a cache be cropped inside a block:
    the next block pools what is left of this one. Without a sort they have width 0. From the first tokens on there are

    sums: (B, 1, n, d), `causal_sums` of each block,
    sorted: the `SortedBlock`.
    """

    states = ("keys", "values", "inputs")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inputs: torch.Tensor | None = None
        self.sums: torch.Tensor | None = None
        self.sorted: SortedBlock | None = None
        # the block of `sorted` where that is the same in all rows and was known without looking
        self.block: int | None = None

    def start(self, sums: torch.Tensor, m: int, block_size: int, num_blocks: int) -> None:
        """Begin with (B, n or fewer, d) sums of the first tokens' blocks; m sorted blocks for each."""
        sums = F.pad(sums[:, None], (0, 0, 0, num_blocks - sums.shape[1]))
        self.replace(sums, SortedBlock.not_computed(self.keys, m, block_size, num_blocks))
        self.block = None

    def sorted_block(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        inputs: torch.Tensor,
        rows: Rows,
        sort_row: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
        block_size: int,
        pooling: str,
    ) -> SortedBlock:
        """
        What the sort brings to the block of new tokens; computed where it is not known, and kept.

        Args:
            keys, values: (B, H, T, dh).
            inputs: (B, 1, T, d).
            rows: those of new tokens that lie, in each row, in one block.
            sort_row: from (B, n or fewer, d) `causal_sums`, i, (B,), and the keys to row i of the sort matrices, and
                its `index`: arguments of `SortedBlock.of`.
            block_size, pooling: those of the configuration.
        """
        start = rows.start
        # a block is known as long as its first token stays
        if start is not None and start % block_size and self.block == start // block_size:
            return self.sorted
        self.block = None if start is None else start // block_size
        num_blocks = self.sums.shape[2]

        def compute(keys, values, inputs, sums, block):
            latest = next_causal_sum(sums, inputs, block, block_size, pooling)
            sums = sums.scatter(2, block[:, None, None, None].expand_as(latest), latest)
            # no later block is needed, where that can be known
            n = num_blocks if torch.compiler.is_compiling() else int(block.max()) + 1
            row, index = sort_row(sums[:, 0, :n], block, keys)
            return sums, *SortedBlock.of(row, index, keys, values, block, block_size, num_blocks)

        first = rows.new_positions()[:, 0]
        block = first // block_size
        tensors = keys, values, inputs, self.sums, block
        if start is not None:
            sums, *new = compute(*tensors)
            self.replace(sums, SortedBlock(*new))
            return self.sorted
        old = (self.sums, *self.sorted)
        is_stale = (block != self.sorted.block) | (first % block_size == 0)  # (B,)
        if torch.compiler.is_compiling():

            def renew(is_stale, old, tensors):
                pairs = zip(old, compute(*tensors), strict=True)
                return tuple(torch.where(is_stale.view(-1, *[1] * (x.dim() - 1)), y, x) for x, y in pairs)

            def leave(is_stale, old, tensors):
                return tuple(x.clone() for x in old)

            if torch.is_grad_enabled():
                new = renew(is_stale, old, tensors)
            else:
                new = torch.cond(is_stale.any(), renew, leave, (is_stale, old, tensors))
            self.replace(new[0], SortedBlock(*new[1:]))
        elif is_stale.any():
            stale = is_stale.nonzero().flatten()
            computed = compute(*[x[stale] for x in tensors])
            sums, *new = [x.index_copy(0, stale, y) for x, y in zip(old, computed, strict=True)]
            self.replace(sums, SortedBlock(*new))
        return self.sorted

    def replace(self, sums: torch.Tensor, sorted_block: SortedBlock) -> None:
        """Replace `sums` and `sorted`."""
        in_place = self.is_compileable or torch.compiler.is_compiling()
        if self.sorted is None or torch.is_grad_enabled() or not in_place:
            self.sums, self.sorted = sums, sorted_block
            return
        # a compiled graph keeps the tensors that it knows, and loses attributes that are set after `torch.cond`
        for old, new in zip((self.sums, *self.sorted), (sums, *sorted_block), strict=True):
            old.copy_(new)

    def map(self, function) -> None:
        super().map(function)
        if self.sorted is not None:
            self.sums, self.sorted = function(self.sums), SortedBlock(*map(function, self.sorted))


class SortedBlocksLayer(SortedBlocksLayerMixin, PositionLayer):
    def reset(self) -> None:
        super().reset()
        self.sums = self.sorted = None


class StaticSortedBlocksLayer(SortedBlocksLayerMixin, StaticPositionLayer):
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.inputs = None

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        super().prepare(new_states, end)
        if self.inputs is None:
            batch, _, _, width = new_states["inputs"].shape
            self.inputs = new_states["inputs"].new_zeros(batch, 1, self.max_cache_len, width)
