"""`synkhorn ablate`: a tiny grid from end to end, and its table against hand-made figures."""

import csv
import json
import random
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import SIZES, WORDS
from transformers import CONFIG_MAPPING

from synkhorn import FAMILIES
from synkhorn.scripts import ablate
from synkhorn.scripts.training import ablation, finetuning
from synkhorn.scripts.training.models import ModelArguments, own_fields


@pytest.fixture
def base(tmp_path) -> dict:
    """The arguments of a tiny task: whether a text has more good than bad words."""
    draw = random.Random(0)
    files = {}
    for split, count in (("train", 60), ("test", 20)):
        files[split] = tmp_path / f"{split}.csv"
        with files[split].open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for label in draw.choices((0, 1), k=count):
                rows.writerow([" ".join([*draw.choices(WORDS, k=5), ("bad", "good")[label]]), label])
    return {
        "dataset": None,
        "train_files": [str(files["train"])],
        "test_files": [str(files["test"])],
        "validation_size": 10,
        "tokenizer_name": "bytes",
        "max_length": 32,
        "model_config": SIZES | {"block_size": 8},
        "bf16": False,
        "disable_tqdm": True,
    }


def test_a_grid_from_end_to_end(base, tmp_path, monkeypatch):
    factors = {
        "dropout": {"off": {"model_config": {"hidden_dropout": 0.0}}},
        "pre-training": {"masked": {"objective": "mlm"}, "causal": {"objective": "clm"}},
    }
    (tmp_path / "grid.json").write_text(json.dumps({"base": base, "factors": factors}))
    output = tmp_path / "ablation"
    command = ["--grid", str(tmp_path / "grid.json"), "--steps", "3", "--seeds", "0", "1", "--output_dir", str(output)]
    results = ablate.main(command)
    assert [(result["factor"], result["setting"]) for result in results] == [
        ("base", ""),
        ("dropout", "off"),
        ("pre-training", "masked"),
        ("pre-training", "causal"),
    ]
    assert all(len(result["accuracy"]) == 2 and min(result["accuracy"]) >= 0 for result in results)
    assert results[0]["training_loss"] != results[1]["training_loss"] != results[2]["training_loss"]
    folder = output / "dropout-off" / "seed-1" / "finetuned"
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_dropout"], config["block_size"], config["hidden_size"]) == (0.0, 8, 16)
    for objective, kind in (("masked", "ForMaskedLM"), ("causal", "ForCausalLM")):
        folder = output / f"pre-training-{objective}" / "seed-0"
        (architecture,) = json.loads((folder / "pretrained" / "config.json").read_text())["architectures"]
        assert architecture.endswith(kind)
        assert json.loads((folder / "finetuned" / "run.json").read_text())["settings"]["model_name_or_path"] == str(
            folder / "pretrained"
        )
    assert json.loads((output / "ablation.json").read_text())["results"] == results
    text = (output / "ablation.md").read_text()
    assert "| pre-training | causal |" in text
    ended = [sum(result["pretraining_perplexity"]) / 2 for result in results[2:]]
    assert f"ended at perplexities of masked {ended[0]:.0f}, causal {ended[1]:.0f}." in text
    with Image.open(output / "ablation.png") as picture:
        assert picture.size[0] > 800
    # nothing that is finished is trained again
    monkeypatch.setattr(finetuning, "FinetuneTrainer", None)
    assert ablate.main(command) == results


def test_a_budget_of_minutes_becomes_steps(tmp_path, monkeypatch):
    clock = iter([0.0, 15.0, 100.0, 125.0])
    monkeypatch.setattr(ablation.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(ablation, "run", lambda folder, *rest, seed: Path(folder).mkdir())
    # 20 more steps took 10 seconds more
    assert ablation.steps_in(3, {}, tmp_path / "calibration") == 360
    assert not (tmp_path / "calibration").exists()


def test_minutes_are_turned_into_steps_once(tmp_path, monkeypatch):
    measured = iter([7, 9, 11])
    monkeypatch.setattr(ablation, "steps_in", lambda *_: next(measured))
    asked = ablation.AblationArguments(minutes=2)
    assert [ablation.budget(asked, {"seed": 1}, tmp_path) for _ in range(2)] == [7, 7]
    assert ablation.budget(asked, {"seed": 2}, tmp_path) == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_fits_both_families(family):
    base, _ = ablation.grid_of(ablation.AblationArguments(grid=json.dumps({"base": {"family": family}})))
    arguments = ModelArguments(family=base["family"], model_config=json.dumps(base["model_config"]))
    assert own_fields(arguments, CONFIG_MAPPING[family]) == base["model_config"]


def test_the_reading_says_on_which_side_of_the_base_a_setting_lies():
    settings = {"up": [0.6, 0.9], "down": [0.4, 0.7], "both": [0.6, 0.7]}
    results = [{"factor": "f", "setting": name, "accuracy": values} for name, values in settings.items()]
    text = ablation.reading([{"factor": "base", "setting": "", "accuracy": [0.5, 0.8]}, *results], "accuracy")
    assert "all 2 seeds: above the base: f up; below the base: f down; on both sides of the base: f both." in text
    assert "in 50% of such tables" in text


def test_the_table_pairs_seeds():
    results = [
        {"factor": "base", "setting": "", "accuracy": [0.5, 0.7], "training_loss": [1.0, 2.0]},
        {"factor": "clipping", "setting": "off", "accuracy": [0.6, 0.6], "training_loss": [1.0, 1.5]},
    ]
    assert ablation.table(results, "accuracy")[2:] == [
        "| base |  | 0.6000 ± 0.1414 |  | 1.5000 |",
        "| clipping | off | 0.6000 ± 0.0000 | +0.0000 (-0.1000 to +0.1000) | 1.2500 |",
    ]


def test_the_table_of_one_seed_has_no_spread():
    results = [
        {"factor": "base", "setting": "", "accuracy": [0.5], "training_loss": [1.0]},
        {"factor": "clipping", "setting": "off", "accuracy": [0.6], "training_loss": [1.5]},
    ]
    assert ablation.table(results, "accuracy")[2:] == [
        "| base |  | 0.5000 |  | 1.0000 |",
        "| clipping | off | 0.6000 | +0.1000 | 1.5000 |",
    ]


def test_a_metric_that_was_not_measured_is_an_error(base, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "run", lambda *_: {"accuracy": 0.5, "training_loss": 1.0})
    (tmp_path / "grid.json").write_text(json.dumps({"base": base, "factors": {}}))
    call = ["--grid", str(tmp_path / "grid.json"), "--steps", "1", "--output_dir", str(tmp_path / "ablation")]
    with pytest.raises(ValueError, match="metric='f1' was not measured: choose one of accuracy, training_loss"):
        ablate.main([*call, "--metric", "f1"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--grid", '{"bases": {}}'], "--grid has bases: it takes base and factors only"),
        (["--factors", "colour"], "--factors colour is not in the grid, which has schedule, clipping"),
    ],
)
def test_a_grid_that_cannot_be_is_an_error(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ablate.main([*arguments, "--output_dir", str(tmp_path)])
