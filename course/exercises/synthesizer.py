"""Solutions of the exercises on Synthesizers."""

import torch

from synkhorn import SynthesizerConfig


def dense_logits(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor
) -> torch.Tensor:
    """The logits of a dense Synthesizer of one head: (L, d), (d, s), (s,), (s, N), (N,) -> (L, L)."""
    length = x.shape[0]
    return (x @ w1 + b1).relu() @ w2[:, :length] + b2[:length]


def attention_parameters(config: SynthesizerConfig) -> int:
    """Trained parameters of the attention of one layer with only `random`, biases included."""
    d, heads, n = config.hidden_size, config.num_attention_heads, config.max_position_embeddings
    return 2 * (d * d + d) + heads * n * n


def factorized_row(a: torch.Tensor, b: torch.Tensor, length: int) -> torch.Tensor:
    """A row of factorized dense logits from its two factors, (a,) and (b,) -> (length,), with a the slow index."""
    return torch.outer(a, b).flatten()[:length]
