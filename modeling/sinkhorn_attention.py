"""
Attention over sorted and own blocks (Tay et al., arXiv 2002.11296, section 3.2), in a literal form and in a fast one,
which agree in values and gradients.

R is the number of rows, H of heads, L the length, b the size of a block, n = ceil(L / b) the number of blocks of a row,
N that of all rows, dh the width of a head. Valid tokens come first in a row.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .rows import Rows
from .sinkhorn_choice import Choice, divisor
from .sinkhorn_kernels import block_attention, runs_on_cpu, sorted_and_own, sorted_blocks
from .sinkhorn_sort import Blocks
from .softmax_attention import fused_attention, precise, seen_softmax

# numbers from which a CPU gains by working on one head at a time
MANY = 2**20


class Options(NamedTuple):
    """
    How blocks are attended to.

    block_size: b.
    is_causal: whether a token sees no later one.
    combine: `concat`, one softmax over sorted and own slots; `sum`, one over each, added; `logits`, the two logits of a
        slot added, one softmax, sorted values.
    sortcut_blocks: how many sorted blocks every query attends to; `None` for the sorted and the own block.
    dropout: of the weights.
    """

    block_size: int
    is_causal: bool
    combine: str = "concat"
    sortcut_blocks: int | None = None
    dropout: float = 0.0


def sinkhorn_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    choice: Choice | None,
    rows: Rows,
    blocks: Blocks,
    options: Options,
) -> torch.Tensor:
    """
    The fast form: the queries of a block attend to its sorted blocks and to their own, or, with SortCut, all queries of
    a row to its first sorted blocks. Nothing of size (L, L) is built.

    Args:
        queries, keys, values: (1, H, T, dh), the tokens of all rows; queries are scaled already.
        choice: what each block fetches, or `None` for attention within the own block.

    Returns:
        (1, T, H dh)
    """
    if options.sortcut_blocks is not None:
        groups = [(count, (length + blocks.size - 1) // blocks.size) for count, length in rows.groups]
        by_group = (*(rows.split(x) for x in (queries, keys, values)), choice.split(groups))
        parts = zip(*by_group, strict=True)
        return rows.join([sortcut_attention(q, k, v, c, rows.mask, options) for q, k, v, c in parts])
    # (N, H, b, dh) each
    queries, keys, values = (blocks.fill(x.transpose(1, 2)).transpose(1, 2) for x in (queries, keys, values))
    outputs = attend_to_blocks(queries, keys, values, choice, blocks, options)
    return blocks.empty(outputs.transpose(1, 2).flatten(2))


def attend_to_blocks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    choice: Choice | None,
    blocks: Blocks,
    options: Options,
) -> torch.Tensor:
    """`sinkhorn_attention` without SortCut on (N, H, b, dh), 0 in empty slots."""
    heads = range(queries.shape[1])
    by_head = choice is not None and runs_on_cpu(queries) and not torch.is_grad_enabled()
    if by_head and len(heads) > 1 and queries.numel() >= MANY and not options.dropout:
        # one head at a time: the memory of its sorted blocks is used again, which new memory costs more than the work;
        # dropout is to be drawn as with gradients, which activation checkpointing computes again
        outputs = torch.empty_like(values)
        for head in heads:
            q, k, v = (x[:, head : head + 1] for x in (queries, keys, values))
            outputs[:, head : head + 1] = attend_to_blocks(q, k, v, choice.of_head(head), blocks, options)
        return outputs
    is_causal, dropout = options.is_causal, options.dropout
    own_seen = None
    if blocks.valid is not None:
        # a block of nothing but padding, which a static graph keeps, sees all of it
        own_seen = (blocks.valid | ~blocks.valid.any(-1, keepdim=True))[:, None]  # (N, 1, b)
    if choice is None:
        return block_attention(queries, keys, values, None, own_seen, is_causal, dropout)
    mass = log_mass = sorted_seen = None
    if blocks.valid is not None:
        mass = choice.by_block(choice.arrived_mass(blocks.to_rows(blocks.valid)))  # (R, n, H, m b)
        mass = blocks.to_blocks(mass)  # (N, H, m b)
        log_mass, sorted_seen = divisor(mass).log().to(keys.dtype), mass > 0
    first = blocks.is_first(keys.device)[:, None, None] if is_causal else None  # (N, 1, 1)
    if options.combine == "concat":
        keys, values = (sorted_and_own(choice, x, mass, blocks) for x in (keys, values))
        bias = seen = None
        if mass is not None:
            own_seen = own_seen.expand(-1, keys.shape[1], -1)
            bias = F.pad(log_mass, (0, options.block_size))  # (N, H, (m + 1) b)
            seen = torch.cat((sorted_seen, own_seen), dim=-1)
        elif is_causal:
            # the first block of a row has no past
            seen = torch.ones(1, 1, keys.shape[2], dtype=torch.bool, device=keys.device)
            moved = keys.shape[2] - options.block_size
            seen = seen & ~(first & (torch.arange(keys.shape[2], device=keys.device) < moved))
        return block_attention(queries, keys, values, bias, seen, is_causal, dropout)
    sorted_keys, sorted_values = (sorted_blocks(choice, x, mass, blocks) for x in (keys, values))
    if sorted_seen is not None:
        sorted_seen = sorted_seen | ~sorted_seen.any(-1, keepdim=True)
    if options.combine == "sum":
        # nothing is moved to the first block of a causal row: its sorted values are 0
        outputs = block_attention(queries, sorted_keys, sorted_values, log_mass, sorted_seen, False, dropout)
        return outputs + block_attention(queries, keys, values, None, own_seen, is_causal, dropout)
    if is_causal:
        # its sorted keys are 0, and its values its own
        sorted_values = torch.where(first[..., None], values, sorted_values)
    return block_attention(queries, keys + sorted_keys, sorted_values, log_mass, sorted_seen, is_causal, dropout)


def sortcut_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    choice: Choice,
    mask: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """
    Attention of all queries to the first sorted blocks of their row (section 3.3), for rows of one length.

    Args:
        queries, keys, values: (R, H, L, dh).
        choice: of these rows.
        mask: (R, L) or `None`.

    Returns:
        (R, H, L, dh)
    """
    size, length = options.block_size, keys.shape[2]
    valid = None
    if mask is not None or length % size or torch.compiler.is_exporting():
        mask = torch.ones(1, length, dtype=torch.bool, device=keys.device) if mask is None else mask
        valid = to_blocks(mask, size, -1)  # (1 or R, n, b)
        keys, values = (x * mask[:, None, :, None] for x in (keys, values))
    keys, values = (to_blocks(x, size, -2) for x in (keys, values))  # (R, H, n, b, dh)
    choice = choice.first(options.sortcut_blocks)
    mass = None if valid is None else choice.arrived_mass(valid)
    keys, values = (choice.sorted_blocks(x, mass).flatten(2, 3) for x in (keys, values))
    bias = seen = None
    if mass is not None:
        mass = mass.flatten(2)  # (R, H, slots)
        bias, seen = divisor(mass).log().to(keys.dtype), (mass > 0)[:, :, None]
    return fused_attention(queries, keys, values, bias, seen, dropout=options.dropout)


def to_blocks(tensor: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """(..., L, ...) -> (..., n, b, ...) at `dim`, which counts from the end; the tail is filled with 0 or False."""
    # no division of a negative number: ONNX rounds it towards 0
    n = (tensor.shape[dim] + size - 1) // size
    missing = n * size - tensor.shape[dim]
    # an exported graph serves every length
    if torch.compiler.is_exporting() or missing:
        tensor = F.pad(tensor, (0, 0) * (-dim - 1) + (0, missing))
    return tensor.unflatten(dim, (n, size))


def literal_sinkhorn_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    matrices: torch.Tensor | None,
    mask: torch.Tensor | None,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The paper's formulas step by step: logits for every slot, their softmax, and the sort multiplied in.

    Args:
        queries, keys, values: (R, H, L, dh), rows padded on the right; queries are scaled already.
        matrices: S, (R, H m, n, n), m of each head, or `None` for attention within the own block.
        mask: (R, L), or `None` if no row is padded.

    Returns:
        (R, H, L, dh), and the effective weights over the original tokens (R, H, L, L), which times the values are the
        first.
    """
    size, (count, heads, length, _) = options.block_size, queries.shape
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=queries.device)
    valid = to_blocks(mask, size, -1)[:, None]  # (1 or R, 1, n, b)
    keys, values = (x * mask[:, None, :, None] for x in (keys, values))
    queries, keys = (to_blocks(x, size, -2) for x in (queries, keys))
    n = keys.shape[2]
    if matrices is None:
        matrices = queries.new_zeros(count, heads, n, n, dtype=torch.promote_types(queries.dtype, torch.float32))
    # what each original token brings to slot t of sorted block i r, the shares of a slot adding up to 1
    choice = Choice.of(matrices, None, heads)
    arrived = choice.weights[..., None] * valid[:, :, None]  # (R, H, n m, n, b): i r, j, t
    mass = arrived.sum(3)  # (R, H, n m, b)
    shares = (arrived / divisor(mass)[..., None, :]).to(values.dtype)
    sorted_keys = torch.einsum("bhijt,bhjtd->bhitd", shares, keys)
    log_mass = divisor(mass).log()
    if options.sortcut_blocks is not None:
        cut = slice(options.sortcut_blocks)
        logits = torch.einsum("bhisd,bhctd->bhisct", queries, sorted_keys[:, :, cut]) + log_mass[:, :, None, None, cut]
        weights = seen_softmax(logits.flatten(-2), (mass > 0)[:, :, None, None, cut].flatten(-2))
        weights = F.dropout(weights.to(values.dtype), options.dropout).unflatten(-1, (-1, size))  # (R, H, n, b, c, b)
        effective = torch.einsum("bhisct,bhcjt->bhisjt", weights, shares[:, :, cut])
    else:
        # the m sorted blocks of a block side by side
        sorted_keys, mass, log_mass = (
            x.unflatten(2, (n, choice.m)).flatten(3, 4) for x in (sorted_keys, mass, log_mass)
        )
        own_logits = queries @ keys.transpose(-1, -2)  # (R, H, n, b, b)
        sorted_logits = queries @ sorted_keys.transpose(-1, -2) + log_mass[..., None, :]  # (R, H, n, b, m b)
        past = torch.ones(size, size, dtype=torch.bool, device=queries.device)
        past = past.tril() if options.is_causal else past
        slots = slot_weights(sorted_logits, own_logits, mass > 0, valid, past, options.combine)
        sorted_weights, own_weights = (F.dropout(x.to(values.dtype), options.dropout) for x in slots)
        by_sorted = sorted_weights.unflatten(-1, (choice.m, size))
        effective = torch.einsum("bhisrt,bhirjt->bhisjt", by_sorted, shares.unflatten(2, (n, choice.m)))
        in_place = torch.eye(n, dtype=values.dtype, device=values.device)[:, None, :, None]  # (n, 1, n, 1)
        effective = effective + own_weights[..., None, :] * in_place
    effective = effective.flatten(4, 5).flatten(2, 3)[:, :, :length, :length]
    return effective @ values, effective


