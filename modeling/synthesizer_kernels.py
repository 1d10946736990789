"""
Softmax attention for any logits of a Synthesizer, a tile of query rows at a time: memory O(L) beside the inputs, in the
backward pass too, which computes each tile again. Rows of one length share what depends on the length alone.

H is the number of heads, T of tokens, w the width of a value; a group of rows is (row count, length).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows, is_static
from .softmax_attention import derivable_gradients, future_keys, literal_attention, precise, split_heads
from .synthesizer_logits import Logits, expand_factors, pad_features

# logits that are worked on at a time on a CPU: what a core's own cache holds
LOGITS_AT_ONCE = 2**18
# query rows of a tile: as few as a product needs to be fast
ROWS = 64
# logits of a tile that keep an accelerator busy
TILE = 2**25


def tiled_attention(terms: Logits, values: torch.Tensor, rows: Rows, is_causal: bool) -> torch.Tensor:
    """
    Attention for any `Logits` of tokens and positions: (1, H, T, w) values -> (1, T, H w).

    A traced graph cannot loop over lengths that it does not know, and writes the weights out.
    """
    if is_static():
        return written_attention(rows, is_causal, values, *terms)
    return TiledAttention.apply(rows, is_causal, values.contiguous(), *pad_features(terms))


def written_attention(rows: Rows, is_causal: bool, values: torch.Tensor, *terms: torch.Tensor | None) -> torch.Tensor:
    """As `tiled_attention`, the weights of each group of rows written out."""
    batches = zip(Logits(*terms).batches(rows), rows.split(values), strict=True)
    return rows.join([literal_attention(x.written(v.shape[2]), v, rows.mask, is_causal)[0] for x, v in batches])


class Group(NamedTuple):
    """Rows of one length: where their tokens are, and how many rows there are."""

    tokens: slice
    rows: int
    length: int

    def of(self, tensor: torch.Tensor, head: int) -> torch.Tensor:
        """(1, H, T, w) of tokens -> (rows, length, w), or (H, N, w) of positions -> (1, length, w), of one head."""
        if tensor.dim() == 3:
            return tensor[head, None, : self.length]
        return tensor[0, head, self.tokens].unflatten(0, (self.rows, self.length))


def groups_of_tokens(groups: tuple[tuple[int, int], ...]) -> Iterator[Group]:
    start = 0
    for rows, length in groups:
        stop = start + rows * length
        if stop > start:
            yield Group(slice(start, stop), rows, length)
        start = stop


class Tile(NamedTuple):
    """A part of one head's logits: some rows of a group, some queries, and the keys that these may see."""

    group: Group
    head: int
    rows: slice
    queries: slice
    keys: slice

    def of_queries(self, tensor: torch.Tensor) -> torch.Tensor:
        """-> (1 or rows, queries, w)"""
        return self.of_rows(self.group.of(tensor, self.head))[:, self.queries]

    def of_keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """-> (1 or rows, keys, w)"""
        return self.of_rows(self.group.of(tensor, self.head))[:, self.keys]

    def of_matrix(self, matrix: torch.Tensor) -> torch.Tensor:
        """(H, N, N) -> (queries, keys)"""
        return matrix[self.head, self.queries, self.keys]

    def of_bias(self, bias: torch.Tensor) -> torch.Tensor:
        """(H, N) -> (keys,)"""
        return bias[self.head, self.keys]

    def of_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if len(tensor) == 1 else tensor[self.rows]


