"""The logits of a Synthesizer (Tay et al., arXiv 2005.00743) as a sum of terms that nobody has written out yet."""

from typing import NamedTuple

import torch


class Logits(NamedTuple):
    """
    Logits as a sum of terms, each of them optional:
    `queries @ keys^T + key_bias + matrix_scale * matrix + expand_factors(slow, fast)`.

    queries: (1 or B, H, L, f), keys: (1 or B, H, L, f), key_bias: (1 or B, H, L), matrix: (H, L, L),
    matrix_scale: (H,), slow: (B, H, L, a), fast: (B, H, L, b).
    """

    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None
    matrix: torch.Tensor | None = None
    matrix_scale: torch.Tensor | None = None
    slow: torch.Tensor | None = None
    fast: torch.Tensor | None = None

    def scaled(self, alpha: torch.Tensor) -> "Logits":
        """The logits times alpha, (H,)."""
        by_head = {"queries": (-1, 1, 1), "key_bias": (-1, 1), "slow": (-1, 1, 1)}
        scaled = {
            term: alpha.view(shape) * getattr(self, term)
            for term, shape in by_head.items()
            if getattr(self, term) is not None
        }
        return self._replace(matrix_scale=None if self.matrix is None else alpha, **scaled)

    @property
    def whole_matrix(self) -> torch.Tensor:
        """(H, L, L), the scale multiplied in."""
        return self.matrix if self.matrix_scale is None else self.matrix_scale.view(-1, 1, 1) * self.matrix


def add_logits(logits: list[Logits]) -> Logits:
    """The sum of several logits, no more than one of which has a `key_bias`, and one `slow` and `fast`."""
    if len(logits) == 1:
        return logits[0]
    single = ("key_bias", "slow", "fast")
    terms = {name: getattr(x, name) for x in logits for name in single if getattr(x, name) is not None}
    featured = [x for x in logits if x.queries is not None]
    with_matrix = [x for x in logits if x.matrix is not None]
    if featured:
        batch = max([x.queries.shape[0] for x in featured])
        terms["queries"] = torch.cat([x.queries.expand(batch, -1, -1, -1) for x in featured], dim=-1)
        terms["keys"] = torch.cat([x.keys.expand(batch, -1, -1, -1) for x in featured], dim=-1)
    if len(with_matrix) == 1:
        terms |= {name: getattr(with_matrix[0], name) for name in ("matrix", "matrix_scale")}
    elif with_matrix:
        terms["matrix"] = sum(x.whole_matrix for x in with_matrix)
    return Logits(**terms)


def expand_factors(slow: torch.Tensor, fast: torch.Tensor, length: int) -> torch.Tensor:
    """(..., L, a) and (..., L, b) -> (..., L, length): column p b + q is slow[p] fast[q] (section 3.2)."""
    return (slow[..., :, None] * fast[..., None, :]).flatten(-2)[..., :length]
