"""Sinkhorn attention written from the paper, one query, slot and number at a time: what the tests compare with."""

import math
from functools import partial
from itertools import product

import torch

from synkhorn.modeling.modeling_sinkhorn import SinkhornAttention


def loop_pooled(config, x, block):
    """x' of one block of one row x (L, d)."""
    start = block * config.block_size
    read = x[: start + 1] if config.is_causal else x[start : start + config.block_size]
    if config.block_pooling == "first":
        return x[start]
    total = sum(read)
    if config.block_pooling == "normed_sum":
        return 64 * total / (total @ total + 1e-5 * len(total)).sqrt()
    return total / (len(read) if config.block_pooling == "mean" else 1)


def loop_pooled_logit(attention, x, head, i, j):
    """R[i, j] of one head: the mean query of block i, or its first in a causal model, times the mean key of block j."""
    config = attention.config
    b, dh = config.block_size, config.head_dim
    part = slice(None) if config.share_sort_net else slice(head * dh, (head + 1) * dh)
    queries, keys = attention.query(x)[:, part], attention.key(x)[:, part]
    query = queries[i * b] if config.is_causal else queries[i * b : (i + 1) * b].mean(0)
    return query @ keys[j * b : (j + 1) * b].mean(0) / math.sqrt(dh)


def loop_sort_logit(attention, pooled, index, i, j):
    """R[i, j] of the matrix at this index of the net's."""
    net, config = attention.sort.net, attention.config
    if config.sort_net == "linear":
        return net.weight[index, j] @ pooled[i] + net.bias[index, j]
    if config.sort_net == "mlp":
        hidden = torch.relu(net.input_weight[index] @ pooled[i] + net.input_bias[index])
        return net.output_weight[index, j] @ hidden + net.output_bias[index, j]
    width = config.hidden_size if config.share_sort_net else config.head_dim
    return (net.query_weight[index] @ pooled[i]) @ (net.key_weight[index] @ pooled[j]) / math.sqrt(width)


def loop_sort(attention, x, head, r) -> dict:
    """{(i, j): S_ij} of one row and head, for its r-th sorted blocks: the pairs that take part, number by number."""
    config = attention.config
    index = (0 if config.share_sort_net else head) * config.sorted_blocks + r
    blocks = range(math.ceil(len(x) / config.block_size))
    pooled = [loop_pooled(config, x, i) for i in blocks]
    pairs = [(i, j) for i in blocks for j in blocks if j < i or not config.is_causal]
    logit = partial(loop_sort_logit, attention, pooled, index)
    if config.sort_net == "pooled":
        logit = partial(loop_pooled_logit, attention, x, head)
    matrix = {(i, j): (logit(i, j) / config.sinkhorn_temperature).exp() for i, j in pairs}
    only_rows = config.is_causal and config.causal_balancing == "softmax"
    for _ in range(1 if only_rows else config.sinkhorn_iterations):
        if not only_rows:
            sums = {
                (i, j): sum(matrix[k, j] for k in blocks if (k, j) in matrix and (k <= i or not config.is_causal))
                for i, j in pairs
            }
            matrix = {pair: value / sums[pair] for pair, value in matrix.items()}
        sums = {i: sum(matrix[i, j] for j in blocks if (i, j) in matrix) for i in blocks}
        matrix = {(i, j): value / sums[i] for (i, j), value in matrix.items()}
    return matrix if config.num_chosen is None else loop_choice(matrix, config.num_chosen, config.sort_hard)


def loop_choice(matrix, k, is_hard) -> dict:
    """The k largest entries of each row, which then add up to 1; straight-through, with the gradient of all entries."""
    chosen = {}
    for row in {i for i, _ in matrix}:
        pairs = sorted((pair for pair in matrix if pair[0] == row), key=matrix.get, reverse=True)
        total = sum(matrix[pair] for pair in pairs[:k])
        for rank, pair in enumerate(pairs):
            if is_hard:
                hard = (matrix[pair] / total).detach() * (rank < k)
                chosen[pair] = hard + (matrix[pair] - matrix[pair].detach())
            elif rank < k:
                chosen[pair] = matrix[pair] / total
    return chosen


def softmax_sum(terms):
    """sum_t exp(logit_t) value_t / sum_t exp(logit_t) over pairs of a logit and a value; 0 for none."""
    if not terms:
        return 0.0
    return sum(logit.exp() * value for logit, value in terms) / sum(logit.exp() for logit, _ in terms)


def loop_query(config, q, k, v, matrices, position):
    """Output of one head for one query, slot by slot."""
    b, length = config.block_size, len(q)
    n = math.ceil(length / b)
    block, offset = divmod(position, b)

    def sorted_slots(i):
        slots = {}
        for r, t in product(range(len(matrices)), range(b)):
            tokens = [(i, j, j * b + t) for j in range(n) if (i, j) in matrices[r] and j * b + t < length]
            arriving = [(matrices[r][i, j], token) for i, j, token in tokens]
            mass = sum(share for share, _ in arriving)
            if mass > 0:
                key, value = (sum(share * x[token] for share, token in arriving) / mass for x in (k, v))
                slots[r, t] = (q[position] @ key + mass.log(), value)
        return slots

    own = {
        t: (q[position] @ k[block * b + t], v[block * b + t])
        for t in range(min(b, length - block * b))
        if t <= offset or not config.is_causal
    }
    if config.sortcut_blocks is not None:
        output = softmax_sum([slot for i in range(min(n, config.sortcut_blocks)) for slot in sorted_slots(i).values()])
    elif config.combine == "sum":
        output = softmax_sum(list(sorted_slots(block).values())) + softmax_sum(list(own.values()))
    elif config.combine == "logits":
        slots = sorted_slots(block)
        visible = [t for _, t in slots if t <= offset or not config.is_causal]
        joint = [(slots[0, t][0] + (own[t][0] if t in own else 0.0), slots[0, t][1]) for t in visible]
        output = softmax_sum(joint if slots else list(own.values()))
    else:
        output = softmax_sum(list(sorted_slots(block).values()) + list(own.values()))
    if config.mix_dot_product:
        seen = range(position + 1 if config.is_causal else length)
        output = output + softmax_sum([(q[position] @ k[j], v[j]) for j in seen])
    return output + torch.zeros_like(v[0])


def loop_attention(attention: SinkhornAttention, x: torch.Tensor) -> torch.Tensor:
    """One row (L, d) -> (L, d), query by query, then the output projection."""
    config = attention.config
    dh = config.head_dim
    heads = []
    for head in range(config.num_attention_heads):
        part = slice(head * dh, (head + 1) * dh)
        q, k, v = (
            x @ module.weight[part].T + module.bias[part]
            for module in (attention.query, attention.key, attention.value)
        )
        sorts = 0 if config.sort_net == "none" else config.sorted_blocks
        matrices = [loop_sort(attention, x, head, r) for r in range(sorts)]
        heads.append(torch.stack([loop_query(config, q / math.sqrt(dh), k, v, matrices, i) for i in range(len(x))]))
    return torch.cat(heads, dim=-1) @ attention.output.weight.T + attention.output.bias
