"""
Softmax attention for any sum of logits, a tile of query rows at a time: memory O(L) beside what is given, in the
backward pass too, which recomputes each tile.

B is the batch, H the heads, L the length, w the width of a value. A size written "1 or B" may be shared by the batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .dot_product_attention import LOGITS_AT_ONCE, guarded_softmax, is_above_guard, masked_softmax
from .synthesizer_logits import Logits, expand_factors

# query rows of a tile: as few as a product needs to be fast
ROWS = 64
# logits of a tile that keep an accelerator busy
TILE = 2**25


class Tile(NamedTuple):
    """Where a tile lies: a head, some of the batch, some rows, and the columns that these may see."""

    head: int
    batch: slice
    rows: slice
    columns: slice

    def of_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """(1 or B, H, L, ...) -> (1 or batch, rows, ...)"""
        return tensor[self.of_batch(tensor), self.head, self.rows]

    def of_columns(self, tensor: torch.Tensor) -> torch.Tensor:
        """(1 or B, H, L, ...) -> (1 or batch, columns, ...)"""
        return tensor[self.of_batch(tensor), self.head, self.columns]

    def of_matrix(self, matrix: torch.Tensor) -> torch.Tensor:
        """(H, L, L) -> (rows, columns)"""
        return matrix[self.head, self.rows, self.columns]

    def of_batch(self, tensor: torch.Tensor) -> slice:
        return slice(None) if tensor.shape[0] == 1 else self.batch


def tiles(values: torch.Tensor, is_causal: bool) -> Iterator[Tile]:
    """The tiles that cover the weights of (B, H, L, w) values."""
    batch, heads, length, _ = values.shape
    largest = LOGITS_AT_ONCE if values.device.type == "cpu" else TILE
    rows = max(ROWS, largest // length)
    at_once = max(1, largest // (rows * length))
    for head in range(heads):
        for first in range(0, batch, at_once):
            for start in range(0, length, rows):
                stop = min(length, start + rows)
                columns = slice(0, stop if is_causal else length)
                yield Tile(head, slice(first, first + at_once), slice(start, stop), columns)


def tile_logits(terms: Logits, tile: Tile) -> torch.Tensor:
    """(1 or batch, rows, columns)"""
    parts = []
    if terms.queries is not None:
        parts.append(tile.of_rows(terms.queries) @ tile.of_columns(terms.keys).transpose(-1, -2))
    if terms.key_bias is not None:
        parts.append(tile.of_columns(terms.key_bias)[:, None].expand(-1, tile.rows.stop - tile.rows.start, -1))
    if terms.matrix is not None:
        matrix = tile.of_matrix(terms.matrix)
        parts.append(matrix[None] if terms.matrix_scale is None else matrix[None] * terms.matrix_scale[tile.head])
    if terms.slow is not None:
        parts.append(expand_factors(tile.of_rows(terms.slow), tile.of_rows(terms.fast), tile.columns.stop))
    return sum(parts[1:], parts[0])


def add_gradients(grads: Logits, terms: Logits, tile: Tile, grad: torch.Tensor) -> None:
    """Add to `grads`, whose terms are `None` where none is wanted, what the gradient of `tile_logits` gives."""
    if grads.queries is not None:
        add_product(tile.of_rows(grads.queries), grad, tile.of_columns(terms.keys))
    if grads.keys is not None:
        add_product(tile.of_columns(grads.keys), grad.transpose(-1, -2), tile.of_rows(terms.queries))
    if grads.key_bias is not None:
        add(tile.of_columns(grads.key_bias), grad.sum(1))
    if terms.matrix is not None:
        shared = grad[0] if len(grad) == 1 else grad.sum(0)
        if grads.matrix_scale is not None:
            grads.matrix_scale[tile.head] += (shared * tile.of_matrix(terms.matrix)).sum()
        if terms.matrix_scale is not None:
            shared = shared * terms.matrix_scale[tile.head]
        if grads.matrix is not None:
            tile.of_matrix(grads.matrix).add_(shared)
    if terms.slow is None:
        return
    slow, fast = tile.of_rows(terms.slow), tile.of_rows(terms.fast)  # (batch, rows, a), (batch, rows, b)
    grad = F.pad(grad, (0, slow.shape[-1] * fast.shape[-1] - grad.shape[-1])).unflatten(-1, (-1, fast.shape[-1]))
    if grads.slow is not None:
        add(tile.of_rows(grads.slow), (grad * fast[..., None, :]).sum(-1))
    if grads.fast is not None:
        add(tile.of_rows(grads.fast), (grad * slow[..., :, None]).sum(-2))


def add(to: torch.Tensor, tensor: torch.Tensor) -> None:
    """Add to a gradient, summed over what it shares."""
    to.add_(tensor.sum_to_size(to.shape))


def add_product(to: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to a gradient, summed over what it shares."""
    if to.shape[0] == left.shape[0] == right.shape[0] and to.dtype == left.dtype == right.dtype:
        to.baddbmm_(left, right)
    else:
        # values that are summed in float32 beside logits in half precision
        add(to, left @ right.to(left.dtype))


