"""Model cards: a valid model-index, and a callback that reports what was measured of the model that is kept."""

import json
from importlib.resources import files
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments
from variants import tiny_sinkhorn_config

import synkhorn
from synkhorn.scripts.data.text_data import DataArguments, described
from synkhorn.scripts.tasks.task import pipeline_use
from synkhorn.scripts.training.model_card import (
    CardTexts,
    ModelCardCallback,
    command_line,
    draw_curves,
    hyperparameters_of,
    write_model_card,
)

TEXTS = CardTexts(
    pipeline_tag="text-classification",
    dataset_name="Plays",
    dataset_id=None,
    language=None,
    splits={"eval": "10 acts", "test": "20 acts"},
    summary="It tells comedies from tragedies.",
    use=pipeline_use("text-classification", "plays", repr("Exit, pursued by a bear.")),
    training="On plays.",
    command=command_line("finetune", ["classification", "--model_config", '{"block_size": 8}']),
    limits="No verse.",
)


@pytest.fixture
def model():
    return synkhorn.SinkhornForSequenceClassification(tiny_sinkhorn_config())


def test_a_card_is_whole_and_valid(model, tmp_path):
    folder = tmp_path / "plays"
    folder.mkdir()
    metrics = {"10 acts": {"accuracy": 0.75}, "20 acts": {"accuracy": 0.5, "f1": 0.25}}
    path = write_model_card(folder, TEXTS, model.config, metrics, {"seed": 3})
    card = ModelCard.load(path)
    assert "{{" not in card.content
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {("10 acts", "accuracy"): 0.75, ("20 acts", "accuracy"): 0.5, ("20 acts", "f1"): 0.25}
    (index,) = yaml.safe_load(card.content.split("---")[1])["model-index"]
    assert index["name"] == "plays"
    assert all(
        result["task"]["type"] == "text-classification" and {"type", "name"} <= result["dataset"].keys()
        for result in index["results"]
    )
    for text in (
        "| f1 | 0.2500 | – | Plays, 20 acts |",
        "| seed | 3 |",
        'pipeline("text-classification", model="plays", trust_remote_code=True)',
        "synkhorn finetune classification --model_config '{\"block_size\": 8}'",
        "No verse.",
        "arXiv 2002.11296",
    ):
        assert text in card.content
    assert "license" not in card.data.to_dict() and "datasets" not in card.data.to_dict()


def test_the_three_lines_of_use_are_python():
    assert len([line for line in TEXTS.use.splitlines() if line and not line.startswith("#")]) == 3
    compile(TEXTS.use, "use", "exec")


def test_the_callback_reports_the_model_that_is_kept(model, tmp_path):
    callback = ModelCardCallback(tmp_path / "plays", TEXTS, metric="accuracy")
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=8, max_grad_norm=0, warmup_steps=0.25)
    state, control = TrainerState(global_step=0, epoch=0.0), TrainerControl()
    callback.on_train_begin(args, state, control)
    # of a model in mid-training, which need not be kept
    callback.on_evaluate(args, state, control, model=model, metrics={"eval_accuracy": 0.125})
    assert not (tmp_path / "plays").exists()
    state.global_step, state.epoch = 8, 2.0
    state.log_history = [{"loss": 1.0, "epoch": 1.0}, {"eval_loss": 2.0, "eval_accuracy": 0.5, "epoch": 2.0}]
    callback.on_train_end(args, state, control, model=model)
    assert "eval_results" not in ModelCard.load(tmp_path / "plays" / "README.md").data.to_dict()
    measured = {
        "test_accuracy": 0.75,
        "test_loss": 1.5,
        "test_runtime": 3.0,
        "test_samples_per_second": 9.0,
        "epoch": 2.0,
    }
    callback.on_predict(args, state, control, measured, model=model)
    card = ModelCard.load(tmp_path / "plays" / "README.md")
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("accuracy", 0.75)]
    for text in ("8, 2 |", "linear, warm-up over 25% of the steps", "not clipped", "| `block_size` | 4 |", "on cpu."):
        assert text in card.content
    with Image.open(tmp_path / "plays" / "curves.png") as picture:
        assert picture.size[0] > 800


def test_what_was_not_measured_is_not_drawn(tmp_path):
    draw_curves([{"loss": 1.0, "epoch": 0.5}, {"loss": 0.5, "epoch": 1.0}], tmp_path / "curves.png", "accuracy")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size < (800, 800)


def test_only_the_first_process_writes(model, tmp_path):
    callback = ModelCardCallback(tmp_path / "plays", TEXTS, metric="accuracy")
    args, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState(is_world_process_zero=False)
    callback.on_train_begin(args, state, TrainerControl())
    callback.on_train_end(args, state, TrainerControl(), model=model)
    assert not (tmp_path / "plays").exists()


def test_batch_size_counts_processes_and_accumulation(model):
    training = SimpleNamespace(
        **TrainingArguments(use_cpu=True, per_device_train_batch_size=3, gradient_accumulation_steps=4).to_dict()
    )
    training.train_batch_size, training.world_size = 3, 2
    state = TrainerState(global_step=1, epoch=0.5)
    assert hyperparameters_of(training, state, model)["batch size"] == "24: 3 a process, processes 2, accumulation 4"


@pytest.mark.parametrize(
    "data, expected",
    [
        (DataArguments(dataset="reviews"), ("IMDb (training half, own split)", "stanfordnlp/imdb", "en")),
        (DataArguments(dataset="owner/name"), ("owner/name", "owner/name", None)),
        (DataArguments(train_files=["folder/a.txt"], test_files=["b.txt"]), ("a.txt, b.txt", None, None)),
    ],
)
def test_what_a_card_says_of_the_data(data, expected):
    assert tuple(described(data).values()) == expected


@pytest.mark.parametrize("name", ("quickstart-synthesizer", "quickstart-sinkhorn", "minilm-sinkhorn-2048"))
def test_the_cards_in_the_package_are_whole(name):
    card = ModelCard.load(str(files("synkhorn.model_cards").joinpath(f"{name}/README.md")))
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "macro_f1"}
    assert all(result.metric_value > 0.85 for result in card.data.eval_results)
    assert json.dumps(card.data.to_dict()) and "synkhorn finetune" in card.content
    if name.startswith("minilm"):
        assert card.data.base_model and "synkhorn convert" in card.content
