"""
Softmax attention for any logits of a Synthesizer, a tile of query rows at a time: memory O(L) beside the inputs, in the
backward pass too, which computes each tile again. `TiledAttention` takes any logits; `SharedAttention` takes logits of
positions alone, which all rows share.

H is the number of heads, T of tokens, R of rows, w the width of a value; a group of rows is (row count, length).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows, is_static
from .softmax_attention import compute_dtype, derivable_gradients, future_keys, literal_attention, precise, split_heads
from .synthesizer_logits import Logits, expand_factors, pad_features

# logits that are worked on at a time on a CPU: what a core's own cache holds
LOGITS_AT_ONCE = 2**18
# query rows of a tile: as few as a product needs to be fast
ROWS = 64
# logits of a tile that keep an accelerator busy
TILE = 2**25
# the least sum of weights that is still exact: what a row sees of the softmax over a longer one
LEAST_SUM = 1e-16
# in float16, which has no room for weights far below 1, nor for gradients that are divided by their sum
LEAST_HALF_SUM = 0.5


def tiled_attention(terms: Logits, values: torch.Tensor, rows: Rows, is_causal: bool) -> torch.Tensor:
    """
    Attention for any `Logits` of tokens and positions: (1, H, T, w) values -> (1, T, H w).

    A traced graph cannot loop over lengths that it does not know, and writes the weights out.
    """
    if is_static():
        return written_attention(rows, is_causal, values, *terms)
    is_shared = all(x.dim() < 4 for _, x in terms.items())
    kernel = SharedAttention if is_shared else TiledAttention
    return kernel.apply(rows, is_causal, values.contiguous(), *pad_features(terms))


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


def logits_at_once(device: torch.device) -> int:
    return LOGITS_AT_ONCE if device.type == "cpu" else TILE


def tiles(group: Group, head: int, is_causal: bool, device: torch.device) -> Iterator[Tile]:
    """The tiles that cover the logits of a group's rows."""
    queries = max(ROWS, logits_at_once(device) // group.length)
    at_once = max(1, logits_at_once(device) // (queries * group.length))
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
    if compute_dtype(left) != torch.float16:
        return left @ right
    return exact_product(left.float(), right.float())


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
        ctx.options = rows, is_causal, autocast_of(values)
        outputs, terms = torch.empty_like(values), Logits(*terms)
        for group in groups_of_tokens(rows.groups):
            for head in range(values.shape[1]):
                y, v = group.of(outputs, head), group.of(values, head)
                for tile in tiles(group, head, is_causal, values.device):
                    weights = tile_weights(terms, tile, is_causal).to(values.dtype)
                    tile.of_rows(y)[:, tile.queries] = weights @ tile.of_rows(v)[:, tile.keys]
        return outputs.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx, grad_outputs):
        values, *terms = ctx.saved_tensors
        rows, is_causal, autocast = ctx.options
        needs_values, *needed = needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *written_gradients(rows, is_causal, values, terms, needs, grad_outputs)
        grad_outputs = split_heads(grad_outputs, values.shape[1]).contiguous()
        sums = empty_sums(values, terms, needs)
        grads, terms = Logits(*sums[1:]), Logits(*terms)
        with torch.autocast(*autocast):
            for group in groups_of_tokens(rows.groups):
                for head in range(values.shape[1]):
                    v, grad_y = group.of(values, head), group.of(grad_outputs, head)
                    for tile in tiles(group, head, is_causal, values.device):
                        weights = tile_weights(terms, tile, is_causal)
                        grad = tile.of_rows(grad_y)[:, tile.queries]
                        if needs_values:
                            into = tile.of_rows(group.of(sums[0], head))[:, tile.keys]
                            add_product(into, weights.transpose(-1, -2).to(grad.dtype), grad)
                        if any(needed):
                            grad = grad @ tile.of_rows(v)[:, tile.keys].transpose(-1, -2)
                            grad, weights = grad.to(weights.dtype), weights.expand(len(grad), -1, -1)
                            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
                            add_gradients(grads, terms, tile, grad.to(values.dtype))
        return None, None, *in_dtype_of(sums, (values, *terms))


class Columns:
    """
    Tokens laid out for weights that all rows share: (longest, R, w), a row's tokens one below the other, rows in
    ascending order of length, 0 below a row's last token. A product with the values of many rows is then one product.
    """

    def __init__(self, rows: Rows, values: torch.Tensor):
        # positions that rows of different length go through together: few zeros, and products that are fast
        self.step = 8 * ROWS // values.element_size()
        self.least_sum = LEAST_HALF_SUM if values.dtype == torch.float16 else LEAST_SUM
        order = sorted(range(rows.num_rows), key=rows.lengths.__getitem__)
        self.lengths = [rows.lengths[row] for row in order]
        self.slots: torch.Tensor | None = None  # (T,), unless all rows are of one length
        if not rows.has_one_length:
            place = torch.empty(len(order), dtype=torch.long, device=values.device)
            place[order] = torch.arange(len(order), device=values.device)
            self.slots = rows.token_ranks() * len(order) + place[rows.token_rows()]

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T, w) -> (longest, R, w)"""
        shape = self.lengths[-1], len(self.lengths)
        if self.slots is None:
            return tokens.unflatten(0, shape[::-1]).transpose(0, 1).contiguous()
        empty = tokens.new_zeros(shape[0] * shape[1], tokens.shape[-1])
        return empty.index_copy(0, self.slots, tokens).unflatten(0, shape)

    def tokens(self, columns: torch.Tensor) -> torch.Tensor:
        """(longest, R, w) -> (T, w)"""
        if self.slots is None:
            return columns.transpose(0, 1).flatten(0, 1)
        return columns.flatten(0, 1).index_select(0, self.slots)

    def seen(self, keys: int, rows: slice, like: torch.Tensor) -> torch.Tensor:
        """(keys, rows), 1 at the keys of each row."""
        lengths = torch.tensor(self.lengths[rows], device=like.device)
        return (torch.arange(keys, device=like.device)[:, None] < lengths).to(like.dtype)

    def products(self, keys: int, rows: slice) -> Iterator[tuple[slice, slice]]:
        """Keys, and the rows among these that have them: all `keys` in few products, with few zeros in them."""
        start = 0
        while start < keys:
            first = max(rows.start, bisect_right(self.lengths, start))
            stop = min(keys, max(self.lengths[first], start + self.step))
            yield slice(start, stop), slice(first, rows.stop)
            start = stop

    def tiles(self, terms: Logits, head: int, is_causal: bool, device: torch.device):
        """
        Yields tiles of one head, the rows that they serve, their weights over the keys of the longest of these rows,
        (queries, keys), and what each row sees of them in sum, (queries, rows) or `None` if all see all.
        """
        at_once = max(ROWS, logits_at_once(device) // max(1, self.lengths[-1]))
        if self.slots is not None:
            at_once = min(at_once, self.step)
        for start in range(0, self.lengths[-1], at_once):
            parts = [slice(bisect_right(self.lengths, start), len(self.lengths))]
            while parts:
                rows = parts.pop()
                shortest, longest = self.lengths[rows.start], self.lengths[rows.stop - 1]
                own = slice(start, min(start + at_once, longest))
                keys = slice(0, own.stop if is_causal else longest)
                tile = Tile(Group(slice(0), 1, longest), head, slice(0, 1), own, keys)
                weights, sums = tile_weights(terms, tile, is_causal)[0], None
                if shortest < longest and not is_causal:
                    sums = exact_product(weights, self.seen(longest, rows, weights))
                    if sums.min() < self.least_sum:
                        # rows that see next to nothing of this softmax get their own
                        middle = self.lengths[(rows.start + rows.stop) // 2]
                        border = bisect_left(self.lengths, middle)
                        border = border if border > rows.start else bisect_right(self.lengths, middle)
                        parts += [slice(rows.start, border), slice(border, rows.stop)]
                        continue
                yield tile, rows, weights, sums


class SharedAttention(torch.autograd.Function):
    """
    `TiledAttention` for terms of positions only. All rows share one softmax, over the keys of the longest: what a
    shorter row sees of it is divided by its sum.
    """

    @staticmethod
    def forward(ctx, rows, is_causal, values, *terms):
        columns, outputs, terms = Columns(rows, values), torch.empty_like(values), Logits(*terms)
        for head in range(values.shape[1]):
            v = columns.of(values[0, head])
            y = torch.zeros_like(v, dtype=precise(v[:0]).dtype)
            for tile, of_rows, weights, sums in columns.tiles(terms, head, is_causal, values.device):
                weights = weights.to(v.dtype)
                for keys, with_keys in columns.products(tile.keys.stop, of_rows):
                    add_matrix(y[tile.queries, with_keys].flatten(1), weights[:, keys], v[keys, with_keys].flatten(1))
                if sums is not None:
                    y[tile.queries, of_rows] /= sums[..., None]
            outputs[0, head] = columns.tokens(y)
        outputs = outputs.transpose(1, 2).flatten(2)
        ctx.save_for_backward(outputs, values, *terms)
        ctx.options = rows, is_causal, autocast_of(values), columns
        return outputs

    @staticmethod
    def backward(ctx, grad_outputs):
        outputs, values, *terms = ctx.saved_tensors
        rows, is_causal, autocast, columns = ctx.options
        needs_values, *needed = needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *written_gradients(rows, is_causal, values, terms, needs, grad_outputs)
        is_ragged = columns.slots is not None and not is_causal
        if is_ragged:
            inner = (precise(grad_outputs) * outputs).unflatten(-1, (values.shape[1], -1)).sum(-1)  # (1, T, H)
        grad_outputs = split_heads(grad_outputs, values.shape[1])
        sums = empty_sums(values, terms, needs)
        grads, terms = Logits(*sums[1:]), Logits(*terms)
        with torch.autocast(*autocast):
            for head in range(values.shape[1]):
                v, grad_y = columns.of(values[0, head]), columns.of(grad_outputs[0, head])
                inner_y = columns.of(inner[0, :, head, None])[..., 0] if is_ragged else None
                grad_v = torch.zeros_like(v, dtype=precise(v[:0]).dtype)
                for tile, of_rows, weights, seen in columns.tiles(terms, head, is_causal, values.device):
                    dy = grad_y[tile.queries]
                    if seen is not None:
                        dy, dot = dy.clone(), inner_y[tile.queries, of_rows] / seen
                        dy[:, of_rows] /= seen[..., None]
                    grad, transposed = torch.empty_like(weights), weights.to(dy.dtype).T
                    for keys, with_keys in columns.products(tile.keys.stop, of_rows):
                        own = dy[:, with_keys].flatten(1)
                        if needs_values:
                            add_matrix(grad_v[keys, with_keys].flatten(1), transposed[keys], own)
                        if any(needed):
                            grad[:, keys] = own @ v[keys, with_keys].flatten(1).T
                    if seen is None and any(needed):
                        grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
                    elif any(needed):
                        grad = (grad - exact_product(dot, columns.seen(tile.keys.stop, of_rows, dot).T)) * weights
                    if any(needed):
                        add_gradients(grads, terms, tile, grad[None].to(values.dtype))
                if needs_values:
                    sums[0][0, head] = columns.tokens(grad_v)
        return None, None, *in_dtype_of(sums, (values, *terms))


def add_matrix(to: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to a view."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to.add_(left @ right)


def exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product that autocast leaves alone."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def autocast_of(tensor: torch.Tensor) -> tuple[str, torch.dtype, bool]:
    """The arguments of `torch.autocast` as it is now, for the backward pass."""
    device = tensor.device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def empty_sums(values, terms, needed) -> list[torch.Tensor | None]:
    """Zeros to add the gradients of values and terms to: sums over many tiles want more than half precision."""
    matrix = Logits(*terms).matrix
    return [
        x.new_zeros(x.shape, dtype=x.dtype if x is matrix else precise(x[:0]).dtype) if need else None
        for x, need in zip((values, *terms), needed, strict=True)
    ]


def in_dtype_of(sums, inputs) -> list[torch.Tensor | None]:
    return [None if x is None else x.to(given.dtype) for x, given in zip(sums, inputs, strict=True)]


def written_gradients(rows, is_causal, values, terms, needed, grad_outputs) -> list[torch.Tensor | None]:
    """Gradients that have gradients themselves."""
    written = partial(written_attention, rows, is_causal)
    return derivable_gradients(written, (values, *terms), needed, grad_outputs)
