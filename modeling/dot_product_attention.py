"""
What the families' attentions are made of: softmax attention on tensors, written out and as one fused call.

B is the batch, H the heads, L the length, dh the width of a head. A size written "1 or B" may be shared by the batch. A
`mask` is (B, L), true at valid keys, or `None`; column 0 is true in every row, so that a causal query always has a key.
"""

import math

import torch
from torch.nn import functional as F

# a key's bias that hides it: the weight is exactly 0 in any precision, and 0 times it stays 0 in the gradient
HIDDEN = -30000.0
# logits that are worked on at a time on a CPU: what a core's own cache holds
LOGITS_AT_ONCE = 2**18


def split_heads(hidden_states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, L, H w) -> (B, H, L, w)"""
    return hidden_states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, first_row: int = 0):
    """
    Softmax over the keys that a query may see, in at least float32.

    Args:
        logits: (1 or B, H, rows, columns), rows being the queries from `first_row` on.
        mask: (B, columns) or `None`.
        is_causal: whether query i sees keys <= i only.

    Returns:
        (B, H, rows, columns) weights in the dtype of the softmax, exactly 0 where a key is not seen.
    """
    rows, columns = logits.shape[-2:]
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
    if is_causal:
        future = torch.ones(rows, columns, dtype=torch.bool, device=logits.device).triu(1 + first_row)
        logits = logits.masked_fill(future, -math.inf)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def guarded_softmax(logits: torch.Tensor, is_causal: bool, first_row: int = 0) -> torch.Tensor:
    """
    As `masked_softmax` without a mask, for weights that a whole batch shares: a logit counts as at least
    0.7 log(tiny) below its row's largest (61 in float32), so that a weight stays positive where padding hides every
    larger one. No branch on data, and no 0 / 0.

    Args:
        logits: (..., rows, columns).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    seen = logits.detach()
    if is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1 + first_row)
        seen = seen.masked_fill(future, -math.inf)
    guarded = logits.clamp(min=seen.amax(-1, keepdim=True) + guard(logits.dtype))
    if is_causal:
        guarded = guarded.masked_fill(future, -math.inf)
    return guarded.softmax(-1)


def guard(dtype: torch.dtype) -> float:
    """The lowest logit of `guarded_softmax`, relative to its row's largest."""
    return 0.7 * math.log(torch.finfo(dtype).tiny)


def is_above_guard(weights: torch.Tensor) -> torch.Tensor:
    """Whether the weights of `guarded_softmax` depend on their own logit."""
    return weights > weights.amax(-1, keepdim=True) * (1.001 * math.exp(guard(weights.dtype)))


def literal_attention(
    logits: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Y = softmax(mask(S)) V`: (1 or B, H, L, L) and (B, H, L, dh) -> (B, H, L, dh) and the weights (B, H, L, L)."""
    weights = masked_softmax(logits, mask, is_causal).to(values.dtype)
    weights = weights.expand(values.shape[0], -1, -1, -1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return weights @ values, weights


def seen_softmax(logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over what is seen, in at least float32; 0 elsewhere, and everywhere where nothing is seen."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(precise).masked_fill(~seen, torch.finfo(precise).min).softmax(-1).masked_fill(~seen, 0.0)


def seen_attention(
    logits: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None, dropout: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The rows of new tokens: (1 or B, H, L, T) logits and (B, H, T, dh) values -> (B, H, L, dh) and weights (B, H, L, T).

    Args:
        seen: true where a new token looks, broadcast to the logits, or `None` for everywhere.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(-1, dtype=precise) if seen is None else seen_softmax(logits, seen)
    weights = weights.to(values.dtype).expand(values.shape[0], -1, -1, -1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return weights @ values, weights


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
        queries: (1 or B, H, rows, f), scaled already.
        keys: (1 or B, H, columns, f).
        values: (B, H, columns, dh).
        key_bias: (1 or B, H, columns) or `None`: a mask where that stays fused, or else, as where a gradient is
            wanted, one more feature.
        seen: a boolean mask that broadcasts to (B, H, rows, columns), or `None`; not with `is_causal`.

    Returns:
        (B, H, rows, dh)
    """
    by_key = not is_causal and (seen is None or seen.shape[-2] == 1)
    if key_bias is not None and by_key and queries.device.type == "cpu" and not torch.is_grad_enabled():
        # a view of a parameter asks for its gradient all the same
        bias = key_bias.detach()[:, :, None].to(queries.dtype)
        seen = bias if seen is None else bias.masked_fill(~seen, HIDDEN)
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
    batch = values.shape[0]
    outputs = F.scaled_dot_product_attention(
        queries.expand(batch, -1, -1, -1),
        keys.expand(batch, -1, -1, -1),
        padded,
        attn_mask=seen,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=1.0,
    )
    return outputs[..., : values.shape[-1]]


def masked_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    is_causal: bool,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    `fused_attention` under a padding mask and causality: (1 or B, H, L, f), twice, (B, H, L, dh) -> (B, H, L, dh).

    No (L, L) tensor is built: the padding mask of a causal model is a key's bias, because the fused kernels take either
    a mask or causality.
    """
    seen = None if mask is None else mask[:, None, None, :]
    if mask is not None and is_causal:
        key_bias = torch.zeros_like(keys[..., 0]) if key_bias is None else key_bias
        key_bias = key_bias.masked_fill(~mask[:, None, :], HIDDEN)  # (B, H, L)
        # no key outweighs the bias that hides it
        keys = keys.masked_fill(~mask[:, None, :, None], 0.0)
        seen = None
    return fused_attention(queries, keys, values, key_bias, seen, is_causal, dropout)
