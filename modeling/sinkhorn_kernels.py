"""
The hand-written kernels of Sinkhorn attention for a CPU: blocks beside their sorted ones, and attention of blocks in
products of a few blocks at a time, which are faster there than the fused kernels at so few keys a query.

N is the number of blocks of all rows, H of heads, b the size of a block, dh the width of a head.
"""

import math

import torch
from torch.nn import functional as F

from .rows import is_static
from .sinkhorn_choice import Choice, divisor
from .sinkhorn_sort import Blocks
from .softmax_attention import compute_dtype, derivable_gradients, fused_attention, future_keys, precise

# logits that are worked on at a time on a CPU: what a core's own cache holds
LOGITS_AT_ONCE = 2**18


def runs_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether the kernels for a CPU serve: run by Python, in full precision."""
    full = tensor.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(tensor.device.type)
    return tensor.device.type == "cpu" and full and not is_static()


def sorted_blocks(choice: Choice, slots: torch.Tensor, mass: torch.Tensor | None, blocks: Blocks) -> torch.Tensor:
    """
    The m sorted blocks of each block, side by side.

    Args:
        slots: (N, H, b, dh), 0 in empty slots.
        mass: (N, H, m b), or `None` where every slot is full.

    Returns:
        (N, H, m b, dh)
    """
    padded = blocks.to_rows(slots).transpose(1, 2)  # (R, H, n, b, dh)
    if mass is not None:
        mass = blocks.to_rows(mass).transpose(1, 2).unflatten(3, (choice.m, -1)).flatten(2, 3)  # (R, H, n m, b)
    return blocks.to_blocks(choice.by_block(choice.sorted_blocks(padded, mass)))


def sorted_and_own(choice: Choice, slots: torch.Tensor, mass: torch.Tensor | None, blocks: Blocks) -> torch.Tensor:
    """The slots of sorted and own blocks, side by side: arguments of `sorted_blocks` -> (N, H, (m + 1) b, dh)."""
    if not runs_on_cpu(slots):
        return torch.cat((sorted_blocks(choice, slots, mass, blocks), slots), dim=-2)
    return SortedAndOwn.apply(blocks, choice.m, choice.index, choice.weights.to(slots.dtype), slots, mass)


class SortedAndOwn(torch.autograd.Function):
    """`sorted_and_own` without a copy of the blocks but in the result."""

    @staticmethod
    def rows(blocks, m, index, weights):
        """Of each row, head and sorted block: where its weights are, where its blocks are, and the blocks it weighs."""
        start = 0
        for row, n in enumerate(n for rows, n in blocks.groups for _ in range(rows)):
            for head in range(weights.shape[1]):
                for r in range(m):
                    where = row, head, slice(r, n * m, m), slice(n if index is None else None)
                    # a row of fewer than k blocks chooses some that it does not have, with weight 0
                    found = None if index is None else index[where].clamp(max=n - 1)
                    yield where, (slice(start, start + n), head), r, found
            start += n

    @staticmethod
    def forward(ctx, blocks, m, index, weights, slots, mass):
        count, heads, size, width = slots.shape
        both = slots.new_empty(count, heads, m + 1, size, width)
        both[:, :, m] = slots
        for where, here, r, found in SortedAndOwn.rows(blocks, m, index, weights):
            given, into, w = slots[here].flatten(1), both[:, :, r][here].flatten(1), weights[where]
            if found is None:
                torch.mm(w, given, out=into)
            else:
                into.copy_(F.embedding_bag(found, given, per_sample_weights=w, mode="sum"))
        if mass is not None:
            both[:, :, :m] /= divisor(mass).unflatten(2, (m, size))[..., None]
        ctx.save_for_backward(index, weights, slots, mass, both)
        ctx.blocks = blocks
        return both.flatten(2, 3)

    @staticmethod
    def backward(ctx, grad_both):
        index, weights, slots, mass, both = ctx.saved_tensors
        m = both.shape[2] - 1
        sorted_, own = both[:, :, :m], both[:, :, m]  # (N, H, m, b, dh), (N, H, b, dh)
        if torch.is_grad_enabled():

            def plain(weights, slots, mass):
                return torch.cat((sorted_blocks(Choice(weights, index, m), slots, mass, ctx.blocks), slots), dim=-2)

            grads = derivable_gradients(plain, (weights, slots, mass), ctx.needs_input_grad[3:], grad_both)
            return None, None, None, *grads
        grad_both = grad_both.unflatten(2, (m + 1, -1))
        grad_sorted, grad_slots = grad_both[:, :, :m], grad_both[:, :, m].contiguous()
        grad_mass = None
        if mass is not None:
            grad_sorted = grad_sorted / divisor(mass).unflatten(2, (m, -1))[..., None]
            # no gradient where the divisor is bounded
            grad_mass = -(grad_sorted * sorted_).sum(-1).flatten(2).masked_fill(mass < 1e-30, 0.0)
        grad_weights = torch.zeros_like(weights)
        for where, here, r, found in SortedAndOwn.rows(ctx.blocks, m, index, weights):
            given, grad, into = (x[here].flatten(1) for x in (own, grad_sorted[:, :, r], grad_slots))
            w = weights[where]
            if found is None:
                grad_weights[where] = grad @ given.T
                into.addmm_(w.T, grad)
            else:
                # the readers of each block as a bag: three times as fast as adding their gradients one by one
                k, flat = found.shape[1], found.flatten()
                reader, order = torch.arange(len(found)).repeat_interleave(k), flat.argsort(stable=True)
                starts = torch.searchsorted(flat[order], torch.arange(len(given)))
                into.add_(
                    F.embedding_bag(reader[order], grad, starts, per_sample_weights=w.flatten()[order], mode="sum")
                )
                products = torch.ops.aten._embedding_bag_per_sample_weights_backward
                grad_weights[where] = products(grad, given, flat, torch.arange(0, len(flat), k), reader, 0).view_as(w)
        return None, None, None, grad_weights, grad_slots, grad_mass


def block_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_bias: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Attention of each block's queries to its own slots, the last b of which are its own tokens where it is causal.

    Args:
        queries: (N, H, b, dh), scaled already.
        keys, values: (N, H, slots, dh).
        key_bias: (N, H, slots) finite numbers or `None`.
        seen: (N, 1 or H, slots), true at slots that queries may see, at least one in each block; `None` for all.
        is_causal: whether query t sees, of the last b slots, those <= t only.

    Returns:
        (N, H, b, dh)
    """
    count, heads, size, _ = queries.shape
    # without gradients in bfloat16, PyTorch's fused call is as fast or faster
    is_fused = is_static() or dropout or compute_dtype(queries) == torch.bfloat16 and not torch.is_grad_enabled()
    if queries.device.type == "cpu" and not is_fused:
        if seen is not None:
            key_bias = keys.new_zeros(count, heads, keys.shape[2]) if key_bias is None else key_bias
            key_bias = key_bias.masked_fill(~seen, -math.inf)
        return BlockAttention.apply(is_causal, queries, keys, values, key_bias)
    if seen is not None:
        seen = seen[:, :, None]  # (N, 1 or H, 1, slots)
    if is_causal and (seen is not None or keys.shape[2] > size):
        own = ~future_keys(size, size, 0, queries.device)
        past = torch.ones(size, keys.shape[2] - size, dtype=torch.bool, device=queries.device)
        causal = torch.cat((past, own), dim=1)[None, None]
        seen, is_causal = causal if seen is None else seen & causal, False
    return fused_attention(queries, keys, values, key_bias, seen, is_causal, dropout)


