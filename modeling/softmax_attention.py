"""
Softmax attention on tensors: the softmaxes, the literal form and the fused call that the families share.

| attention | in | for | memory |
|---|---|---|---|
| `literal_attention` | here | any logits, written out; returns the weights | O(L^2) |
| `seen_attention` | here | new tokens behind a cache, any logits | O(L), one query |
| `fused_attention` | here | logits that are products of features: one SDPA call | O(L) |
| `tiled_attention` | `synthesizer_kernels.py` | any logits of a Synthesizer, a tile of rows at a time | O(L) |
| `sinkhorn_attention` | `sinkhorn_attention.py` | blocks and sorted blocks | O(L) |
| `literal_sinkhorn_attention` | `sinkhorn_attention.py` | the same, slot by slot; returns the weights | O(L^2) |
| `block_attention` | `sinkhorn_kernels.py` | blocks of queries, each with slots of its own | O(L) |
| `decode_blocks` | `sinkhorn_decoding.py` | new tokens behind a cache, of Sinkhorn | O(b), one query |

`masked_softmax` takes a padding mask of keys and causality, `seen_softmax` any mask and gives 0 where nothing is seen;
the third softmax is the kernels' own.

R is the number of rows, H of heads, L the length, dh the width of a head. A size written "1 or R" may be shared by the
rows. A `mask` is (R, L), true at valid keys, or `None`; valid tokens come first in a row, and no row is without one.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from .rows import is_static


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """What a product of the tensor is computed in: the type of autocast, or its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def split_heads(hidden_states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(R, L, H w) -> (R, H, L, w)"""
    return hidden_states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(states: torch.Tensor) -> torch.Tensor:
    """(R, H, L, w) -> (R, L, H w)"""
    return states.transpose(1, 2).flatten(2)


def future_keys(rows: int, columns: int, first_row: int, device: torch.device) -> torch.Tensor:
    """(rows, columns), true where a key is later than the query; the queries begin at `first_row`."""
    return torch.ones(rows, columns, dtype=torch.bool, device=device).triu(1 + first_row)


def masked_softmax(
    logits: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, first_row: int = 0
) -> torch.Tensor:
    """
    Softmax over the keys that a query may see, in at least float32.

    Args:
        logits: (1 or R, H, rows, columns), rows being the queries from `first_row` on.
        mask: (R, columns) or `None`.
        is_causal: whether query i sees keys <= i only.

    Returns:
        (R, H, rows, columns) weights in the dtype of the softmax, exactly 0 where a key is not seen.
    """
    logits, (rows, columns) = precise(logits), logits.shape[-2:]
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
    if is_causal:
        logits = logits.masked_fill(future_keys(rows, columns, first_row, logits.device), -math.inf)
    return logits.softmax(-1)


def seen_softmax(logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over what is seen, in at least float32; 0 elsewhere, and everywhere where nothing is seen."""
    logits = precise(logits)
    return logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~seen, 0.0)


def weighted_values(weights: torch.Tensor, values: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(1 or R, H, L, T) weights, (R, H, T, dh) values -> (R, H, L, dh), and the weights with dropout (R, H, L, T)."""
    weights = weights.to(values.dtype).expand(values.shape[0], -1, -1, -1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return weights @ values, weights


def literal_attention(
    logits: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Y = softmax(mask(S)) V`: (1 or R, H, L, L) and (R, H, L, dh) -> (R, H, L, dh) and the weights (R, H, L, L)."""
    return weighted_values(masked_softmax(logits, mask, is_causal), values, dropout)


def seen_attention(
    logits: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The rows of new tokens: (1 or R, H, L, T) logits and (R, H, T, dh) values -> (R, H, L, dh) and weights (R, H, L, T).

    Args:
        seen: true where a new token attends, broadcast to the logits, or `None` for everywhere.
    """
    weights = precise(logits).softmax(-1) if seen is None else seen_softmax(logits, seen)
    return weighted_values(weights, values, dropout)


def fused_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_bias: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    `softmax(queries @ keys^T + key_bias) @ values` as one call of scaled dot-product attention.

    Args:
        queries: (1 or R, H, rows, f), scaled already.
        keys: (1 or R, H, columns, f).
        values: (R, H, columns, dh).
        key_bias: (1 or R, H, columns) finite numbers, or `None`: a mask where that stays fused, or else, as where a
            gradient is wanted, one more feature.
        seen: a boolean mask that broadcasts to (R, H, rows, columns), or `None`; not with `is_causal`.

    Returns:
        (R, H, rows, dh)
    """
    by_key = not is_causal and (seen is None or seen.shape[-2] == 1)
    if key_bias is not None and by_key and queries.device.type == "cpu" and not torch.is_grad_enabled():
        # a view of a parameter asks for its gradient all the same
        bias = key_bias.detach()[:, :, None].to(queries.dtype)
        seen = bias if seen is None else bias.masked_fill(~seen, -math.inf)
    elif key_bias is not None:
        queries = F.pad(queries, (0, 1), value=1.0)
        shared = max(keys.shape[0], key_bias.shape[0])
        key_bias = key_bias[..., None].expand(shared, -1, -1, -1)
        keys = torch.cat((keys.expand(shared, -1, -1, -1), key_bias), dim=-1)
    # the fused kernels want one width for queries, keys and values
    width = max(queries.shape[-1], values.shape[-1])
    width += -width % 8 if width > values.shape[-1] else 0
    # padding by nothing would copy
    queries, keys, padded = (
        x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (queries, keys, values)
    )
    queries, keys, padded = (x.expand(values.shape[0], -1, -1, -1) for x in (queries, keys, padded))
    outputs = F.scaled_dot_product_attention(
        queries, keys, padded, attn_mask=seen, dropout_p=dropout, is_causal=is_causal, scale=1.0
    )
    if not is_static() and outputs.requires_grad and "ScaledDotProduct" in outputs.grad_fn.name():
        for x in (queries, keys, padded):
            if x.requires_grad:
                x.register_hook(once_derivable)
    return outputs[..., : values.shape[-1]]


def once_derivable(grad: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient, which says what to do instead when it is itself differentiated."""
    if grad is None or not grad.requires_grad:
        return grad
    fault = b'fused attention has no second derivatives: load the model with attn_implementation="eager"'
    return torch._C._functions.DelayedError(fault, 1)(grad)


def derivable_gradients(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
    grad_outputs: torch.Tensor,
) -> list[torch.Tensor | None]:
    """
    Gradients that have gradients themselves, for the backward pass of a kernel that is differentiated twice.

    Args:
        function: the same as the kernel, of operations that PyTorch can differentiate.
        inputs: its arguments.
        needed: which of them want a gradient.
        grad_outputs: the gradient of its outputs.
    """
    # a view is no other input's ancestor, as a matrix is that of what it moves
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    grads = iter(torch.autograd.grad(function(*inputs), wanted, grad_outputs, create_graph=True))
    return [next(grads) if need else None for need in needed]
