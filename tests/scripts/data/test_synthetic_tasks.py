"""The synthetic tasks: their sequences, what a guess earns, and the scripts that train on them."""

import json

import pytest
import torch
from PIL import Image

from synkhorn.scripts import block_pooling, causal_balancing, train_synthetic
from synkhorn.scripts.data.synthetic_tasks import (
    IGNORED,
    chance_of_copy,
    chance_of_sort,
    copy_across_blocks,
    sort_sequence,
)
from synkhorn.scripts.training import synthetic


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


@pytest.mark.parametrize(
    ("task", "sizes", "models"),
    [
        ("copy", ["--num_blocks", "4", "--distance", "2"], ["Sinkhorn, softmax", "Sinkhorn, balanced", "local"]),
        ("sort", ["--length", "12"], ["Sinkhorn", "local"]),
    ],
)
def test_training_writes_its_figures(task, sizes, models, tmp_path):
    tiny = ["--vocab_size", "5", "--block_size", "3", "--hidden_size", "8", "--num_attention_heads", "2"]
    tiny += ["--steps", "3", "--eval_every", "2", "--batch_size", "2", "--eval_size", "4", "--threads", "1"]
    output = tmp_path / "figures" / task
    results = train_synthetic.main([task, *sizes, *tiny, "--output", str(output)])
    assert [result["model"] for result in results] == models
    for result in results:
        assert [point["step"] for point in result["points"]] == [0, 2, 3]
        assert all(0 <= point["exact match"] <= point["accuracy"] <= 1 for point in result["points"])
    assert json.loads(output.with_suffix(".json").read_text())["results"] == results
    assert f"| {models[0]} |" in output.with_suffix(".md").read_text()
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size[0] > 800


def test_accuracy_counts_the_answer_one_position_before_a_causal_label():
    task = synthetic.task_of(train_synthetic.parser().parse_args(["copy"]))

    class Knows(torch.nn.Module):
        """Answers each token of the copied blocks right, one position before it."""

        def forward(self, ids):
            answers = ids.roll(-1, dims=1)
            return type("Output", (), {"logits": torch.nn.functional.one_hot(answers, 32)})

    arguments = train_synthetic.parser().parse_args(["copy", "--eval_size", "6", "--batch_size", "4"])
    assert synthetic.evaluate(Knows(), task, arguments) == {"accuracy": 1.0, "exact match": 1.0}


def test_balancing_moves_a_causal_sort_to_the_previous_block(tmp_path):
    output = tmp_path / "mass"
    masses = causal_balancing.main(["--samples", "50", "--num_blocks", "6", "--output", str(output)])
    means = [sum(mass) / len(mass) for mass in masses.values()]
    assert means == sorted(means)
    with pytest.raises(ValueError, match="num_blocks=3 is too small: from 4 on"):
        causal_balancing.main(["--num_blocks", "3", "--output", str(output)])
    # a softmax of random rows prefers nothing; with 60 iterations next to nothing of the logits is left
    assert masses[0][-1] < 0.4 and min(masses[60]) > 0.9
    assert "| no preference | 0.500 | 0.250 | 0.200 |" in output.with_suffix(".md").read_text()
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size[0] > 800


def test_poolings_are_compared_and_a_repeated_command_trains_nothing_twice(tmp_path, monkeypatch):
    output = tmp_path / "pooling"
    sizes = "--hidden_size 16 --lengths 16 256 --block_sizes 4 16 --poolings sum normed_sum"
    training = "--trained_block_sizes 2 --steps 2 --eval_every 1 --eval_size 4 --seeds 0 1"
    arguments = [*sizes.split(), *training.split(), "--output", str(output)]
    figures = block_pooling.main(arguments)
    assert len(figures["start"]) == 3 * 2 * 2 * 2 * 2 and len(figures["runs"]) == 2 * 2 * 2
    starts = [
        figure for figure in figures["start"] if (figure["sort_net"], figure["direction"]) == ("linear", "causal")
    ]
    spread = {(x["pooling"], x["block_size"], x["length"]): x["spread"] for x in starts}
    assert spread["sum", 4, 256] > 2 * spread["sum", 4, 16]
    assert spread["normed_sum", 4, 256] == pytest.approx(spread["normed_sum", 4, 16], rel=0.5)
    # one block has no other to choose from
    assert spread["sum", 16, 16] is None
    means = output.with_suffix(".md").read_text()
    monkeypatch.setattr(train_synthetic, "train", lambda *arguments: pytest.fail("trained again"))
    assert block_pooling.main(arguments)["runs"] == figures["runs"]
    assert output.with_suffix(".md").read_text() == means and "| `normed_sum` | 2 | " in means