class TiledAttention(torch.autograd.Function):
    """
    `softmax(logits) @ values` over the keys that a query may see.

    Args:
        mask: (B, L), true at valid keys, or `None`.
        is_causal: whether query i sees keys <= i only.
        is_guarded: whether the weights stay positive, as `guarded_softmax` makes them.
        values: (B, H, L, w).
        terms: those of `Logits`.

    Returns:
        (B, H, L, w)
    """

    @staticmethod
    def forward(ctx, mask, is_causal, is_guarded, values, *terms):
        ctx.save_for_backward(mask, values, *terms)
        ctx.options = is_causal, is_guarded
        device = values.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        outputs = torch.empty_like(values, memory_format=torch.contiguous_format)
        for tile in tiles(values, is_causal):
            weights = TiledAttention.weights(mask, is_causal, is_guarded, Logits(*terms), tile)
            tile.of_rows(outputs).copy_(weights.to(values.dtype) @ tile.of_columns(values))
        return outputs

    @staticmethod
    def weights(mask, is_causal, is_guarded, terms, tile):
        """(1 or batch, rows, columns), in at least float32."""
        logits = tile_logits(terms, tile)
        if is_guarded:
            return guarded_softmax(logits, is_causal, tile.rows.start)
        seen = None if mask is None else mask[tile.batch, tile.columns]
        return masked_softmax(logits[:, None], seen, is_causal, tile.rows.start)[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_outputs):
        mask, values, *terms = ctx.saved_tensors
        terms = Logits(*terms)
        needs_values, *needed = ctx.needs_input_grad[3:]
        # sums over many tiles want more than half precision
        sums = [
            x.new_zeros(x.shape, dtype=x.dtype if x is terms.matrix else torch.promote_types(x.dtype, torch.float32))
            if need
            else None
            for x, need in zip((values, *terms), (needs_values, *needed), strict=True)
        ]
        grads, grad_outputs = Logits(*sums[1:]), grad_outputs.contiguous()
        with torch.autocast(*ctx.autocast):
            for tile in tiles(values, ctx.options[0]):
                weights = TiledAttention.weights(mask, *ctx.options, terms, tile)
                grad = tile.of_rows(grad_outputs)
                if needs_values:
                    add_product(tile.of_columns(sums[0]), weights.transpose(-1, -2).to(grad.dtype), grad)
                if not any(needed):
                    continue
                grad = (grad @ tile.of_columns(values).transpose(-1, -2)).to(weights.dtype)
                weights = weights.expand_as(grad)
                grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
                if ctx.options[1]:
                    grad = grad * is_above_guard(weights)
                add_gradients(grads, terms, tile, grad.to(values.dtype))
        sums = [None if x is None else x.to(given.dtype) for x, given in zip(sums, (values, *terms), strict=True)]
        return None, None, None, *sums
