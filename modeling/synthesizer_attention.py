"""
The mathematics of Synthesizer attention (Tay et al., arXiv 2005.00743) on tensors: the literal form, `Y = softmax(S) V`
with S written out, and the fast forms, which agree with it in values and gradients.

B is the batch, H the heads, L the length, dh the width of a head. A size written "1 or B" may be shared by the batch. A
`mask` is (B, L), true at valid keys, or `None`; column 0 is true in every row, so that a causal query always has a key.
"""

import torch
from torch.nn import functional as F

from .dot_product_attention import guarded_softmax, masked_attention, masked_softmax
from .synthesizer_logits import Logits, expand_factors
from .tiled_attention import TiledAttention


def feature_attention(
    logits: Logits, values: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, dropout: float = 0.0
) -> torch.Tensor:
    """
    Attention whose logits are `queries @ keys^T + key_bias`, as one call of scaled dot-product attention.

    Returns:
        (B, H, L, dh)
    """
    return masked_attention(logits.queries, logits.keys, values, logits.key_bias, mask, is_causal, dropout)


def shared_weights(matrix: torch.Tensor, is_causal: bool, dtype: torch.dtype) -> torch.Tensor:
    """The weights that a whole batch shares, positive whatever padding hides: (H, L, L) logits -> (H, L, L)."""
    weights = guarded_softmax(matrix, is_causal)
    # float16 has not the range for the smallest weights
    return weights if dtype == torch.float16 else weights.to(dtype)


def shared_attention(
    logits: Logits | torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, is_causal: bool
) -> torch.Tensor:
    """
    Attention with weights that the batch shares: `Y = E (m V) / (E m)`, the batch folded into the columns of one
    product per head, m the padding mask.

    Args:
        logits: `Logits` of batch 1, or E itself, (H, L, L), as `shared_weights` gives it.
        values: (B, H, L, dh).

    Returns:
        (B, H, L, dh)
    """
    batch, heads, length, width = values.shape
    # the smallest weights have the precision that they need, which float16 would take from them
    kept = values.float() if values.dtype == torch.float16 else values
    if mask is not None:
        kept = kept * mask[:, None, :, None]
    columns = kept.permute(1, 2, 0, 3).reshape(heads, length, batch * width)
    if mask is not None:
        columns = torch.cat((columns, mask.T.to(columns.dtype).expand(heads, -1, -1)), dim=-1)
    with torch.autocast(values.device.type, enabled=False):
        if isinstance(logits, torch.Tensor):
            outputs = logits @ columns
        else:
            outputs = tiled_attention(logits, columns[None], None, is_causal, is_guarded=mask is not None)[0]
        if mask is not None:
            outputs, mass = outputs[..., : batch * width], outputs[..., batch * width :]  # (H, L, B dh), (H, L, B)
        outputs = outputs.unflatten(-1, (batch, width)).permute(2, 0, 1, 3)
        if mask is not None:
            outputs = outputs / mass.permute(2, 0, 1)[..., None]
    return outputs.to(values.dtype)


def tiled_attention(
    logits: Logits,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    is_guarded: bool = False,
) -> torch.Tensor:
    """
    Attention for any `Logits`, a tile of weights at a time. A traced graph cannot loop over a length that it does not
    know, and writes all of them out.

    Returns:
        (B, H, L, dh)
    """
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        if logits.queries is not None:
            # products of a few odd columns are slow, and those of half precision where rows lie apart
            queries, keys = (F.pad(x, (0, -x.shape[-1] % 16)).contiguous() for x in (logits.queries, logits.keys))
            logits = logits._replace(queries=queries, keys=keys)
        return TiledAttention.apply(mask, is_causal, is_guarded, values.contiguous(), *logits)
    terms = []
    if logits.queries is not None:
        terms.append(logits.queries @ logits.keys.transpose(-1, -2))
    if logits.key_bias is not None:
        terms.append(logits.key_bias[:, :, None, :])
    if logits.matrix is not None:
        terms.append(logits.whole_matrix[None])
    if logits.slow is not None:
        terms.append(expand_factors(logits.slow, logits.fast, values.shape[2]))
    written = sum(terms[1:], terms[0])
    weights = guarded_softmax(written, is_causal) if is_guarded else masked_softmax(written, mask, is_causal)
    return weights.to(values.dtype) @ values
