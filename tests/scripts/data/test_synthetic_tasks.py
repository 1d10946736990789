"""The synthetic tasks: their sequences, and what a guess earns."""

import pytest
import torch

from synkhorn.scripts.data.synthetic_tasks import (
    IGNORED,
    chance_of_copy,
    chance_of_sort,
    copy_across_blocks,
    sort_sequence,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("block_size", "num_blocks", "distance"), [(3, 5, 3), (8, 8, 3), (4, 7, 2), (1, 2, 1)])
def test_a_copied_block_is_the_one_some_blocks_before(block_size, num_blocks, distance):
    ids, labels = copy_across_blocks(4, block_size, num_blocks, distance, 11, seeded())
    assert ids.shape == labels.shape == (4, block_size * num_blocks)
    blocks = ids.view(4, num_blocks, block_size)
    assert torch.equal(blocks[:, distance:], blocks[:, :-distance])
    random = distance * block_size
    assert (labels[:, :random] == IGNORED).all() and torch.equal(labels[:, random:], ids[:, random:])
    # the random blocks are not copies of each other
    assert ids[:, :random].unique().numel() > 1


@pytest.mark.parametrize("distance", [0, 5, 6])
def test_a_distance_without_a_copy_is_an_error(distance):
    with pytest.raises(ValueError, match=f"distance={distance} must lie in 1 to 4"):
        copy_across_blocks(1, 2, 5, distance, 7, seeded())


def test_sorted_labels_are_the_tokens_in_order():
    ids, labels = sort_sequence(5, 64, 9, seeded())
    assert (labels.diff(dim=-1) >= 0).all()
    for token in range(9):
        assert torch.equal((ids == token).sum(-1), (labels == token).sum(-1))


def test_the_generator_alone_decides_what_is_drawn():
    for draw in (lambda g: copy_across_blocks(3, 4, 5, 2, 30, g), lambda g: sort_sequence(3, 20, 30, g)):
        (ids, labels), (again, labels_again), (other, _) = draw(seeded(1)), draw(seeded(1)), draw(seeded(2))
        assert torch.equal(ids, again) and torch.equal(labels, labels_again)
        assert not torch.equal(ids, other)


def test_chance_is_what_the_best_guess_earns():
    assert chance_of_copy(32) == 1 / 32
    _, labels = sort_sequence(4000, 20, 7, seeded())
    commonest = labels.mode(0).values
    assert chance_of_sort(20, 7) == pytest.approx((labels == commonest).float().mean().item(), abs=0.01)
