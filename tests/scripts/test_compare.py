"""`synkhorn compare`: files that cannot be, a tiny comparison that is killed and resumes, what it reads and writes."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset
from transformers import BertConfig, BertModel, Trainer, TrainerCallback

from synkhorn import byte_tokenizer
from synkhorn.scripts import ablate, compare, train_synthetic
from synkhorn.scripts.common.comparison_spec import read_spec
from synkhorn.scripts.measuring import comparison_report
from synkhorn.scripts.measuring.comparison_report import interval, table
from synkhorn.scripts.measuring.sort_statistics import mixed
from synkhorn.scripts.training import comparison, entrants, experiments

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPEC = {
    "title": "Tiny",
    "task": {"name": "copy", "vocab_size": 8, "block_size": 4, "num_blocks": 4, "distance": 2, "evaluation_size": 10},
    "max_length": 16,
    "model": SIZES | {"hidden_dropout": 0.0},
    "training": {"per_device_train_batch_size": 4, "bf16": False},
    "budget": {"steps": 4},
    "evaluations": 2,
    "learning_rates": ["1e-3", 1e-2],
    "seeds": [0, 1],
    "against": "local",
    "entrants": {
        "local": {"model_type": "sinkhorn", "block_size": 4, "sort_net": "none"},
        "sorted": {"model_type": "sinkhorn", "block_size": 4},
        "BERT": {"model_type": "bert", "is_decoder": True, "hidden_dropout": None, "learning_rates": [1e-3]},
    },
}
TEXTS = [f"{word} film number {number}" for number in range(15) for word in ("good", "bad")] * 2


@pytest.fixture
def texts(monkeypatch) -> None:
    """A source of tiny texts: whether they say good or bad."""
    examples = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 30}).cast_column(
        "label", ClassLabel(names=list("ab"))
    )
    monkeypatch.setitem(experiments.SOURCES, "reviews", lambda data_dir: examples)


def run(folder: Path, spec: dict, *arguments: str, is_drawn: bool = False) -> list[dict]:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with nullcontext() if is_drawn else patch.object(comparison_report, "draw"):
        return compare.main([str(folder / "tiny.yaml"), "--output_dir", str(folder / "runs"), *arguments])


def figures(results: list[dict]) -> list:
    """What does not depend on the machine."""
    return [{k: v for k, v in x.items() if k not in ("seconds", "peak_megabytes", "curve")} for x in results]


def without(spec: dict, name: str) -> dict:
    return {field: value for field, value in spec.items() if field != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"hours": 2}}, "budget={'hours': 2} must be one of steps, epochs, tokens, cpu_seconds"),
        ({"budget": {"steps": 0}}, "budget={'steps': 0} must be one of"),
        ({"learning_rates": ["fast"]}, "learning_rates=['fast'] must be a list of numbers above 0"),
        ({"seeds": [0, 0]}, "seeds=[0, 0] must be different whole numbers"),
        ({"max_length": "long"}, "max_length='long' must be a whole number of at least 1"),
        ({"entrants": {}}, "entrants={} must be at least one"),
        (
            {"entrants": {"a": {"block_size": 3}}},
            "entrants.a={'block_size': 3} must be an entrant with one of model_type",
        ),
        ({"entrants": {"a": {"baseline": "forest"}}}, "entrants.a.baseline='forest' must be tfidf"),
        ({"entrants": {"a": {"checkpoint": {"package": "x"}}}}, "must be a name, or `package` and `path`"),
        (
            {"entrants": {"a": {"model_type": "bert", "max_length": 0}}},
            "entrants.a.max_length=0 must be a whole number",
        ),
        (
            {"entrants": {"a": {"model_type": "bert", "convert": "sinkhorn"}}},
            "entrants.a.convert='sinkhorn' must be beside",
        ),
        ({"against": "nobody"}, "against='nobody' must be one of local, sorted, BERT"),
        ({"task": {"source": "reviews"}}, "must be names and values with a `name`"),
        ({"learning_rate": 1}, "learning_rate=1 must be left out: the fields are title, task"),
    ],
)
def test_a_file_that_cannot_be_is_an_error_before_anything_is_loaded(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_spec(SPEC | change)
    with pytest.raises(ValueError, match="title=None must be given"):
        read_spec(without(SPEC, "title"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"task": SPEC["task"] | {"name": "walk"}},
            "task.name='walk' must be one of classification, language_modeling",
        ),
        ({"task": without(SPEC["task"], "distance")}, "does not fit: copy_across_blocks"),
        (
            {"task": {"name": "classification", "source": "novels"}},
            "task.source='novels' is unknown: choose one of reviews",
        ),
        ({"training": {"speed": 2}}, "training=['speed'] must be arguments of transformers.TrainingArguments"),
        (
            {"model": SIZES | {"colour": 1}},
            "entrants.local.colour=1 must be left out: SinkhornConfig has no such field",
        ),
    ],
)
def test_a_task_or_field_that_there_is_not_is_an_error_before_a_training(change, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(tmp_path, SPEC | change)


def test_a_killed_comparison_resumes_and_nothing_is_done_twice(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", SPEC)
    assert [(x["entrant"], x["seed"]) for x in whole] == [(n, s) for s in (0, 1) for n in ("local", "sorted", "BERT")]
    # the first seed tries the rates, the other takes the best
    assert [len(x["validation"]) for x in whole] == [2, 2, 1, 1, 1, 1]
    assert all(max(x["validation"].values()) == x["validation"][f"{x['rate']:g}"] for x in whole)

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if "sorted" in args.output_dir and state.global_step == 3:
                raise KeyboardInterrupt

    original = Trainer.__init__
    tested = []
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(Kill()))[0]
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", SPEC)
    record = json.loads((tmp_path / "killed" / "tiny.json").read_text())
    assert [x["entrant"] for x in record["results"]] == ["local"]
    assert list((tmp_path / "killed" / "runs").glob("tiny/sorted/seed-0/rate-0.001/checkpoint-2"))
    predict = Trainer.predict
    monkeypatch.setattr(
        Trainer, "predict", lambda self, rows: (tested.append(self.args.output_dir), predict(self, rows))[1]
    )
    resumed = run(tmp_path / "killed", SPEC)
    assert figures(resumed) == figures(whole)
    # the test split is read once by each result that was missing, with the best rate
    assert len(tested) == len(set(tested)) == 5
    monkeypatch.setattr(comparison.Comparison, "train", None)
    assert figures(run(tmp_path / "killed", SPEC)) == figures(whole)
    with pytest.raises(FileExistsError, match="holds a run with other arguments: budget"):
        run(tmp_path / "killed", SPEC | {"budget": {"steps": 5}})
    # the report alone is enough to go on from, for the cells that are still the same
    elsewhere = ["--output_dir", str(tmp_path / "elsewhere"), "--keep_recorded"]
    assert figures(run(tmp_path / "killed", SPEC, *elsewhere)) == figures(whole)
    monkeypatch.setattr(comparison.Comparison, "result", lambda self, name, seed, rates: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception, match="sorted"):
        changed = SPEC["entrants"] | {"sorted": {"model_type": "sinkhorn", "block_size": 8}}
        run(tmp_path / "killed", SPEC | {"entrants": changed}, *elsewhere)


def test_all_entrants_read_the_same_batches_in_the_same_order(tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    step = Trainer.training_step

    def record(self, model, inputs, *rest):
        seen.setdefault(self.args.output_dir.split("/")[-3], []).append(inputs["input_ids"].clone())
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", record)
    run(tmp_path, SPEC | {"learning_rates": [1e-3], "seeds": [3]})
    assert len(seen["local"]) == 4
    for name in ("sorted", "BERT"):
        assert all(torch.equal(a, b) for a, b in zip(seen["local"], seen[name], strict=True))
    assert not torch.equal(seen["local"][0], seen["local"][1])


def test_the_report_has_table_figures_and_plot(tmp_path):
    results = run(
        tmp_path, SPEC | {"entrants": {"local": SPEC["entrants"]["local"]}, "learning_rates": [1e-3]}, is_drawn=True
    )
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert record["results"] == json.loads(json.dumps(results)) and record["spec"]["seeds"] == [0, 1]
    assert "| local | 2 |" in (tmp_path / "tiny.md").read_text()
    assert (tmp_path / "tiny.png").stat().st_size > 10_000
    assert all(point[1] > 0 for point in results[0]["curve"]) and len(results[0]["curve"]) == 2


def test_the_table_has_intervals_and_differences_seed_by_seed():
    assert interval([1.0]) == (1.0, 0.0)
    # Student's t of two degrees of freedom: 4.3027
    middle, half = interval([1.0, 2.0, 3.0])
    assert (middle, half) == (2.0, pytest.approx(4.3027 / 3**0.5, abs=1e-4))
    shared = {"rate": 0.1, "steps": 5, "parameters": 1000, "seconds": 2.0}
    rows = [("a", 0, 0.5), ("b", 0, 0.6), ("a", 1, 0.7), ("b", 1, 0.8)]
    results = [{"entrant": n, "seed": s, "test": {"accuracy": v}} | shared for n, s, v in rows]
    assert table(results, "accuracy", "a")[2:] == [
        "| a | 2 | 0.6 ± 1.3 |  | 0.1 | 5 | 1,000 | 2 |  |",
        "| b | 2 | 0.7 ± 1.3 | +0.1000 ± 7.1e-16 | 0.1 | 5 | 1,000 | 2 |  |",
    ]


def test_texts_are_dealt_into_folds_and_the_same_model_can_be_cut(texts, tmp_path):
    spec = SPEC | {
        "task": {"name": "classification", "source": "reviews", "validation_size": 10},
        "tokenizer": "bytes",
        "max_length": 32,
        "against": "cut",
        "entrants": {
            "TF-IDF": {"baseline": "tfidf", "words": 2, "ngram_range": [1, 2], "learning_rates": [1]},
            "whole": {"model_type": "sinkhorn", "block_size": 8},
            "cut": {"model_type": "sinkhorn", "block_size": 8, "max_length": 8},
        },
    }
    results = run(tmp_path, spec)
    by_name = {(x["entrant"], x["seed"]): x for x in results}
    # the word that decides is among the first two
    assert by_name["TF-IDF", 0]["test"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert [sum(part["rows"] for part in x["by_length"]) for x in results] == [12] * 6
    config = json.loads((tmp_path / "runs/tiny/cut/seed-0/rate-0.001/config.json").read_text())
    assert config["max_position_embeddings"] == 8 and config["num_labels" if "num_labels" in config else "id2label"]
    task = experiments.TextClassification("reviews", validation_size=10)
    folds = [task.examples(part) for part in range(5)]
    assert sorted(text for fold in folds for text in fold["test"]["text"]) == sorted(TEXTS)
    assert [len(folds[2][split]) for split in ("train", "validation", "test")] == [38, 10, 12]


def test_a_comparison_starts_from_the_models_of_another_or_converts_a_checkpoint(texts, tmp_path):
    shared = SPEC | {"tokenizer": "bytes", "max_length": 32, "learning_rates": [1e-3], "seeds": [1], "against": None}
    shared["entrants"] = {"sinkhorn": {"model_type": "sinkhorn", "block_size": 8}}
    masked = shared | {"task": {"name": "language_modeling", "objective": "mlm", "source": "reviews"}}
    (before,) = run(tmp_path / "masked", masked)
    assert before["test"]["perplexity"] > 1 and list(before["validation"].values())[0] > 1
    checkpoint = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=261, max_position_embeddings=16, **SIZES)).save_pretrained(checkpoint)
    byte_tokenizer(16).save_pretrained(checkpoint)
    entrants_after = {
        "sinkhorn": {"start_from": str(tmp_path / "masked/runs/tiny")},
        "BERT, longer": {"checkpoint": str(checkpoint), "convert": "sinkhorn", "block_size": 8},
    }
    spec = shared | {"task": {"name": "classification", "source": "reviews"}, "entrants": entrants_after}
    cells = comparison.Comparison(read_spec(spec), tmp_path / "cells", None)
    tokenizer = cells.tokenizer(1)
    warm = cells.model("sinkhorn", 1, tokenizer)
    source = entrants.AutoConfig.from_pretrained(cells.source("sinkhorn", 1))
    assert source.model_type == "sinkhorn" and warm.config.num_labels == 2 and warm.config.block_size == 8
    trained = experiments.AutoModelForMaskedLM.from_pretrained(cells.source("sinkhorn", 1))
    assert torch.equal(warm.get_input_embeddings().weight, trained.get_input_embeddings().weight)
    longer = cells.model("BERT, longer", 1, tokenizer)
    assert longer.config.max_position_embeddings == 32
    with pytest.raises(
        FileNotFoundError, match="entrants.sinkhorn.start_from=.* has no finished .*seed-0: run it first"
    ):
        cells.model("sinkhorn", 0, tokenizer)
    assert [x["entrant"] for x in run(tmp_path / "after", spec)] == list(entrants_after)


def test_a_linear_classifier_reads_a_frozen_model(texts, tmp_path):
    checkpoint = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=261, max_position_embeddings=32, **SIZES)).save_pretrained(checkpoint)
    byte_tokenizer(32).save_pretrained(checkpoint)
    frozen = {"checkpoint": str(checkpoint), "frozen": True, "learning_rates": [10], "max_length": 30}
    spec = SPEC | {
        "task": {"name": "classification", "source": "reviews", "validation_size": 10},
        "max_length": 32,
        "against": None,
        "entrants": {"BERT": frozen, "converted": frozen | {"convert": "sinkhorn", "block_size": 8}},
    }
    results = run(tmp_path, spec)
    assert [x["entrant"] for x in results] == ["BERT", "converted"] * 2
    assert min(x["test"]["accuracy"] for x in results) > 0.7
    cells = comparison.Comparison(read_spec(spec), tmp_path / "cells", None)
    (state,) = cells.states("BERT", 0, [TEXTS[0]])
    model, tokenizer = cells.model("BERT", 0, cells.tokenizer(0)).base_model.eval(), cells.tokenizer(0)
    with torch.no_grad():
        layers = model(
            **tokenizer(TEXTS[0], truncation=True, max_length=30, return_tensors="pt"), output_hidden_states=True
        )
    expected = torch.cat([layer[0].mean(0) for layer in layers.hidden_states])
    torch.testing.assert_close(torch.from_numpy(state), expected)
    # another seed may start from another checkpoint
    other = tmp_path / "other"
    BertModel(BertConfig(vocab_size=261, max_position_embeddings=32, **SIZES)).save_pretrained(other)
    cells.source = lambda name, seed: str((checkpoint, other)[seed])
    assert abs(cells.states("BERT", 1, [TEXTS[0]])[0] - state).max() > 0.1


def test_a_trained_sort_is_served_hard_and_its_distance_from_a_permutation_told(tmp_path):
    entrants = {
        "soft": {"model_type": "sinkhorn", "block_size": 4},
        "hard": {"trained_as": "soft", "sort_top_k": 1},
        "cold": {"model_type": "sinkhorn", "block_size": 4, "annealed_to": 0.25},
    }
    soft, hard, cold = run(
        tmp_path, SPEC | {"entrants": entrants, "seeds": [0], "learning_rates": [1e-3], "against": None}
    )
    assert hard["validation"] == soft["validation"] and not (tmp_path / "runs/tiny/hard/seed-0/rate-0.001").exists()
    assert all(layer["rows"] == pytest.approx(1) for layer in hard["sort"]) and soft["sort"][0]["rows"] > 1.5
    config = json.loads((tmp_path / "runs/tiny/cold/seed-0/rate-0.001/config.json").read_text())
    assert config["sinkhorn_temperature"] == pytest.approx(0.25)
    assert "| hard | 1.000 |" in (tmp_path / "tiny.md").read_text()
    # of two entries alike, of one, and of one row without any
    halves = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert mixed(halves) == pytest.approx((2 + 1) / 2)
    with pytest.raises(ValueError, match="trained_as='soft' must be an entrant above it"):
        run(tmp_path, SPEC | {"entrants": {"hard": {"trained_as": "cold"}} | entrants, "against": None})


def test_drawn_sequences_have_no_epochs(tmp_path):
    with pytest.raises(ValueError, match=re.escape("budget={'epochs': 2} must be steps, tokens or cpu_seconds")):
        run(tmp_path, SPEC | {"budget": {"epochs": 2}})


@pytest.mark.parametrize(("budget", "steps"), [({"steps": 7}, 7), ({"epochs": 2}, 5), ({"tokens": 640}, 10)])
def test_a_budget_becomes_steps(budget, steps, tmp_path):
    cells = comparison.Comparison(read_spec(SPEC | {"budget": budget}), tmp_path, None)
    rows = [{"input_ids": torch.zeros(16)}] * 10
    assert cells.steps("local", 0, rows, None) == steps


def test_a_budget_of_seconds_becomes_steps_once(tmp_path, monkeypatch):
    cells = comparison.Comparison(read_spec(SPEC | {"budget": {"cpu_seconds": 3}}), tmp_path, None)
    ticks = iter(np.arange(100) * 0.25)
    monkeypatch.setattr(comparison.Cost, "clock", lambda self: float(next(ticks)))
    train = cells.rows("train", "local", 0, None, 64)
    # a step is from one tick to the next
    assert cells.steps("local", 0, train, None) == 12
    monkeypatch.setattr(comparison, "Cost", None)
    assert cells.steps("local", 0, train, None) == 12


def test_bins_are_lengths_or_fifths():
    assert entrants.slug("a, b (c)") == "a_b_c_"
    assert comparison.bins(np.array([64, 32, 64])) == [(32, 32), (64, 64)]
    lengths = np.arange(100)
    parts = comparison.bins(lengths)
    assert len(parts) == 5 and parts[0][0] == 0 and parts[-1][1] == 99
    assert all(low == high + 1 for (_, high), (low, _) in zip(parts[:-1], parts[1:], strict=True))


def test_ablate_trains_each_choice_beside_the_base(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "SIZES", SIZES)
    output = tmp_path / "ablation"
    command = ["--steps", "2", "--max_length", "16", "--tokenizer", "bytes", "--output_dir", str(output), "--family"]
    command += ["synthesizer", "--factors", "dropout", "pre-training"]
    results = ablate.main(command)
    assert [x["entrant"] for x in results] == ["base", "dropout: off", "pre-training: masked", "pre-training: causal"]
    assert json.loads((output / "clm.json").read_text())["metric"] == "perplexity"
    assert "| dropout: off | 1 |" in (output / "ablation.md").read_text()
    with pytest.raises(ValueError, match=r"factors=\['colour'\] are unknown: choose of schedule, clipping"):
        ablate.main(["--factors", "colour"])


def test_train_synthetic_compares_with_local_attention(tmp_path):
    results = train_synthetic.main(["sort", "--steps", "2", "--output_dir", str(tmp_path)])
    assert [x["entrant"] for x in results] == ["local", "Sinkhorn"]
    assert "| Sinkhorn | 1 |" in (tmp_path / "sort.md").read_text()


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[2].glob("benchmarks/*/*.yaml")), ids=lambda path: path.stem
)
def test_every_recorded_file_can_be_run(file, tmp_path):
    spec = read_spec(yaml.safe_load(file.read_text()))
    cells = comparison.Comparison(spec, tmp_path, None)
    assert spec.task["name"] in experiments.EXPERIMENTS
    if not issubclass(experiments.EXPERIMENTS[spec.task["name"]], experiments.TextTask):
        row = cells.rows("test", next(iter(spec.entrants)), 0, None, 0)[0]
        assert len(row["input_ids"]) <= spec.max_length