class BlockAttention(torch.autograd.Function):
    """
    `softmax(queries @ keys^T + bias) @ values` for each block and head; the backward pass computes the weights again.
    Half precision is worked on in float32: with gradients this takes 0.3 to 0.8 of the time of PyTorch's fused call in
    bfloat16, and 0.2 in float16.

    Args:
        is_causal: as for `block_attention`.
        queries: (N, H, b, dh).
        keys, values: (N, H, slots, dh).
        bias: (N, H, slots) or `None`.

    Returns:
        (N, H, b, dh)
    """

    @staticmethod
    def parts(queries, keys):
        """Slices of the blocks, each as many as are worked on at a time."""
        step = max(1, LOGITS_AT_ONCE // (queries.shape[1] * queries.shape[2] * keys.shape[2]))
        return [slice(start, start + step) for start in range(0, len(queries), step)]

    @staticmethod
    def flat(part, *tensors):
        """(N, H, ...) -> (blocks of the part times H, ...)"""
        return (None if x is None else x[part].flatten(0, 1) for x in tensors)

    @staticmethod
    def exact(part, *tensors):
        """The same in at least float32."""
        return (None if x is None else precise(x) for x in BlockAttention.flat(part, *tensors))

    @staticmethod
    def product(left, right, into):
        """`left @ right`, written into `into`."""
        if into.dtype == left.dtype:
            torch.bmm(left, right, out=into)
        else:
            into.copy_(torch.bmm(left, right))

    @staticmethod
    def weights(is_causal, queries, keys, bias):
        logits = torch.bmm(queries, keys.transpose(1, 2))
        if bias is not None:
            logits += bias[:, None]
        if is_causal:
            size = queries.shape[1]
            logits[..., -size:].masked_fill_(future_keys(size, size, 0, logits.device), -math.inf)
        return logits.softmax(-1)

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx, is_causal, queries, keys, values, bias):
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.is_causal = is_causal
        outputs = values.new_empty(queries.shape)
        for part in BlockAttention.parts(queries, keys):
            q, k, v, z = BlockAttention.exact(part, queries, keys, values, bias)
            (into,) = BlockAttention.flat(part, outputs)
            BlockAttention.product(BlockAttention.weights(is_causal, q, k, z), v, into)
        return outputs

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad_outputs):
        given = queries, keys, values, bias = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(queries, keys, values, bias):
                logits = precise(queries) @ precise(keys).transpose(-1, -2)
                logits = logits if bias is None else logits + bias[:, :, None]
                if ctx.is_causal:
                    size = queries.shape[2]
                    future = future_keys(size, size, 0, logits.device)
                    logits = logits.masked_fill(F.pad(future, (keys.shape[2] - size, 0)), -math.inf)
                return (logits.softmax(-1) @ precise(values)).to(values.dtype)

            return None, *derivable_gradients(plain, given, ctx.needs_input_grad[1:], grad_outputs)
        grad_outputs = grad_outputs.contiguous()
        grads = [None if x is None else x.new_empty(x.shape) for x in given]
        for part in BlockAttention.parts(queries, keys):
            q, k, v, z, grad = BlockAttention.exact(part, *given, grad_outputs)
            into_q, into_k, into_v, into_bias = BlockAttention.flat(part, *grads)
            weights = BlockAttention.weights(ctx.is_causal, q, k, z)
            BlockAttention.product(weights.transpose(1, 2), grad, into_v)
            grad = torch.bmm(grad, v.transpose(1, 2))
            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
            BlockAttention.product(grad, k, into_q)
            BlockAttention.product(grad.transpose(1, 2), q, into_k)
            if bias is not None:
                torch.sum(grad, 1, out=into_bias)
        return None, *grads