def tiles(group: Group, head: int, is_shared: bool, is_causal: bool, is_cpu: bool) -> Iterator[Tile]:
    """The tiles that cover the logits of a group's rows; rows that share them are one."""
    largest = LOGITS_AT_ONCE if is_cpu else TILE
    queries = max(ROWS, largest // group.length)
    at_once = group.rows if is_shared else max(1, largest // (queries * group.length))
    for first in range(0, group.rows, at_once):
        for start in range(0, group.length, queries):
            stop = min(group.length, start + queries)
            keys = slice(0, stop if is_causal else group.length)
            yield Tile(group, head, slice(first, first + at_once), slice(start, stop), keys)


def tile_weights(terms: Logits, tile: Tile, is_causal: bool) -> torch.Tensor:
    """(1 or rows, queries, keys) weights, in at least float32."""
    parts = []
    if terms.queries is not None:
        parts.append(wide_product(tile.of_queries(terms.queries), tile.of_keys(terms.keys).transpose(-1, -2)))
    if terms.key_bias is not None:
        parts.append(tile.of_bias(terms.key_bias)[None, None])
    if terms.matrix is not None:
        matrix = tile.of_matrix(terms.matrix)
        parts.append(matrix[None] if terms.matrix_scale is None else matrix[None] * terms.matrix_scale[tile.head])
    if terms.slow is not None:
        parts.append(expand_factors(tile.of_queries(terms.slow), tile.of_queries(terms.fast), tile.keys.stop))
    logits = sum(map(precise, parts[1:]), precise(parts[0]))
    if is_causal:
        start = tile.queries.start
        # keys before the tile's first query are seen by all of it
        future = future_keys(logits.shape[1], tile.keys.stop - start, 0, logits.device)
        if len(parts) == 1 and terms.queries is None:
            # a part of a parameter
            logits = logits.clone()
        logits[..., start:].masked_fill_(future, -torch.inf)
    return logits.softmax(-1)


def wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right` for the features of several members: in float32 where float16 may be too narrow for their sum."""
    device = left.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else left.dtype
    if dtype != torch.float16:
        return left @ right
    with torch.autocast(device, enabled=False):
        return left.float() @ right.float()


def add_gradients(grads: Logits, terms: Logits, tile: Tile, grad: torch.Tensor) -> None:
    """Add to `grads`, whose terms are `None` where none is wanted, the gradient that a tile's logits give them."""
    if grads.queries is not None:
        add_product(tile.of_queries(grads.queries), grad, tile.of_keys(terms.keys))
    if grads.keys is not None:
        add_product(tile.of_keys(grads.keys), grad.transpose(-1, -2), tile.of_queries(terms.queries))
    if grads.key_bias is not None:
        tile.of_bias(grads.key_bias).add_(grad.sum((0, 1)))
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
    slow, fast = tile.of_queries(terms.slow), tile.of_queries(terms.fast)  # (rows, queries, a), (rows, queries, b)
    grad = F.pad(grad, (0, slow.shape[-1] * fast.shape[-1] - grad.shape[-1])).unflatten(-1, (-1, fast.shape[-1]))
    if grads.slow is not None:
        tile.of_queries(grads.slow).add_((grad * fast[..., None, :]).sum(-1))
    if grads.fast is not None:
        tile.of_queries(grads.fast).add_((grad * slow[..., :, None]).sum(-2))


def add_product(to: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to a gradient, summed over the rows that share it."""
    if to.shape[0] == left.shape[0] == right.shape[0] and to.dtype == left.dtype == right.dtype:
        to.baddbmm_(left, right)
    else:
        # values that are summed in float32 beside logits in half precision
        to.add_((left @ right.to(left.dtype)).sum_to_size(to.shape))


class TiledAttention(torch.autograd.Function):
    """
    `softmax(logits) @ values` over the keys of a query's own row, those up to itself if causal.

    Args:
        rows: the rows of the tokens.
        is_causal: whether query i sees keys <= i only.
        values: (1, H, T, w).
        terms: those of `Logits`, of tokens and positions.

    Returns:
        (1, T, H w)
    """

    @staticmethod
    def forward(ctx, rows, is_causal, values, *terms):
        ctx.save_for_backward(values, *terms)
        ctx.options = rows, is_causal
        device = values.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        terms, is_shared = Logits(*terms), share_weights(terms)
        outputs = torch.empty_like(values)
        for group in groups_of_tokens(rows.groups):
            for head in range(values.shape[1]):
                own, v = group.of(outputs, head), group.of(values, head)
                v = folded(v) if is_shared else v
                y = torch.empty_like(v) if is_shared else own
                for tile in tiles(group, head, is_shared, is_causal, device == "cpu"):
                    weights = tile_weights(terms, tile, is_causal).to(values.dtype)
                    tile.of_rows(y)[:, tile.queries] = weights @ tile.of_rows(v)[:, tile.keys]
                if is_shared:
                    own.copy_(unfolded(y, group.rows))
        return outputs.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx, grad_outputs):
        values, *terms = ctx.saved_tensors
        rows, is_causal = ctx.options
        if torch.is_grad_enabled():
            written = partial(written_attention, rows, is_causal)
            return None, None, *derivable_gradients(written, (values, *terms), ctx.needs_input_grad[2:], grad_outputs)
        grad_outputs = split_heads(grad_outputs, values.shape[1]).contiguous()
        needs_values, *needed = ctx.needs_input_grad[2:]
        matrix = Logits(*terms).matrix
        # sums over many tiles want more than half precision
        sums = [
            x.new_zeros(x.shape, dtype=x.dtype if x is matrix else precise(x[:0]).dtype) if need else None
            for x, need in zip((values, *terms), (needs_values, *needed), strict=True)
        ]
        grads, terms, is_shared = Logits(*sums[1:]), Logits(*terms), share_weights(terms)
        with torch.autocast(*ctx.autocast):
            for group in groups_of_tokens(rows.groups):
                for head in range(values.shape[1]):
                    v, grad_y = group.of(values, head), group.of(grad_outputs, head)
                    own = group.of(sums[0], head) if needs_values else None
                    v, grad_y = (folded(v), folded(grad_y)) if is_shared else (v, grad_y)
                    grad_v = sums[0].new_zeros(v.shape) if is_shared and needs_values else own
                    for tile in tiles(group, head, is_shared, is_causal, values.device.type == "cpu"):
                        weights = tile_weights(terms, tile, is_causal)
                        grad = tile.of_rows(grad_y)[:, tile.queries]
                        if needs_values:
                            into = tile.of_rows(grad_v)[:, tile.keys]
                            add_product(into, weights.transpose(-1, -2).to(grad.dtype), grad)
                        if any(needed):
                            grad = grad @ tile.of_rows(v)[:, tile.keys].transpose(-1, -2)
                            grad, weights = grad.to(weights.dtype), weights.expand(len(grad), -1, -1)
                            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
                            add_gradients(grads, terms, tile, grad.to(values.dtype))
                    if is_shared and needs_values:
                        own.copy_(unfolded(grad_v, group.rows))
        sums = [None if x is None else x.to(given.dtype) for x, given in zip(sums, (values, *terms), strict=True)]
        return None, None, *sums


def share_weights(terms: Sequence[torch.Tensor | None]) -> bool:
    """Whether all terms are of positions, so that rows of one length share their weights."""
    return all(x is None or x.dim() < 4 for x in terms)


def folded(values: torch.Tensor) -> torch.Tensor:
    """(rows, L, w) -> (1, L, rows w): the values of rows that share their weights are columns of one product."""
    return values.transpose(0, 1).flatten(1)[None]


def unfolded(values: torch.Tensor, rows: int) -> torch.Tensor:
    """(1, L, rows w) -> (rows, L, w)"""
    return values[0].unflatten(1, (rows, -1)).transpose(0, 1)
