"""
The mathematics of Sparse Sinkhorn Attention (Tay et al., arXiv 2002.11296) on tensors: balancing, pooling, sorting, and
attention over sorted and own blocks, in a literal form and in a fast one, which agree in values and gradients.

B is the batch, H the heads, L the length, b the size of a block, n = ceil(L / b) the number of blocks (the last may be
shorter), d the width of the model and dh that of a head. A `mask` is (B, L), true at valid tokens, or `None`; column 0
is true in every row. `keys` and `values` are zero at padding.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .block_attention import block_attention
from .block_sort import arrived_mass, divisor, mass_bias, sort_blocks, sorted_and_own
from .dot_product_attention import HIDDEN, fused_attention, seen_softmax

# of the vectors of `normed_sum`: with 32 models learned to copy more slowly, with 128 to sort
POOLED_NORM = 64.0


def sinkhorn(logits: torch.Tensor, mask: torch.Tensor | None, iterations: int) -> torch.Tensor:
    """
    Sinkhorn balancing in the log domain: columns and rows are normalised in turn, the rows last.

    Args:
        logits: (..., n, n).
        mask: (..., n), true at the blocks that take part, broadcast to the logits; `None` if all do.
        iterations: how often both are normalised; 0 for a softmax over the rows.

    Returns:
        (..., n, n) in at least float32: rows that add up to 1, and columns that nearly do, on the sub-matrix of the
        blocks that take part; 0 elsewhere.
    """
    n = logits.shape[-1]
    pairs = torch.ones(n, n, dtype=torch.bool, device=logits.device)
    return _balance(logits, pairs, mask, iterations, lambda x: x.logsumexp(-2, keepdim=True))


def causal_sinkhorn(logits: torch.Tensor, mask: torch.Tensor | None, iterations: int) -> torch.Tensor:
    """
    Causal Sinkhorn balancing: row i chooses among the blocks j < i, and the sum that normalises its columns runs over
    the rows up to i. Row 0 has no past, and is 0.

    A lower-triangular doubly stochastic matrix can only be one thing: with many iterations row i tends to block i - 1,
    whatever the logits are. 0 iterations, a softmax over each row, leave the choice to the logits.

    Args, returns: as for `sinkhorn`.
    """
    n = logits.shape[-1]
    pairs = torch.ones(n, n, dtype=torch.bool, device=logits.device).tril(-1)
    return _balance(logits, pairs, mask, iterations, lambda x: x.logcumsumexp(-2))


def _balance(
    logits: torch.Tensor,
    pairs: torch.Tensor,
    mask: torch.Tensor | None,
    iterations: int,
    log_column_sums: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    if mask is not None:
        pairs = pairs & mask[..., :, None] & mask[..., None, :]
    log_matrix = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # finite, because the gradient of a sum of nothing but -inf is not a number
    lowest = torch.finfo(log_matrix.dtype).min / 4
    log_matrix = log_matrix.masked_fill(~pairs, lowest)
    for _ in range(iterations):
        log_matrix = (log_matrix - log_column_sums(log_matrix)).masked_fill(~pairs, lowest)
        log_matrix = log_matrix.log_softmax(-1).masked_fill(~pairs, lowest)
    return log_matrix.softmax(-1).masked_fill(~pairs, 0.0)


def column_residual(matrices: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    How far balancing was from its end: the largest |column sum - 1| over the blocks that take part, without gradient.

    Args:
        matrices: (..., n, n), what `sinkhorn` returned.
        mask: (..., n), what it was given.

    Returns:
        (...)
    """
    residual = (matrices.detach().sum(-2) - 1).abs()
    return (residual if mask is None else residual.masked_fill(~mask, 0.0)).amax(-1)


