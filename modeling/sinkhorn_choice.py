"""
What each block fetches by a sort matrix S (Tay et al., arXiv 2002.11296, section 3.1): all blocks, weighted, or the k
of the largest weights; one such mixture, or m of them.

R is the number of rows, n of the blocks of the longest row, H of heads, b the size of a block, dh the width of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .softmax_attention import compute_dtype

# entries that are found one after the other rather than by sorting whole rows
FEW = 8


def choose(
    log_matrix: torch.Tensor, pairs: torch.Tensor | None, top_k: int | None = None, is_hard: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The sort matrix, and which of its entries are not 0.

    Args:
        log_matrix: (..., rows, n), rows of log S, each up to a constant.
        pairs: true where a block takes part, broadcast to the matrix; `None` if all do.
        top_k: how many of the largest entries each row keeps, normalised again; `None` for all.
        is_hard: whether the gradient is that of the whole row (straight-through).

    Returns:
        S, (..., rows, n), and the columns of the kept entries, (..., rows, k), or `None` where all are kept or, with
        `is_hard`, a gradient is wanted.
    """
    n, exporting = log_matrix.shape[-1], torch.compiler.is_exporting()
    # an exported graph serves every number of blocks
    is_cut = top_k is not None and (exporting or top_k < n)
    if is_hard or not is_cut:
        soft = _without(log_matrix.softmax(-1), pairs)
    if not is_cut:
        return soft, None
    largest, index = log_matrix.topk(torch.sym_min(top_k, n)) if exporting else first_largest(log_matrix, top_k)
    kept = _without(torch.zeros_like(log_matrix).scatter(-1, index, largest.softmax(-1)), pairs)
    if is_hard and soft.requires_grad:
        return kept.detach() + (soft - soft.detach()), None
    return kept, index


def first_largest(tensor: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k largest entries of the last dimension and their indices, the first ones among equals: what a row chooses may
    not depend on blocks that come later, or on the other rows of a batch, as in `topk`.
    """
    if k > FEW:
        values, index = tensor.sort(dim=-1, descending=True, stable=True)
        return values[..., :k], index[..., :k]
    # `argmax` gives the first of equals; what was chosen goes below everything
    rest, found = tensor.detach().clamp(min=torch.finfo(tensor.dtype).min), []
    for _ in range(k):
        found.append(rest.argmax(-1, keepdim=True))
        rest = rest.scatter(-1, found[-1], -torch.inf)
    index = torch.cat(found, dim=-1)
    return tensor.gather(-1, index), index


def _without(matrix: torch.Tensor, pairs: torch.Tensor | None) -> torch.Tensor:
    return matrix if pairs is None else matrix.masked_fill(~pairs, 0.0)


def divisor(mass: torch.Tensor) -> torch.Tensor:
    """The mass to divide by: 1 where nothing arrives, and never so small that a gradient overflows."""
    return torch.where(mass > 0, mass.clamp(min=1e-30), 1.0)


class Choice(NamedTuple):
    """
    What each block fetches: m rows of a sort matrix S, one after the other.

    weights: (R, H, n m, k), the entries that are not 0, or (R, H, n m, n), all of them.
    index: (R, H, n m, k), the blocks that these weigh, or `None` for all.
    m: rows of a block.
    """

    weights: torch.Tensor
    index: torch.Tensor | None  # type: ignore[assignment]
    m: int

    @classmethod
    def of(cls, matrices: torch.Tensor, index: torch.Tensor | None, num_heads: int) -> "Choice":
        """From m matrices of each head, (R, H m, n, n), and the columns that are not 0, (R, H m, n, k) or `None`."""
        weights = matrices if index is None else matrices.gather(-1, index)
        m = matrices.shape[1] // num_heads
        weights, index = (
            None if x is None else x.unflatten(1, (num_heads, m)).transpose(2, 3).flatten(2, 3)
            for x in (weights, index)
        )
        return cls(weights, index, m)

    def first(self, count: int) -> "Choice":
        """Of the first sorted blocks of each row."""
        return Choice(self.weights[:, :, :count], None if self.index is None else self.index[:, :, :count], self.m)

    def of_head(self, head: int) -> "Choice":
        """Of one head, as R rows of one."""
        part = slice(head, head + 1)
        return Choice(self.weights[:, part], None if self.index is None else self.index[:, part], self.m)

    def split(self, groups: Sequence[tuple[int, int]]) -> "list[Choice]":
        """Those of groups of rows, (row count, n), up to the last block that each has."""
        counts = [count for count, _ in groups]
        indices = [None] * len(groups) if self.index is None else self.index.split(counts)
        parts = zip(groups, self.weights.split(counts), indices, strict=True)
        return [
            Choice(weights[..., :n] if index is None else weights, index, self.m).first(n * self.m)
            for (_, n), weights, index in parts
        ]

    def by_block(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of sorted blocks, side by side: (R, H, n m, b, ...) -> (R, n, H, m b, ...)."""
        return tensor.unflatten(2, (-1, self.m)).flatten(3, 4).transpose(1, 2)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """`S X` without the products by 0: X, (R, H, n, w) -> (R, H, n m, w)."""
        if self.index is None:
            return self.weights.to(tensor.dtype) @ tensor
        count, heads, n, width = tensor.shape
        first = n * torch.arange(count * heads, device=tensor.device).view(count, heads, 1, 1)
        # a row of fewer than k blocks chooses some that it does not have, with weight 0
        index = first + self.index.clamp(max=n - 1)
        # several times as fast as tensor[row, head, index]
        found = tensor.flatten(0, 2).index_select(0, index.flatten()).view(*index.shape, width)  # (R, H, n m, k, w)
        return (self.weights.to(tensor.dtype)[..., None, :] @ found).squeeze(-2)

    def arrived_mass(self, valid: torch.Tensor) -> torch.Tensor:
        """w_i[t] = sum_j S_ij m_j[t], the valid part of slot t: (1 or R, n, b) -> (R, H, n m, b)."""
        with torch.autocast(valid.device.type, enabled=False):
            return self.fetch(valid[:, None].to(self.weights.dtype).expand(*self.weights.shape[:2], -1, -1))

    def sorted_blocks(self, slots: torch.Tensor, mass: torch.Tensor | None = None) -> torch.Tensor:
        """
        The sorted blocks, slot by slot the mean of what arrives: sum_j S_ij X_j / w_i.

        Args:
            slots: X, (R, H, n, b, dh), 0 in empty slots.
            mass: w, (R, H, n m, b), or `None` where every slot is full.

        Returns:
            (R, H, n m, b, dh)
        """
        if mass is None:
            return self.fetch(slots.flatten(-2)).unflatten(-1, slots.shape[-2:])
        if compute_dtype(slots) == torch.float16:
            # the smallest masses underflow in it
            with torch.autocast(slots.device.type, enabled=False):
                ordered = self.fetch(slots.to(self.weights.dtype).flatten(-2))
        else:
            ordered = self.fetch(slots.flatten(-2))
        # 1 / w by its logarithm: a quotient's gradient takes three times as long, a reciprocal's overflows
        inverse = divisor(mass).log().neg().exp()
        return (ordered.unflatten(-1, slots.shape[-2:]) * inverse[..., None]).to(slots.dtype)
