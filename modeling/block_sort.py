"""
Sorting blocks of keys and values by a sort matrix (Tay et al., arXiv 2002.11296, section 3.1), and what padding inside
a moved block leaves of it.

B is the batch, H the heads, n the number of blocks, b the size of one, dh the width of a head. Keys and values are zero
at padding.
"""

import torch

from .block_attention import runs_on_cpu
from .dot_product_attention import HIDDEN


def arrived_mass(matrices: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """w_i[t] = sum_j S_ij m_j[t], the valid part of slot t: (B, H, n, n) and (1 or B, n, b) -> (B, H, n, b)."""
    return matrices @ valid[:, None].to(matrices.dtype)


def divisor(mass: torch.Tensor) -> torch.Tensor:
    """The mass to divide by: 1 where nothing arrives, and never so small that a gradient overflows."""
    return torch.where(mass > 0, mass.clamp(min=1e-30), 1.0)


def mass_bias(mass: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """log w, what a sorted slot adds to its logits: (B, H, n, b) -> the same; hidden where nothing valid arrives."""
    return divisor(mass).log().to(dtype).masked_fill(mass == 0, HIDDEN)


def sort_blocks(matrices: torch.Tensor, blocks: torch.Tensor, mass: torch.Tensor | None) -> torch.Tensor:
    """
    The sorted blocks, slot by slot the mean of what arrives: sum_j S_ij X_j / w_i.

    Args:
        matrices: S, (B, H, rows, n).
        blocks: X, (B, H, n, b, dh), 0 at padding.
        mass: w, (B, H, rows, b), or `None` where every token is valid.

    Returns:
        (B, H, rows, b, dh)
    """
    # float16 has not the range for the smallest masses
    dtype = matrices.dtype if mass is not None and blocks.dtype == torch.float16 else blocks.dtype
    ordered = (matrices.to(dtype) @ blocks.to(dtype).flatten(-2)).unflatten(-1, blocks.shape[-2:])
    return ordered if mass is None else (ordered / divisor(mass)[..., None]).to(blocks.dtype)


def sorted_and_own(matrices: torch.Tensor, blocks: torch.Tensor, mass: torch.Tensor | None) -> torch.Tensor:
    """The slots of each block, those of its sorted block first: arguments of `sort_blocks` -> (B, H, n, 2 b, dh)."""
    if not runs_on_cpu(blocks):
        return torch.cat((sort_blocks(matrices, blocks, mass), blocks), dim=-2)
    return SortedAndOwn.apply(matrices.to(blocks.dtype), blocks, None if mass is None else divisor(mass))


class SortedAndOwn(torch.autograd.Function):
    """`sorted_and_own` without a copy of the blocks but in the outcome, `divisors` being those of the mass."""

    @staticmethod
    def forward(ctx, matrices, blocks, divisors):
        batch, heads, n, size, width = blocks.shape
        slots = blocks.new_empty(batch, heads, n, 2, size, width)
        slots[:, :, :, 1] = blocks
        sorted_, own = slots.view(batch * heads, n, 2, size * width).unbind(2)
        for matrix, into, given in zip(matrices.flatten(0, 1), sorted_, own, strict=True):
            torch.mm(matrix, given, out=into)
        if divisors is not None:
            slots[:, :, :, 0] /= divisors[..., None]
        ctx.save_for_backward(matrices, slots, divisors)
        return slots.flatten(3, 4)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_slots):
        matrices, slots, divisors = ctx.saved_tensors
        sorted_, own = slots.unbind(3)  # (B, H, n, b, dh) each
        grad_sorted, grad_own = grad_slots.unflatten(3, (2, -1)).unbind(3)
        grad_divisors = None
        if divisors is not None:
            grad_sorted = grad_sorted / divisors[..., None]
            grad_divisors = -(grad_sorted * sorted_).sum(-1)
        grad_matrices, grad_blocks = matrices.new_empty(matrices.shape), own.new_empty(own.shape)
        flat = (x.flatten(0, 1).flatten(2) for x in (own, grad_sorted, grad_own, grad_blocks))
        pairs = zip(matrices.flatten(0, 1), grad_matrices.flatten(0, 1), *flat, strict=True)
        for matrix, grad_matrix, given, grad, grad_given, into in pairs:
            torch.mm(grad, given.T, out=grad_matrix)
            torch.addmm(grad_given, matrix.T, grad, out=into)
        return grad_matrices, grad_blocks, grad_divisors