def gumbel_noise(logits: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise in the shape of the logits."""
    # -log of an exponential variable, which may round to 0
    return -torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny).log()


def to_blocks(tensor: torch.Tensor, block_size: int, dim: int) -> torch.Tensor:
    """(..., L, ...) -> (..., n, b, ...) at `dim`, which counts from the end; the tail is filled with 0 or False."""
    # no division of a negative number: ONNX rounds it towards 0
    n = (tensor.shape[dim] + block_size - 1) // block_size
    missing = n * block_size - tensor.shape[dim]
    # an exported graph serves every length
    if torch.compiler.is_exporting() or missing:
        tensor = F.pad(tensor, (0, 0) * (-dim - 1) + (0, missing))
    return tensor.unflatten(dim, (n, block_size))


def pool_blocks(hidden_states: torch.Tensor, mask: torch.Tensor | None, block_size: int, pooling: str) -> torch.Tensor:
    """
    One vector for each block: `normed_sum`, `sum` or `mean` of its valid tokens, or the `first` of them.

    Args:
        hidden_states: (B, L, d), what the attention reads.

    Returns:
        (B, n, d) in at least float32, 0 for a block of nothing but padding.
    """
    precise = torch.promote_types(hidden_states.dtype, torch.float32)
    if mask is None:
        mask = torch.ones(1, hidden_states.shape[1], dtype=torch.bool, device=hidden_states.device)
    else:
        hidden_states = hidden_states.masked_fill(~mask[..., None], 0.0)
    valid = to_blocks(mask, block_size, -1)  # (1 or B, n, b)
    blocks = to_blocks(hidden_states, block_size, -2)  # (B, n, b, d)
    if pooling == "first":
        first = valid.int().argmax(-1)[..., None, None]  # argmax takes the first of equals
        return blocks.gather(2, first.expand(blocks.shape[0], -1, 1, blocks.shape[-1])).squeeze(2).to(precise)
    return scaled_sums(blocks.sum(2, dtype=precise), valid.sum(-1, keepdim=True), pooling)


def causal_pool_blocks(
    hidden_states: torch.Tensor, mask: torch.Tensor | None, block_size: int, pooling: str
) -> torch.Tensor:
    """
    What a block of a causal model may choose by: the valid tokens up to and including its first position, their
    `normed_sum`, `sum` or `mean`, or the last of them (`first`: the block's first token, where that is valid).

    Args, returns: as for `pool_blocks`.
    """
    precise = torch.promote_types(hidden_states.dtype, torch.float32)
    length = hidden_states.shape[1]
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=hidden_states.device)
    else:
        hidden_states = hidden_states.masked_fill(~mask[..., None], 0.0)
    if pooling == "first":
        position = torch.arange(length, device=hidden_states.device) * mask  # (1 or B, L)
        in_block, at_first = to_blocks(position, block_size, -1).amax(-1), position[:, ::block_size]  # (1 or B, n)
        past = torch.ones(in_block.shape[-1], in_block.shape[-1], dtype=torch.bool, device=mask.device).tril(-1)
        # no running maximum, which ONNX has not
        last = torch.where(past, in_block[:, None], at_first[..., None]).amax(-1, keepdim=True)  # (1 or B, n, 1)
        return hidden_states.gather(1, last.expand(hidden_states.shape[0], -1, hidden_states.shape[-1])).to(precise)
    sums = to_blocks(hidden_states, block_size, -2).sum(2, dtype=precise)
    # past blocks and the first token: to take the rest of the block away again would leak its rounding
    pooled = F.pad(sums[:, :-1].cumsum(1), (0, 0, 1, 0)) + hidden_states[:, ::block_size]
    return scaled_sums(pooled, mask.cumsum(-1)[:, ::block_size, None], pooling)


def scaled_sums(sums: torch.Tensor, counts: torch.Tensor, pooling: str) -> torch.Tensor:
    """
    Pooled blocks from the sums of their tokens; a cache keeps the sums, and scales them where they are read.

    Args:
        sums: (B, n, d).
        counts: (1 or B, n, 1), tokens in each sum.
        pooling: `sum`, `mean`, or `normed_sum`: each sum scaled to the norm `POOLED_NORM`.
    """
    if pooling == "mean":
        return sums / counts.clamp(min=1)
    if pooling == "normed_sum":
        return sums * (sums.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (POOLED_NORM / sums.shape[-1] ** 0.5)
    return sums


def sinkhorn_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    matrices: torch.Tensor | None,
    mask: torch.Tensor | None,
    block_size: int,
    is_causal: bool,
    combine: str = "concat",
    sortcut_blocks: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    The fast form: the queries of a block attend to the sorted block and to their own (section 3.2), or, with SortCut,
    all queries to the first sorted blocks.

    One fused call on B H n rows of b queries, a batched product for the sort, and nothing of size (L, L).

    Args:
        queries: (B, H, L, dh), scaled already.
        keys, values: (B, H, L, dh), 0 at padding.
        matrices: S, (B, H, n, n), or `None` for attention within the own block.
        combine: `concat`, `sum` or `logits`.
        sortcut_blocks: how many sorted blocks every query attends to; `None` for the sorted and the own block.

    Returns:
        (B, H, L, dh), 0 for a query that sees nothing.
    """
    length = queries.shape[2]
    if sortcut_blocks is None:
        queries = to_blocks(queries, block_size, -2)  # (B, H, n, b, dh)
    # what fills the tail of a causal model's last block is in the future of every token, and never moves
    if mask is None and not is_causal and (torch.compiler.is_exporting() or length % block_size):
        mask = torch.ones(1, length, dtype=torch.bool, device=queries.device)
    valid = None if mask is None else to_blocks(mask, block_size, -1)  # (1 or B, n, b)
    keys, values = to_blocks(keys, block_size, -2), to_blocks(values, block_size, -2)
    own_bias = sorted_bias = mass = None
    if valid is not None:
        own_bias = torch.zeros_like(keys[..., 0]).masked_fill(~valid[:, None], HIDDEN)  # (B, H, n, b)
    if matrices is None:
        return block_attention(queries, keys, values, own_bias, is_causal, dropout)[:, :, :length]
    matrices = matrices[:, :, :sortcut_blocks]  # all rows where that is `None`
    if valid is not None:
        mass = arrived_mass(matrices, valid)
        sorted_bias = mass_bias(mass, keys.dtype)
    if combine == "concat" and sortcut_blocks is None:
        keys, values = sorted_and_own(matrices, keys, mass), sorted_and_own(matrices, values, mass)
        bias = None if own_bias is None else torch.cat((sorted_bias, own_bias), dim=-1)  # (B, H, n, 2 b)
        return block_attention(queries, keys, values, bias, is_causal, dropout)[:, :, :length]
    sorted_keys, sorted_values = sort_blocks(matrices, keys, mass), sort_blocks(matrices, values, mass)
    if sortcut_blocks is not None:
        bias = None if sorted_bias is None else sorted_bias.flatten(2)
        return fused_attention(queries, sorted_keys.flatten(2, 3), sorted_values.flatten(2, 3), bias, dropout=dropout)
    if combine == "sum":
        outputs = block_attention(queries, sorted_keys, sorted_values, sorted_bias, dropout=dropout)
        outputs = outputs + block_attention(queries, keys, values, own_bias, is_causal, dropout)
    else:
        if is_causal:
            # block 0 has no past: its sorted keys are 0, and its values its own
            sorted_values = torch.cat((values[:, :, :1], sorted_values[:, :, 1:]), dim=2)
            if own_bias is not None:
                sorted_bias = torch.cat((own_bias[:, :, :1], sorted_bias[:, :, 1:]), dim=2)
        outputs = block_attention(queries, keys + sorted_keys, sorted_values, sorted_bias, is_causal, dropout)
    return outputs[:, :, :length]


def literal_sinkhorn_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    matrices: torch.Tensor | None,
    mask: torch.Tensor | None,
    block_size: int,
    is_causal: bool,
    combine: str = "concat",
    sortcut_blocks: int | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The paper, literally: logits for every slot, their softmax, and the sort multiplied in.

    Args: as for `sinkhorn_attention`.

    Returns:
        (B, H, L, dh), and the effective weights over the original tokens (B, H, L, L), which times the values are the
        first.
    """
    batch, heads, length, _ = queries.shape
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=queries.device)
    valid = to_blocks(mask, block_size, -1)[:, None]  # (1 or B, 1, n, b)
    queries, keys = (to_blocks(x, block_size, -2) for x in (queries, keys))
    n = keys.shape[2]
    if matrices is None:
        matrices = queries.new_zeros(batch, heads, n, n, dtype=torch.promote_types(queries.dtype, torch.float32))
    # what each original token brings to slot t of sorted block i, the shares of a slot adding up to 1
    arrived = matrices[..., None] * valid[:, :, None]  # (B, H, n, n, b): i, j, t
    mass = arrived.sum(3)  # (B, H, n, b)
    shares = (arrived / divisor(mass)[..., None, :]).to(values.dtype)
    sorted_keys = torch.einsum("bhijt,bhjtd->bhitd", shares, keys)
    log_mass = divisor(mass).log()
    if sortcut_blocks is not None:
        cut = slice(sortcut_blocks)
        logits = torch.einsum("bhisd,bhctd->bhisct", queries, sorted_keys[:, :, cut]) + log_mass[:, :, None, None, cut]
        weights = seen_softmax(logits.flatten(-2), (mass > 0)[:, :, None, None, cut].flatten(-2))
        weights = F.dropout(weights.to(values.dtype), dropout).unflatten(-1, (-1, block_size))  # (B, H, n, b, c, b)
        effective = torch.einsum("bhisct,bhcjt->bhisjt", weights, shares[:, :, cut])
    else:
        own_logits = queries @ keys.transpose(-1, -2)  # (B, H, n, b, b)
        sorted_logits = queries @ sorted_keys.transpose(-1, -2) + log_mass[..., None, :]
        past = torch.ones(block_size, block_size, dtype=torch.bool, device=queries.device)
        past = past.tril() if is_causal else past
        slots = slot_weights(sorted_logits, own_logits, mass > 0, valid, past, combine)
        sorted_weights, own_weights = (F.dropout(x.to(values.dtype), dropout) for x in slots)
        effective = torch.einsum("bhist,bhijt->bhisjt", sorted_weights, shares)
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
        sorted_logits, own_logits: (B, H, n, rows, b), of some queries of each block.
        arrived: (B, H, n, b), true at the sorted slots where anything valid arrives.
        valid: (1 or B, 1, n, b), true at the own slots that hold a valid token.
        past: true where a query may see an own slot, broadcast to the logits.

    Returns:
        Two of (B, H, n, rows, b).
    """
    sorted_seen = arrived[..., None, :].expand_as(sorted_logits)
    own_seen = (valid[..., None, :] & past).expand_as(own_logits)
    if combine == "sum":
        return seen_softmax(sorted_logits, sorted_seen), seen_softmax(own_logits, own_seen)
    if combine == "logits":
        # a block that nothing is moved to, such as the first of a causal model, has but its own
        moved = arrived.any(-1)[..., None, None]  # (B, H, n, 1, 1)
        logits = own_logits + sorted_logits.masked_fill(~moved, 0.0)
        weights = seen_softmax(logits, torch.where(moved, sorted_seen & past, own_seen))
        return weights * moved, weights * ~moved
    logits = torch.cat((sorted_logits, own_logits), dim=-1)  # (B, H, n, rows, 2 b)
    sorted_weights, own_weights = seen_softmax(logits, torch.cat((sorted_seen, own_seen), dim=-1)).chunk(2, dim=-1)
    return sorted_weights, own_weights
