"""
Attention of blocks of queries, each to a row of slots of its own, as one fused call or, on a CPU, in products of a few
blocks at a time, which are faster there than the fused kernels at so few keys a query.

B is the batch, H the heads, n the number of blocks, b the size of one, dh the width of a head. The last b of the slots
are the block's own tokens where attention is causal.
"""

import math

import torch

from .dot_product_attention import HIDDEN, LOGITS_AT_ONCE, fused_attention


def runs_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether the forms for a CPU serve: run by Python, in full precision."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    full = tensor.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(tensor.device.type)
    return tensor.device.type == "cpu" and full and not tracing


def block_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Attention of each block's queries to its own row of slots.

    Args:
        queries: (B, H, n, b, dh), scaled already.
        keys, values: (B, H, n, slots, dh).
        bias: (B, H, n, slots) or `None`.
        is_causal: whether query t sees, of the last b slots, those <= t only, and block 0 none but these.

    Returns:
        (B, H, n b, dh)
    """
    batch, heads, n, block_size, width = queries.shape
    hides = is_causal and bias is None and keys.shape[-2] > block_size
    if runs_on_cpu(queries) and not dropout:
        if hides:
            first = torch.arange(n)[:, None] == 0
            past = torch.arange(keys.shape[-2]) < keys.shape[-2] - block_size
            bias = torch.zeros(n, keys.shape[-2], dtype=keys.dtype).masked_fill_(first & past, HIDDEN)
            bias = bias.expand(batch, heads, -1, -1)
        flat = (None if x is None else x.flatten(0, 2) for x in (queries, keys, values, bias))
        return BlockAttention.apply(is_causal, *flat).view(batch, heads, n * block_size, width)
    seen = None
    if is_causal and keys.shape[-2] > block_size:
        seen, is_causal = causal_slots(n, block_size, hides, keys.device), False
    # B H is the batch of the call, n its heads
    queries, keys, values, bias = (None if x is None else x.flatten(0, 1) for x in (queries, keys, values, bias))
    outputs = fused_attention(queries, keys, values, bias, seen, is_causal, dropout)
    return outputs.unflatten(0, (batch, heads)).flatten(2, 3)


def causal_slots(n: int, block_size: int, hide_first: bool, device: torch.device) -> torch.Tensor:
    """
    (1, 1 or n, b, 2 b), true where a causal query sees a slot of [sorted ; own]: every sorted one, and of the
    own those up to itself. `hide_first` hides the sorted slots of block 0, where no bias does.
    """
    own = torch.ones(block_size, block_size, dtype=torch.bool, device=device).tril()
    sorted_ = torch.ones_like(own)[None]
    if hide_first:
        sorted_ = sorted_ & (torch.arange(n, device=device) > 0)[:, None, None]
    # four dimensions: the fused kernel of a CPU takes no mask of three
    return torch.cat((sorted_, own.expand_as(sorted_)), dim=-1)[None]


class BlockAttention(torch.autograd.Function):
    """
    `softmax(queries @ keys^T + bias) @ values` of N = B H n blocks; the backward pass works the weights out again.

    Args:
        is_causal: as for `block_attention`.
        queries: (N, b, dh).
        keys, values: (N, slots, dh).
        bias: (N, slots) or `None`.

    Returns:
        (N, b, dh)
    """

    @staticmethod
    def parts(queries, keys):
        """Slices of the blocks, each as many as are worked on at a time."""
        step = max(1, LOGITS_AT_ONCE // (queries.shape[1] * keys.shape[1]))
        return [slice(start, start + step) for start in range(0, len(queries), step)]

    @staticmethod
    def weights(is_causal, queries, keys, bias):
        logits = torch.bmm(queries, keys.transpose(1, 2))
        if bias is not None:
            logits += bias[:, None]
        if is_causal:
            size = queries.shape[1]
            future = torch.ones(size, size, dtype=torch.bool).triu(1)
            logits[..., -size:].masked_fill_(future, -math.inf)
        return logits.softmax(-1)

    @staticmethod
    def forward(ctx, is_causal, queries, keys, values, bias):
        ctx.save_for_backward(queries, keys, values, bias)
        ctx.is_causal = is_causal
        outputs = queries.new_empty(queries.shape)
        for part in BlockAttention.parts(queries, keys):
            weights = BlockAttention.weights(is_causal, queries[part], keys[part], None if bias is None else bias[part])
            torch.bmm(weights, values[part], out=outputs[part])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_outputs):
        queries, keys, values, bias = ctx.saved_tensors
        grad_outputs = grad_outputs.contiguous()
        grads = [None if x is None else x.new_empty(x.shape) for x in (queries, keys, values, bias)]
        for part in BlockAttention.parts(queries, keys):
            q, k, v, z = (None if x is None else x[part] for x in (queries, keys, values, bias))
            weights, grad = BlockAttention.weights(ctx.is_causal, q, k, z), grad_outputs[part]
            torch.bmm(weights.transpose(1, 2), grad, out=grads[2][part])
            grad = torch.bmm(grad, v.transpose(1, 2))
            grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
            torch.bmm(grad, k, out=grads[0][part])
            torch.bmm(grad.transpose(1, 2), q, out=grads[1][part])
            if bias is not None:
                torch.sum(grad, 1, out=grads[3][part])
        return None, *grads
