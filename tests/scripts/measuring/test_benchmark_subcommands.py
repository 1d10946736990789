"""What the benchmark's subcommands measure: fine-tuning on real reviews, the operators of a step, and generation."""

import json

import pytest
import torch

from synkhorn.scripts import benchmark
from synkhorn.scripts.measuring import benchmark_decode, benchmark_profile, benchmark_throughput
from synkhorn.scripts.measuring.benchmark_models import BERT, FLOOR, MODELS, Sizes, classifier
from synkhorn.scripts.measuring.benchmark_worker import BOTH

SIZES = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
TINY = Sizes(length=128, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("lucidrains") and name != "mamba2"])
def test_every_classifier_learns_from_a_padded_batch(name):
    model = classifier(name, TINY)
    ids = torch.randint(1, 32, (2, 128))
    ids[1, 70:] = 0
    # Transformers' masks do not fit its landmarks
    mask = None if name == "nystromformer" else (ids != 0).long()
    outputs = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 2) and outputs.loss > 0


def test_throughput_is_measured_on_real_reviews(tmp_path):
    models = [FLOOR, BERT, "sinkhorn", "nystromformer", "mamba2"]
    call = ["throughput", *SIZES, "--vocab_size", "300", "--models", *models, "--max_length", "128", "--batches", "2"]
    output = str(tmp_path / "throughput")
    benchmark.main([*call, "--batch_size", "2", "--max_samples", "40", "--output", output])
    results = json.loads((tmp_path / "throughput.json").read_text())["results"]
    assert [len(row["training"]) for row in results] == [len(row["evaluation"]) for row in results] == [3, 3, 3, 3, 0]
    assert results[-1]["missing"] == "ValueError: mamba2 has no classifier"
    assert results[0]["training times floor"] == results[1]["evaluation times peer"] == 1
    text = (tmp_path / "throughput.md").read_text()
    assert "| `mamba2` | ValueError: mamba2 has no classifier |" in text and text.count("| `sinkhorn` |") == 1


def test_batches_come_in_either_order_and_of_all_lengths():
    options = {"batch_size": 4, "batches": 3, "max_samples": 400, "vocab_size": 300, "max_length": 1024}
    arguments = benchmark_throughput.ThroughputArguments(**options, order="length")
    warm_up, *timed = [batch["input_ids"].shape[1] for batch in benchmark_throughput.draw_batches(arguments)]
    # a stride of 25 met the longest batch of every hundred documents
    assert warm_up == 1024 and min(timed) < 800 and len(timed) == 3
    random = benchmark_throughput.draw_batches(benchmark_throughput.ThroughputArguments(**options))
    spread = [batch["attention_mask"].sum(-1) for batch in random]
    assert max(lengths.max() - lengths.min() for lengths in spread) > 300


def test_documents_per_second_leave_out_the_batch_that_warms_up():
    batches = [{"input_ids": torch.zeros(4, n), "attention_mask": torch.ones(4, n)} for n in (64, 128, 64)]
    batches[1]["attention_mask"][:, 64:] = 0
    rows = [
        {"model": model, "training": [9.0, step, step], "evaluation": [9.0, step / 2, step / 2]}
        for model, step in ((FLOOR, 1.0), ("dense", 2.0))
    ]
    floor, dense = benchmark_throughput.summary(rows, batches)
    assert (floor["training documents/s"], dense["training documents/s"], dense["training tokens/s"]) == (4, 2, 128)
    assert (floor["evaluation documents/s"], dense["evaluation documents/s"]) == (8, 4)
    assert dense["training times floor"] == 0.5 and "training times peer" not in dense


def test_a_profile_adds_up_to_the_step(tmp_path):
    output = tmp_path / "profile"
    call = ["profile", *SIZES, "--vocab_size", "32", "--models", FLOOR, BERT, "--length", "512"]
    call += ["--steps", "3", "--output", str(output)]
    benchmark.main(call)
    measured = json.loads(output.with_suffix(".json").read_text())["milliseconds"]
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for phase, models in measured.items():
        assert fused in models[BERT] and fused not in models[FLOOR]
        assert (f"{fused}_backward" in models[BERT]) == (phase == BOTH)
        table = benchmark_profile.rows(models)
        for column, times in enumerate(models.values()):
            own = sum(row[column] for row in table.values())
            assert own == pytest.approx(sum(times.values()) - times["step"])
        short = benchmark_profile.rows({model: {**times, "short": 0.0} for model, times in models.items()})
        assert set(short) == set(table) and benchmark_profile.OTHERS in table
    text = output.with_suffix(".md").read_text()
    assert text.count(f"| `{fused}` | 0.0 |") == 2 and text.count("| a step without the profiler |") == 2
    with pytest.raises(ValueError, match="--phases 'backward' is unknown: choose among forward, forward"):
        benchmark.main([*call, "--phases", "backward"])


def test_tokens_per_second_are_measured_from_a_filled_cache(tmp_path):
    models = ["sinkhorn", "dense+dot_product", "random", "gpt2", "llama"]
    call = ["decode", *SIZES, "--vocab_size", "32", "--models", *models, "--lengths", "64", "--batch_sizes", "2"]
    benchmark.main([*call, "--tokens", "4", "--rounds", "2", "--output", str(tmp_path / "decode")])
    results = json.loads((tmp_path / "decode.json").read_text())["results"]
    assert [row["model"] for row in results] == models
    for row in results:
        assert 0 < row["least"] <= row["tokens/s"] <= row["most"]
        # at least the values: 64 tokens in 2 rows, 16 features of 4 bytes
        assert row["cache MB"] * 2**20 >= 64 * 2 * 16 * 4
    text = (tmp_path / "decode.md").read_text()
    assert "## Batch 2" in text and "| tokens/s at | 64 |" in text and "(1.00)" in text
    assert (tmp_path / "decode.png").stat().st_size > 10_000


def test_a_matrix_that_is_too_large_is_not_built():
    arguments = benchmark_decode.parser().parse_args(["--models", "random", "--tokens", "1"])
    (row,) = benchmark_decode.measure(32768, 1, arguments)
    assert row["missing"] == "its matrices take 64 GB"
