"""
The sort of Sparse Sinkhorn Attention (Tay et al., arXiv 2002.11296, section 3.1): blocks of tokens, one vector for each
of them, and the balanced sort matrix.

Every row is cut into blocks of b tokens from its first one on; its last block may hold fewer. R is the number of rows,
T of their tokens, N of their blocks, n of the blocks of the longest row, H of heads, d the width of the model and dh
that of a head. Matrices of rows with fewer than n blocks are padded.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows, has_transforms, is_static
from .sinkhorn_choice import choose
from .softmax_attention import derivable_gradients, future_keys, precise

# of the vectors of `normed_sum`: with 32 models learned to copy more slowly, with 128 to sort
POOLED_NORM = 64.0


class Blocks(NamedTuple):
    """
    The blocks of all rows, one after the other.

    size: b.
    groups: (row count, number of blocks) of neighbouring rows with the same number, in the order of the rows.
    tail: slots that a single group of rows of one length lacks to whole blocks.
    slots: (T,), the slot of each token among the N b of all blocks; `None` in a single group.
    valid: (N, b), true at slots that hold a valid token; `None` if all do, or if only later tokens can see the others.
    row_mask: (R, n), true at blocks that hold a valid token; `None` if all do.
    places: (N,), the place of each block among the R n of rows of one length; `None` in a single group.
    """

    size: int
    groups: tuple[tuple[int, int], ...]
    tail: int
    slots: torch.Tensor | None
    valid: torch.Tensor | None
    row_mask: torch.Tensor | None
    places: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: Rows, size: int, is_causal: bool) -> "Blocks":
        """The blocks of rows; empty slots stand behind the tokens of a row, where no causal query sees them."""
        if rows.has_one_length:
            count, length = rows.groups[0]
            # no division of a negative number: ONNX rounds it towards 0
            n = (length + size - 1) // size
            tail = n * size - length
            valid = None
            # an exported graph serves every length
            if not is_causal and (rows.mask is not None or torch.compiler.is_exporting() or tail):
                ones = torch.ones(count, length, dtype=torch.bool, device=rows.positions.device)
                valid = F.pad(ones if rows.mask is None else rows.mask, (0, tail)).view(count * n, size)
            row_mask = None if rows.mask is None else F.pad(rows.mask, (0, tail)).view(count, n, size)[:, :, 0]
            return cls(size, ((count, n),), tail, None, valid, row_mask)
        counts = [-(-length // size) for length in rows.lengths]
        groups: list[tuple[int, int]] = []
        for count, n in ((1, n) for n in counts):
            if groups and groups[-1][1] == n:
                count += groups.pop()[0]
            groups.append((count, n))
        device, total, longest = rows.positions.device, sum(counts), max(counts)
        ends = torch.tensor(counts, device=device).cumsum(0)
        starts = F.pad(ends[:-1], (1, 0))
        slots = starts[rows.token_rows()] * size + rows.token_ranks()
        valid = None
        if not is_causal:
            valid = torch.zeros(total * size, dtype=torch.bool, device=device)
            valid = valid.index_fill(0, slots, True).view(-1, size)
        row_mask = torch.arange(longest, device=device) < (ends - starts)[:, None]
        block = torch.arange(total, device=device)
        row = torch.searchsorted(ends, block, right=True)
        return cls(size, tuple(groups), 0, slots, valid, row_mask, row * longest + block - starts[row])

    @property
    def num_blocks(self) -> int:
        """N"""
        return sum(rows * n for rows, n in self.groups)

    @property
    def longest(self) -> int:
        """n"""
        return max(n for _, n in self.groups)

    def fill(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, T, ...) -> (N, b, ...), 0 in slots without a valid token."""
        tail = tokens.shape[2:]
        if self.slots is not None:
            filled = tokens.new_zeros(self.num_blocks * self.size, *tail).index_copy(0, self.slots, tokens[0])
            return filled.unflatten(0, (self.num_blocks, self.size))
        rows, n = self.groups[0]
        if torch.compiler.is_exporting() or self.tail:
            tokens = tokens.view(rows, n * self.size - self.tail, *tail)
            tokens = F.pad(tokens, (0, 0) * len(tail) + (0, self.tail))
        filled = tokens.reshape(rows * n, self.size, *tail)
        if self.valid is not None:
            filled = filled * self.valid.view(rows * n, self.size, *[1] * len(tail))
        return filled

    def empty(self, filled: torch.Tensor) -> torch.Tensor:
        """(N, b, ...) -> (1, T, ...)"""
        flat = filled.flatten(0, 1)
        if self.slots is not None:
            return Chosen.apply(flat, self.slots)[None]
        rows, n = self.groups[0]
        if torch.compiler.is_exporting() or self.tail:
            flat = flat.unflatten(0, (rows, n * self.size))[:, : n * self.size - self.tail].flatten(0, 1)
        return flat[None]

    def to_rows(self, of_blocks: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (R, n, ...), 0 behind the last block of a row."""
        if self.places is None:
            return of_blocks.unflatten(0, self.groups[0])
        shape = sum(rows for rows, _ in self.groups), self.longest
        padded = of_blocks.new_zeros(shape[0] * shape[1], *of_blocks.shape[1:])
        return padded.index_copy(0, self.places, of_blocks).unflatten(0, shape)

    def to_blocks(self, of_rows: torch.Tensor) -> torch.Tensor:
        """(R, n, ...) -> (N, ...)"""
        flat = of_rows.flatten(0, 1)
        return flat if self.places is None else Chosen.apply(flat, self.places)

    def is_first(self, device: torch.device) -> torch.Tensor:
        """(N,), true at the first block of each row."""
        if self.places is None:
            rows, n = self.groups[0]
            return (torch.arange(n, device=device) == 0).repeat(rows)
        return self.places % self.longest == 0


class Chosen(torch.autograd.Function):
    """`tensor[index]` for different indices; the gradient of PyTorch's own adds entry by entry."""

    @staticmethod
    def forward(tensor, index):
        return tensor.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensor, index = inputs
        ctx.save_for_backward(index)
        ctx.shape = tensor.shape

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy(0, index, grad), None


def pool_blocks(filled: torch.Tensor, blocks: Blocks, pooling: str) -> torch.Tensor:
    """
    One vector for each block: `normed_sum`, `sum` or `mean` of its valid tokens, or the `first` of them.

    Args:
        filled: (N, b, d), the attention's input, 0 in empty slots.

    Returns:
        (R, n, d) in at least float32.
    """
    if pooling == "first":
        return blocks.to_rows(precise(filled[:, 0]))
    counts = blocks.size if blocks.valid is None else blocks.valid.sum(-1, keepdim=True).clamp(min=1)
    return blocks.to_rows(scaled_sums(filled.sum(1, dtype=precise(filled[:0]).dtype), counts, pooling))


def scaled_sums(sums: torch.Tensor, counts: torch.Tensor | int, pooling: str) -> torch.Tensor:
    """
    Pooled blocks from the sums of their tokens, (..., d).

    Args:
        counts: tokens in each sum, broadcast to it.
        pooling: `sum`, `mean`, or `normed_sum`: each sum scaled to the norm `POOLED_NORM`.
    """
    if pooling == "mean":
        return sums / counts
    if pooling == "normed_sum":
        return sums * (sums.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (POOLED_NORM / sums.shape[-1] ** 0.5)
    return sums


def causal_sums(filled: torch.Tensor, blocks: Blocks, pooling: str) -> torch.Tensor:
    """
    What a causal model may choose a block's sorted block by, before it is scaled: the sum of the row's tokens up to and
    including the block's first one, or with `first` that token itself. A cache keeps it.

    Args, returns: as for `pool_blocks`.
    """
    first = blocks.to_rows(precise(filled[:, 0]))
    if pooling == "first":
        return first
    sums = blocks.to_rows(filled.sum(1, dtype=first.dtype))
    # past blocks and the first token: to take the rest of the block away again would leak its rounding
    return F.pad(sums[:, :-1].cumsum(1), (0, 0, 1, 0)) + first


def next_causal_sum(
    sums: torch.Tensor, inputs: torch.Tensor, block: torch.Tensor, size: int, pooling: str
) -> torch.Tensor:
    """
    `causal_sums` of one block of each row, from that of the block before.

    Args:
        sums: (B, 1, n, d), of which block i - 1 is read.
        inputs: (B, 1, T, d), the attention's inputs.
        block: i, (B,).

    Returns:
        (B, 1, 1, d)
    """
    if pooling == "first":
        return inputs.take_along_dim((block * size)[:, None, None, None], 2).to(sums.dtype)
    window = block[:, None] * size + torch.arange(1 - size, 1, device=block.device)  # (B, b)
    recent = inputs.take_along_dim(window.clamp(min=0)[:, None, :, None], 2)
    recent = recent.masked_fill((window < 0)[:, None, :, None], 0.0)
    before = sums.take_along_dim((block - 1).clamp(min=0)[:, None, None, None], 2)
    before = before.masked_fill((block == 0)[:, None, None, None], 0.0)
    return before + recent.sum(2, keepdim=True, dtype=sums.dtype)


def scaled_causal_sums(sums: torch.Tensor, size: int, pooling: str) -> torch.Tensor:
    """(R, n, d) of `causal_sums` -> the pooled blocks."""
    return scaled_sums(sums, (torch.arange(sums.shape[1], device=sums.device) * size + 1)[:, None], pooling)


def sinkhorn(logits: torch.Tensor, mask: torch.Tensor | None, iterations: int) -> torch.Tensor:
    """
    Sinkhorn balancing in the log domain: columns and rows are normalised in turn, the rows last.

    Args:
        logits: (..., n, n).
        mask: (..., n), true at the blocks that take part, broadcast to the logits; `None` if all do.
        iterations: how often both are normalised; 0 for a softmax over the rows.

    Returns:
        (..., n, n) in at least float32: rows that add up to 1, and columns that nearly do, on the sub-matrix of the
        blocks that take part; 0 elsewhere.
    """
    return choose(*log_sinkhorn(logits, mask, iterations))[0]


def causal_sinkhorn(logits: torch.Tensor, iterations: int) -> torch.Tensor:
    """
    Causal Sinkhorn balancing: row i chooses among the blocks j < i, and the sum that normalises its columns runs over
    the rows up to i. Row 0 has no past, and is 0.

    A lower-triangular doubly stochastic matrix can only be one thing: with many iterations row i tends to block i - 1,
    whatever the logits are. 0 iterations, a softmax over each row, leave the choice to the logits.

    Args, returns: as for `sinkhorn`, without a mask: no row sees the blocks that follow it.
    """
    return choose(*log_causal_sinkhorn(logits, iterations))[0]


def log_sinkhorn(
    logits: torch.Tensor, mask: torch.Tensor | None, iterations: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The arguments of `sinkhorn` -> the logarithm of S before the last softmax, and the pairs of blocks (`choose`)."""
    pairs = None if mask is None else mask[..., :, None] & mask[..., None, :]
    return _balance(logits, pairs, iterations, lambda x: x.logsumexp(-2, keepdim=True)), pairs


def log_causal_sinkhorn(logits: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_sinkhorn` of a causal model."""
    n = logits.shape[-1]
    pairs = torch.ones(n, n, dtype=torch.bool, device=logits.device).tril(-1)
    return _balance(logits, pairs, iterations, log_sums_so_far), pairs


def log_sums_so_far(matrix: torch.Tensor) -> torch.Tensor:
    """The logsumexp of each column up to and including each row: (..., n, n) -> (..., n, n)."""
    if is_static():
        return written_log_sums(matrix) if has_transforms() else matrix.logcumsumexp(-2)
    return LogSumsSoFar.apply(matrix)


def written_log_sums(matrix: torch.Tensor) -> torch.Tensor:
    """As `log_sums_so_far`, each sum written out, (..., n, n, n)."""
    n = matrix.shape[-1]
    later = future_keys(n, n, 0, matrix.device)[..., None]  # (n, n, 1): up to a row, a row
    return matrix[..., None, :, :].masked_fill(later, -torch.inf).logsumexp(-2)


class LogSumsSoFar(torch.autograd.Function):
    """`logcumsumexp` over rows, which PyTorch differentiates once: the gradient of its gradient is not a number."""

    @staticmethod
    def forward(ctx, matrix):
        ctx.save_for_backward(matrix)
        with torch.enable_grad():
            ctx.matrix = matrix.detach().requires_grad_()
            ctx.sums = ctx.matrix.logcumsumexp(-2)
        return ctx.sums.detach()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            return derivable_gradients(written_log_sums, ctx.saved_tensors, [True], grad)[0]
        return torch.autograd.grad(ctx.sums, ctx.matrix, grad, retain_graph=True)[0]


def _balance(
    logits: torch.Tensor,
    pairs: torch.Tensor | None,
    iterations: int,
    log_column_sums: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    log_matrix = masked(precise(logits), pairs)
    for _ in range(iterations):
        log_matrix = masked(log_matrix - log_column_sums(log_matrix), pairs)
        log_matrix = masked(log_matrix.log_softmax(-1), pairs)
    return log_matrix


def masked(log_matrix: torch.Tensor, pairs: torch.Tensor | None) -> torch.Tensor:
    """Lowest where blocks take no part, but finite: the gradient of a sum of nothing but -inf is not a number."""
    return log_matrix if pairs is None else log_matrix.masked_fill(~pairs, torch.finfo(log_matrix.dtype).min / 4)


def column_residual(matrices: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    How far balancing was from its end: the largest |column sum - 1| over the blocks that take part, without gradient.

    Args:
        matrices: (R, H, n, n) of `sinkhorn`.
        mask: (R, n), true at the blocks that take part; `None` if all do.

    Returns:
        (R, H)
    """
    residual = (matrices.detach().sum(-2) - 1).abs()
    residual = residual if mask is None else residual.masked_fill(~mask[:, None], 0.0)
    # a batch of nothing but padding has no blocks
    return F.pad(residual, (0, 1)).amax(-1)


def gumbel_noise(logits: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise in the shape of the logits."""
    # -log of an exponential variable, which may round to 0
    return -torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny).log()
