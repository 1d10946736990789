"""The logits of a Synthesizer (Tay et al., arXiv 2005.00743) kept as a sum of terms; no (L, L) matrix is built."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows
from .softmax_attention import precise


def expand_factors(slow: torch.Tensor, fast: torch.Tensor, length: int) -> torch.Tensor:
    """(..., L, a) and (..., L, b) -> (..., L, length): column p b + q is slow[p] fast[q] (section 3.2)."""
    return (slow[..., :, None] * fast[..., None, :]).flatten(-2)[..., :length]


class Logits(NamedTuple):
    """
    Logits as a sum of terms, each of them optional:
    `queries @ keys^T + key_bias + matrix_scale * matrix + expand_factors(slow, fast)`.

    A member gives terms of two kinds, told apart by their dimensions: of tokens, (1, H, T, w), and of positions,
    parameters that every row shares. `batches`, `padded` and `at_new_tokens` give the terms of dense rows from them.

    queries, keys: (1, H, T, f) or (H, N, f); of rows (1 or R, H, L, f).
    key_bias: (H, N); of rows (1, H, L).
    matrix: (H, N, N); of rows (1 or R, H, L, L).
    matrix_scale: (H,).
    slow, fast: (1, H, T, a) and (1, H, T, b); of rows (R, H, L, a) and (R, H, L, b).
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

    def batches(self, rows: Rows) -> list["Logits"]:
        """The terms of each group of rows."""
        of_tokens = {name: rows.split(x) for name, x in self.items() if x.dim() == 4}
        batches = []
        for index, (_, length) in enumerate(rows.groups):
            terms = {name: parts[index] for name, parts in of_tokens.items()}
            batches.append(self._replace(**terms | self.of_positions(0, length, length)))
        return batches

    def padded(self, rows: Rows) -> "Logits":
        """The terms of rows that are padded on the right."""
        terms = {name: rows.to_rows(x.transpose(1, 2)).transpose(1, 2) for name, x in self.items() if x.dim() == 4}
        return self._replace(**terms | self.of_positions(0, rows.longest, rows.longest))

    def at_new_tokens(self, rows: Rows) -> "Logits":
        """The terms of new tokens behind a cache: their queries, and the keys of all positions up to `rows.end`."""
        terms = {name: rows.split(x)[0] for name, x in self.items() if x.dim() == 4}
        if rows.start is None:
            return self._replace(**terms | self.of_positions(0, 0, rows.end, rows.new_positions()))
        return self._replace(**terms | self.of_positions(rows.start, rows.start + rows.groups[0][1], rows.end))

    def items(self) -> list[tuple[str, torch.Tensor]]:
        """The names of the terms that there are, with their tensors."""
        return [(name, x) for name, x in self._asdict().items() if x is not None]

    def of_positions(self, first: int, stop: int, end: int, positions: torch.Tensor | None = None) -> dict:
        """The terms of positions, for queries from `first` up to `stop`, or at (R, L) `positions`, and `end` keys."""
        terms = {}
        if self.keys is not None and self.keys.dim() == 3:
            terms["keys"] = self.keys[None, :, :end]
        if self.key_bias is not None:
            terms["key_bias"] = self.key_bias[None, :, :end]
        of_queries = {} if self.matrix is None else {"matrix": self.matrix[..., :end]}
        if self.queries is not None and self.queries.dim() == 3:
            of_queries["queries"] = self.queries
        for name, weight in of_queries.items():  # (H, N, w) -> (1 or R, H, L, w)
            terms[name] = weight[None, :, first:stop] if positions is None else weight[:, positions].transpose(0, 1)
        return terms

    def written(self, length: int) -> torch.Tensor:
        """The logits of dense rows, written out for `length` keys, in at least float32: (1 or R, H, L, length)."""
        terms = []
        if self.queries is not None:
            terms.append(self.queries @ self.keys.transpose(-1, -2))
        if self.key_bias is not None:
            terms.append(self.key_bias[:, :, None])
        if self.matrix is not None:
            scale = self.matrix_scale
            terms.append(self.matrix if scale is None else scale.view(-1, 1, 1) * self.matrix)
        if self.slow is not None:
            terms.append(expand_factors(self.slow, self.fast, length))
        # a sum may be finite where float16 is full on the way to it
        return sum(map(precise, terms[1:]), precise(terms[0]))


def add_features(members: list[Logits], rows: Rows | None = None) -> Logits:
    """
    The sum of logits whose terms are features, as those of one: features concatenated.

    Args:
        rows: the rows, for terms of tokens; `None` for those of dense rows.
    """
    if len(members) == 1:
        return members[0]
    features = {}
    for name in ("queries", "keys"):
        parts = [getattr(member, name) for member in members]
        if rows is None:
            shared = max(part.shape[0] for part in parts)
            parts = [part.expand(shared, -1, -1, -1) for part in parts]
        elif any(part.dim() == 4 for part in parts):
            parts = [part if part.dim() == 4 else rows.by_token(part) for part in parts]
        else:
            parts = [part[:, : rows.longest] for part in parts]
        features[name] = torch.cat(parts, dim=-1)
    biases = [member.key_bias for member in members if member.key_bias is not None]
    return Logits(key_bias=biases[0] if biases else None, **features)


def add_logits(members: list[Logits], rows: Rows) -> Logits:
    """The sum of several members' logits of tokens and positions, as the terms of one."""
    featured = [member for member in members if member.queries is not None]
    with_matrix = [member for member in members if member.matrix is not None]
    terms = add_features(featured, rows)._asdict() if featured else {}
    if len(with_matrix) == 1:
        terms |= {name: getattr(with_matrix[0], name) for name in ("matrix", "matrix_scale")}
    elif with_matrix:
        length = rows.longest
        cut = [member.of_positions(0, length, length) for member in with_matrix]
        scales = [member.matrix_scale for member in with_matrix]
        scaled = [
            x["matrix"][0] if scale is None else scale.view(-1, 1, 1) * x["matrix"][0]
            for x, scale in zip(cut, scales, strict=True)
        ]
        terms["matrix"] = sum(scaled[1:], scaled[0])
    for member in members:
        if member.slow is not None:
            terms |= {"slow": member.slow, "fast": member.fast}
    return Logits(**terms)


def pad_features(terms: Logits) -> Logits:
    """Features padded with zeros to a multiple of 16: products of a few odd columns are slow."""
    if terms.queries is None:
        return terms
    queries, keys = (F.pad(x, (0, -x.shape[-1] % 16)).contiguous() for x in (terms.queries, terms.keys))
    return terms._replace(queries=queries, keys=keys)
