"""
Sequences that a model can only continue, or sort, if it reads far beyond the block that a token stands in.

Each generator is a pure function of its sizes and of a `torch.Generator`, and gives token ids and labels, both
(batch, length), with `IGNORED` at labels that do not count. `chance_of_...` is what a guess without any reading earns.
"""

import math

import torch
from datasets import Dataset

# Transformers' label of a token that takes no loss
IGNORED = -100


def copy_across_blocks(
    batch_size: int, block_size: int, num_blocks: int, distance: int, vocab_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The first `distance` blocks are random; every later block repeats the one `distance` blocks before it. For a causal
    language model, which shifts the labels itself. With 5 blocks of 3 tokens, and a distance of 3:

        ids     4 1 7 | 2 2 5 | 0 6 3 | 4 1 7 | 2 2 5
        labels  - - - | - - - | - - - | 4 1 7 | 2 2 5

    Returns:
        Ids and labels, (batch_size, num_blocks * block_size) each.

    Raises:
        ValueError: if no block is repeated.
    """
    if not 1 <= distance < num_blocks:
        raise ValueError(f"distance={distance} must lie in 1 to {num_blocks - 1}, below num_blocks={num_blocks}")
    first = torch.randint(vocab_size, (batch_size, distance * block_size), generator=generator)
    ids = first.repeat(1, math.ceil(num_blocks / distance))[:, : num_blocks * block_size]
    labels = ids.clone()
    labels[:, : distance * block_size] = IGNORED
    return ids, labels


def sort_sequence(
    batch_size: int, length: int, vocab_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Random tokens, to be emitted in ascending order, position by position. For a bidirectional token classifier with
    `vocab_size` labels. With 8 tokens:

        ids     4 1 7 2 2 5 0 6
        labels  0 1 2 2 4 5 6 7

    Returns:
        Ids and labels, (batch_size, length) each.
    """
    ids = torch.randint(vocab_size, (batch_size, length), generator=generator)
    return ids, ids.sort(-1).values


def chance_of_copy(vocab_size: int) -> float:
    """Accuracy of any guess at a token that nothing tells about."""
    return 1 / vocab_size


def chance_of_sort(length: int, vocab_size: int) -> float:
    """Accuracy of the best guess from the position alone: the likeliest order statistic there, not 1 / vocab_size."""

    def at_most(value: int, position: int) -> float:
        """Probability that the sorted token at `position` is `value` or less: more than `position` tokens are."""
        share = (value + 1) / vocab_size
        return sum(
            math.comb(length, n) * share**n * (1 - share) ** (length - n) for n in range(position + 1, length + 1)
        )

    best = 0.0
    for position in range(length):
        cumulative = [0.0] + [at_most(value, position) for value in range(vocab_size)]
        best += max(after - before for before, after in zip(cumulative, cumulative[1:], strict=False))
    return best / length


def letters_to_sort(rows: int, length: int, letters: int, generator: torch.Generator) -> Dataset:
    """`text`: random letters; `target`: the same ones in ascending order, for an encoder and a decoder."""
    drawn = torch.randint(letters, (rows, length), generator=generator)
    written = [
        ["".join(chr(ord("a") + letter) for letter in row) for row in x.tolist()] for x in (drawn, drawn.sort().values)
    ]
    return Dataset.from_dict(dict(zip(("text", "target"), written, strict=True)))
