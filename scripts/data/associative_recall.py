"""
Multi-query associative recall (MQAR), as zoology draws it (Arora et al., arXiv 2312.04927): pairs of a key and a value,
then each key again, somewhere, to be answered by its value. Nothing to install: it is drawn.
"""

import torch

from .synthetic_tasks import IGNORED

# the exponent of the power law by which keys come back: mostly soon
POWER = 0.01


def multi_query_recall(
    length: int, num_pairs: int, vocab_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One sequence for a causal language model, which shifts the labels itself. Keys are the lower half of the vocabulary
    without 0, which fills the gaps; values are the upper half. With a vocabulary of 12 and two pairs:

        ids     2 8 4 7 0 0 4 0 0 0 2 0
        labels  - - - - - - - 7 - - - 8

    Returns:
        Ids and labels, (length,) each.

    Raises:
        ValueError: if the pairs and their queries do not fit, or the vocabulary is too small.
    """
    context = 2 * num_pairs
    if length % 2 or 2 * context > length:
        raise ValueError(f"length={length} must be even, and at least 4 * num_pairs={4 * num_pairs}")
    if vocab_size // 2 <= num_pairs:
        raise ValueError(f"vocab_size={vocab_size} must be more than 2 * num_pairs={2 * num_pairs}")
    keys = 1 + torch.randperm(vocab_size // 2 - 1, generator=generator)[:num_pairs]
    values = vocab_size // 2 + torch.randperm(vocab_size - vocab_size // 2, generator=generator)[:num_pairs]
    gaps = torch.arange(1, (length - context) // 2 + 1)
    places = context + 2 * torch.multinomial(gaps ** (POWER - 1), num_pairs, generator=generator)
    ids, labels = torch.zeros(length, dtype=torch.long), torch.full((length,), IGNORED)
    ids[:context] = torch.stack((keys, values), dim=1).flatten()
    ids[places], labels[places + 1] = keys, values
    return ids, labels