def slot_weights(
    sorted_logits: torch.Tensor,
    own_logits: torch.Tensor,
    arrived: torch.Tensor,
    valid: torch.Tensor,
    past: torch.Tensor,
    combine: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The weights of the sorted and of the own slots.

    Args:
        sorted_logits, own_logits: (R, H, n, queries, m b) and (..., b), of some queries of each block.
        arrived: (R, H, n, m b), true at the sorted slots where anything valid arrives.
        valid: (1 or R, 1, n, b), true at the own slots that hold a valid token.
        past: true where a query may see an own slot, broadcast to the logits.

    Returns:
        (R, H, n, queries, m b) and (R, H, n, queries, b).
    """
    sorted_seen = arrived[..., None, :].expand_as(sorted_logits)
    own_seen = (valid[..., None, :] & past).expand_as(own_logits)
    if combine == "sum":
        return seen_softmax(sorted_logits, sorted_seen), seen_softmax(own_logits, own_seen)
    if combine == "logits":
        # a block that nothing is moved to, such as the first of a causal model, has only its own
        moved = arrived.any(-1)[..., None, None]  # (R, H, n, 1, 1)
        logits = precise(own_logits) + sorted_logits.masked_fill(~moved, 0.0)
        weights = seen_softmax(logits, torch.where(moved, sorted_seen & past, own_seen))
        return weights * moved, weights * ~moved
    logits = torch.cat((sorted_logits, own_logits), dim=-1)  # (R, H, n, queries, (m + 1) b)
    weights = seen_softmax(logits, torch.cat((sorted_seen, own_seen), dim=-1))
    sorted_weights, own_weights = weights.split([sorted_logits.shape[-1], own_logits.shape[-1]], dim=-1)
    return sorted_weights, own_weights
