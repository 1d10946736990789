"""Synthesizer attention written from the paper, one query, key and number at a time: what the tests compare with."""

import math

import torch

from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention


def loop_logit(name, member, config, x, head, i, j):
    """S[i, j] of one member for one row of inputs x (L, d), from the paper's formulas, one number at a time."""
    relu = torch.relu
    if name == "dot_product":
        dh = config.head_dim
        part = slice(head * dh, (head + 1) * dh)
        query = member.query.weight[part] @ x[i] + member.query.bias[part]
        key = member.key.weight[part] @ x[j] + member.key.bias[part]
        return query @ key / math.sqrt(dh)
    if name in ("random", "fixed_random"):
        return member.weight[head, i, j]
    if name == "factorized_random":
        return sum(member.query_weight[head, i, r] * member.key_weight[head, j, r] for r in range(config.rank))
    width = config.synthesizer_hidden_size or config.head_dim
    part = slice(head * width, (head + 1) * width)
    hidden = relu(member.input.weight[part] @ x[i] + member.input.bias[part])
    if name == "dense":
        return hidden @ member.weight[head, j] + member.bias[head, j]
    a, b = config.factor_sizes
    slow = hidden @ member.slow_weight[head, :, j // b] + member.slow_bias[head, 0, j // b]
    fast = hidden @ member.fast_weight[head, :, j % b] + member.fast_bias[head, 0, j % b]
    return slow * fast


def loop_attention(attention: SynthesizerAttention, x: torch.Tensor) -> torch.Tensor:
    """One row (L, d) -> (L, d): `Y = softmax(sum_i alpha_i S_i) V` key by key, then the output projection."""
    config = attention.config
    dh = config.head_dim
    heads = []
    for head in range(config.num_attention_heads):
        part = slice(head * dh, (head + 1) * dh)
        values = x @ attention.value.weight[part].T + attention.value.bias[part]
        alphas = [1.0] * len(attention.members)
        if attention.mixture is not None:
            alphas = attention.mixture[head].exp() / attention.mixture[head].exp().sum()
        outputs = []
        for i in range(len(x)):
            total, weight_sum = 0.0, 0.0
            for j in range(i + 1 if config.is_causal else len(x)):
                logit = sum(
                    alpha * loop_logit(name, member, config, x, head, i, j)
                    for alpha, (name, member) in zip(alphas, attention.members.items(), strict=True)
                )
                total = total + logit.exp() * values[j]
                weight_sum = weight_sum + logit.exp()
            outputs.append(total / weight_sum)
        heads.append(torch.stack(outputs))
    return torch.cat(heads, dim=-1) @ attention.output.weight.T + attention.output.bias
