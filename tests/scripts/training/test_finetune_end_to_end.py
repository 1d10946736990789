"""`synkhorn finetune` as its user runs it, on tiny data, for each task and family."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from processes import python
from safetensors.torch import load_file
from task_data import EXTRA, MAKERS, MODELS, TRAINING, classes, from_scratch, grade, write_data, write_jsonl
from transformers import AutoConfig, pipeline

from synkhorn import byte_tokenizer
from synkhorn.scripts import evaluate, finetune
from synkhorn.scripts.tasks import TASKS
from synkhorn.scripts.tasks.trainer import FinetuneTrainer

# loads a checkpoint in a process without synkhorn, and PEFT, and prints the sum of its weights
LOAD = """
import sys
sys.modules["synkhorn"] = sys.modules["peft"] = None
import transformers
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, float(sum(parameter.double().sum() for parameter in model.parameters())))
"""


# what a row of the predictions holds, and which of it are the labels of the data
PREDICTED = {
    "classification": ({"text", "prediction", "probability", "label"}, "label", "label"),
    "token-classification": ({"words", "prediction", "tags"}, "tags", "ner_tags"),
    "question-answering": ({"question", "prediction", "answers", "n_best"}, None, None),
    "multiple-choice": ({"prediction", "text", "probability", "label"}, "label", "label"),
    "seq2seq": ({"text", "prediction", "target"}, "target", "target"),
}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def loaded_elsewhere(folder: Path, auto_class: str, home: Path) -> tuple[str, float]:
    name, total = python("-c", LOAD, folder, auto_class, HF_HOME=str(home)).split()
    return name, float(total)


def check_evaluation(name: str, model: Path, expected: dict[str, float], folder: Path) -> None:
    """`synkhorn evaluate` gives what fine-tuning measured, and writes it down."""
    call = [name, "--model_name_or_path", str(model), "--test_files", str(folder / "test.jsonl"), *EXTRA.get(name, [])]
    report = folder / "reports/figures"
    measured = evaluate.main([*call, "--batch_size", "5", "--resamples", "20", "--output", str(report)])
    assert measured["metrics"] == pytest.approx(expected, abs=1e-6)
    assert measured["documents"] == 24 and measured["tokens"] > 24 and measured["peak_megabytes"] > 1
    assert measured["tokens_per_second"] / measured["documents_per_second"] == pytest.approx(measured["tokens"] / 24)
    written = json.loads(report.with_suffix(".json").read_text())
    assert written["metrics"] == measured["metrics"] and written["task"] == name
    for metric, value in measured["metrics"].items():
        low, high = measured["intervals"][metric]
        assert low <= value <= high
        assert f"| {metric} | {value:.4f} | {low:.4f} to" in report.with_suffix(".md").read_text()


@pytest.mark.parametrize(("name", "family"), list(zip(TASKS, itertools.cycle(MODELS), strict=False)))
def test_a_task_is_learned_and_its_results_are_written(name, family, tmp_path):
    output = tmp_path / "model"
    arguments = [*write_data(tmp_path, name), *from_scratch(family), *TRAINING, "--output_dir", str(output)]
    results = finetune.main([name, *arguments])
    kind = TASKS[name]
    assert results[kind.best_metric] > (90 if name == "seq2seq" else 0.9)
    rows = rows_of(output / "predictions.jsonl")
    assert len(rows) == 24
    # the file says what was measured
    assert kind(None, byte_tokenizer(), 48).measure(rows) == results
    data = rows_of(tmp_path / "test.jsonl")
    keys, right, column = PREDICTED[name]
    assert all(set(row) == keys for row in rows)
    if right:
        assert [row[right] for row in rows] == [row[column] for row in data]
    else:
        assert [row["answers"] for row in rows] == [row["answers"]["text"] for row in data]
        for row, example in zip(rows, data, strict=True):
            chances = [answer["probability"] for answer in row["n_best"]]
            assert row["prediction"] in example["context"] and sum(chances) == pytest.approx(1)
            assert 1 <= len(chances) <= 5 and chances == sorted(chances, reverse=True)
    card = ModelCard.load(output / "README.md")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {metric: measured[metric] for metric in results} == pytest.approx(results, abs=1e-4)
    assert card.data.pipeline_tag == kind.pipeline_tag and "{{" not in card.content
    check_evaluation(name, output, results, tmp_path)
    # a finished run is not run again
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert finetune.main([name, *arguments]) == results
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_an_encoder_and_a_decoder_are_trained_on_by_lora(tmp_path):
    data, few = write_data(tmp_path, "seq2seq", train=16), [*TRAINING, "--max_steps", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    families = [*from_scratch("sinkhorn"), "--decoder_family", "synthesizer"]
    finetune.main(["seq2seq", *data, *families, *few, "--output_dir", str(first)])
    start = ["--model_name_or_path", str(first), "--lora_r", "2", "--label_smoothing_factor", "0.1"]
    with pytest.raises(ValueError, match="decoder_family='sinkhorn' is for a new model"):
        finetune.main(["seq2seq", *data, *start, "--decoder_family", "sinkhorn", "--output_dir", str(second)])
    finetune.main(["seq2seq", *data, *start, *few, "--generation_num_beams", "2", "--output_dir", str(second)])
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed and all(".layers." in name for name in changed)
    assert json.loads((second / "run.json").read_text())["command"] == "finetune seq2seq"
    name, _ = loaded_elsewhere(second, "AutoModelForSeq2SeqLM", tmp_path / "home")
    assert name == "SynkhornEncoderDecoderModel"


@pytest.mark.parametrize(
    ("maker", "problem", "best", "least"),
    [(classes, "multi_label_classification", "micro_f1", 0.85), (grade, "regression", "r2", 0.8)],
)
def test_several_classes_or_a_number_are_learned_from_the_kind_of_the_labels(maker, problem, best, least, tmp_path):
    output = tmp_path / "model"
    data = write_data(tmp_path, "classification", train=256, maker=maker)
    # with some seeds so few steps do not yet learn the number
    arguments = [*data, *from_scratch("sinkhorn"), *TRAINING, "--seed", "1", "--output_dir", str(output)]
    results = finetune.main(["classification", *arguments])
    assert results[best] > least
    config = AutoConfig.from_pretrained(output)
    assert config.problem_type == problem
    assert list(config.id2label.values()) == (["film", "food", "music"] if maker is classes else ["label"])
    # the best checkpoint is the one that is kept, by the problem's own metric
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry[f"eval_{best}"] for entry in state["log_history"] if "eval_loss" in entry)
    rows, right = rows_of(output / "predictions.jsonl"), rows_of(tmp_path / "test.jsonl")
    assert (
        [row["label"] for row in rows] == pytest.approx([row["label"] for row in right])
        if maker is grade
        else all(sorted(row["label"]) == sorted(other["label"]) for row, other in zip(rows, right, strict=True))
    )
    call = ["classification", "--model_name_or_path", str(output), "--test_files", str(tmp_path / "test.jsonl")]
    assert evaluate.main([*call, "--resamples", "20"])["metrics"] == pytest.approx(results, abs=1e-5)
    (said,) = pipeline("text-classification", str(output), trust_remote_code=True, top_k=None)([right[0]["text"]])
    chances = rows[0].get("probabilities", {"label": rows[0]["prediction"]})
    assert {answer["label"]: answer["score"] for answer in said} == pytest.approx(chances, abs=1e-4)


def test_a_checkpoint_for_one_class_learns_to_tell_a_number(tmp_path, capsys):
    data, base = write_data(tmp_path, "classification", train=20), tmp_path / "base"
    short = ["--max_steps", "1", "--report_to", "none"]
    last = ["--save_strategy", "no", "--load_best_model_at_end", "false"]
    finetune.main(["classification", *data, *from_scratch("sinkhorn"), *short, *last, "--output_dir", str(base)])
    assert "was kept" not in (base / "README.md").read_text()
    stars = write_data(
        tmp_path, "classification", train=20, maker=lambda draw: {"text": "x", "label": draw.randrange(5)}
    )
    output = tmp_path / "stars"
    call = ["classification", *stars, "--model_name_or_path", str(base), "--output_dir", str(output), *short]
    results = finetune.main([*call, "--problem_type", "regression"])
    assert set(results) == {"r2", "mean_absolute_error", "root_mean_squared_error"}
    # one step, on texts that are all alike
    assert results["r2"] <= 0 and "By r2 the model is no better than the mean" in capsys.readouterr().out
    assert AutoConfig.from_pretrained(output).num_labels == 1
    assert "The checkpoint with the best r2 on the validation split was kept." in (output / "README.md").read_text()


def test_a_list_of_zeros_and_ones_is_no_list_of_classes(tmp_path):
    data = write_data(tmp_path, "classification", train=4, maker=lambda draw: {"text": "x", "label": [0, 1, 0]})
    call = ["classification", *data, *from_scratch("sinkhorn"), "--output_dir", str(tmp_path / "model")]
    assert "has [0, 1, 0]: it must list each class that the text has, once" in error_of(call)
    assert "does not fit column 'label'" in error_of([*call, "--problem_type", "regression"])


def test_lora_trains_a_checkpoint_and_loads_without_peft(tmp_path):
    name, family = "token-classification", "sinkhorn"
    data = write_data(tmp_path, name)
    base, output = tmp_path / "base", tmp_path / "lora"
    first = [*from_scratch(family), "--output_dir", str(base), "--num_train_epochs", "1", "--disable_tqdm", "true"]
    finetune.main([name, *data, *first])
    lora = ["--model_name_or_path", str(base), "--lora_r", "2", "--save_total_limit", "2", "--output_dir", str(output)]
    results = finetune.main([name, *data, *lora, *TRAINING])
    assert results["f1"] > 0.8
    adapter = load_file(next(output.glob("checkpoint-*/adapter_model.safetensors")))
    beside = {key.split(".")[-3] for key in adapter if "lora_A" in key}
    assert beside == {"query", "key", "value", "output", "input"}
    before, after = load_file(base / "model.safetensors"), load_file(output / "model.safetensors")
    assert set(before) == set(after)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    head = {"classifier.weight", "classifier.bias"}
    assert changed > head
    assert all(key.split(".")[-2] in beside and key.endswith(".weight") for key in changed - head)
    loaded, total = loaded_elsewhere(output, "AutoModelForTokenClassification", tmp_path / "home")
    assert loaded == f"{family.title()}ForTokenClassification"
    assert total == pytest.approx(float(sum(tensor.double().sum() for tensor in after.values())))


def test_a_checkpoint_for_other_classes_gets_a_new_head(tmp_path):
    data, base = write_data(tmp_path, "classification", train=20), tmp_path / "base"
    finetune.main(["classification", *data, *from_scratch("sinkhorn"), "--output_dir", str(base), "--max_steps", "1"])
    for split in ("train", "validation", "test"):
        rows = [
            row | {"label": f"{row['label']} {len(row['text']) % 2}"} for row in rows_of(tmp_path / f"{split}.jsonl")
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    output = tmp_path / "more"
    call = ["classification", *data, "--model_name_or_path", str(base), "--output_dir", str(output), "--max_steps", "1"]
    finetune.main(call)
    before, after = load_file(base / "model.safetensors"), load_file(output / "model.safetensors")
    assert {key for key in before if before[key].shape != after[key].shape} == {
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    }
    other = ["--model_config", '{"hidden_size": 16}', "--output_dir", str(tmp_path / "narrow")]
    message = error_of([*call, *other])
    assert "does not fit the checkpoint" in message and "model.embeddings.word_embeddings.weight" in message


def test_grouping_by_length_groups_and_predictions_keep_their_rows(tmp_path):
    name = "classification"
    common = [*write_data(tmp_path, name), *from_scratch("synthesizer"), *TRAINING]
    seen = []
    sampler = FinetuneTrainer._get_train_sampler

    def watched(trainer, train_dataset=None):
        found = sampler(trainer, train_dataset)
        lengths = trainer.train_dataset["length"]
        order = [lengths[index] for index in found]
        seen.append(sum(max(order[i : i + 8]) - min(order[i : i + 8]) for i in range(0, 96, 8)))
        return found

    for strategy in ("random", "group_by_length"):
        output = tmp_path / strategy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FinetuneTrainer, "_get_train_sampler", watched)
            results = finetune.main([name, *common, "--output_dir", str(output), "--train_sampling_strategy", strategy])
        assert results["accuracy"] > 0.9
        rows, data = rows_of(output / "predictions.jsonl"), rows_of(tmp_path / "test.jsonl")
        assert [row["label"] for row in rows] == [row["label"] for row in data]
    # the longest and the shortest of a batch
    assert seen[1] < seen[0] / 3


def error_of(arguments: list[str]) -> str:
    with pytest.raises((ValueError, FileExistsError)) as error:
        finetune.main(arguments)
    return str(error.value)


def test_bad_input_is_an_error_that_says_what_to_do(tmp_path):
    data, model = write_data(tmp_path, "classification", train=20), from_scratch("sinkhorn")
    output = tmp_path / "model"
    call = ["classification", *data, *model, "--output_dir", str(output)]
    assert "max_length=49 is more than" in error_of([*call, "--max_length", "49"])
    assert "lora_r=0 must be at least 1" in error_of([*call, "--lora_r", "0"])
    assert "name it by --model_name_or_path" in error_of([*call, "--lora_r", "2"])
    assert "leave --streaming out" in error_of([*call, "--streaming"])
    # none of these errors blocks the folder, or leaves a model in it
    assert {path.name for path in output.iterdir()} == {"run.json"}
    finetune.main([*call, "--max_steps", "1"])
    assert "holds a finished run with other arguments: max_steps 1, now 2" in error_of([*call, "--max_steps", "2"])
    choices = ["multiple-choice", *call[1:]]
    assert "holds a run of finetune classification: choose a new folder" in error_of(choices)


def test_choices_without_a_question_in_one_column_of_lists(tmp_path):
    def endings(draw: random.Random) -> dict:
        row = MAKERS["multiple-choice"](draw)
        return {"sent1": row["sent1"], "endings": [row["ending0"], row["ending1"], "so"], "label": row["label"]}

    data = write_data(tmp_path, "multiple-choice", train=8, test=4, maker=endings)
    call = ["multiple-choice", *data, *from_scratch("sinkhorn"), "--max_steps", "1"]
    call += ["--choice_columns", "endings", "--question_column", "none", "--metric_for_best_model", "loss"]
    finetune.main([*call, "--output_dir", str(tmp_path / "model")])
    rows, right = rows_of(tmp_path / "model/predictions.jsonl"), rows_of(tmp_path / "test.jsonl")
    assert [row["text"] for row in rows] == [
        example["endings"][row["prediction"]] for row, example in zip(rows, right, strict=True)
    ]
    assert "with the best loss" in (tmp_path / "model/README.md").read_text()
    for wrong, counts in ((["a"],), "[1]"), ((["a", "b"], ["a", "b", "c"]), "[2, 3]"):
        write_jsonl(tmp_path / "test.jsonl", [{"sent1": "Read.", "endings": row, "label": 0} for row in wrong])
        message = error_of([*call, "--output_dir", str(tmp_path / "other")])
        assert f"choice_columns=['endings'] hold {counts} choices: every row needs the same number, at" in message


def test_documents_longer_than_the_model_are_counted(tmp_path, capsys):
    data = write_data(tmp_path, "classification", train=20)
    rows = rows_of(tmp_path / "validation.jsonl")
    rows[3]["text"] = rows[7]["text"] = "good " * 100
    write_jsonl(tmp_path / "validation.jsonl", rows)
    call = ["classification", *data, *from_scratch("sinkhorn"), "--output_dir", str(tmp_path / "model")]
    finetune.main([*call, "--max_steps", "1"])
    printed = capsys.readouterr().out
    assert "validation: 2 of 24 (8%) documents have more than the 48 tokens that the model reads; the rest" in printed
    assert "test:" not in printed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("classification", {"label": None}, "the label None in column 'label' is unknown"),
        ("token-classification", {"ner_tags": ["O"]}, "it must have one a word"),
        ("token-classification", {"ner_tags": "O"}, "must hold a list of tags"),
        ("question-answering", {"answers": {"text": [], "answer_start": []}}, "pass --no_answer"),
        ("question-answering", {"answers": {"text": ["Rome"], "answer_start": [0]}}, "stands there"),
        ("question-answering", {"answers": "Rome"}, "as in SQuAD; it holds"),
        ("multiple-choice", {"label": 2}, "out of range: it must be 0 to 1"),
    ],
)
def test_bad_rows_are_errors_that_name_them(name, change, message, tmp_path):
    arguments = write_data(tmp_path, name, train=4, test=2)
    row = MAKERS[name](random.Random(0))
    write_jsonl(tmp_path / "test.jsonl", [row | change])
    if isinstance(next(iter(change.values())), str):
        write_jsonl(tmp_path / "train.jsonl", [row | change])
        write_jsonl(tmp_path / "validation.jsonl", [row | change])
    call = [name, *arguments, *from_scratch("sinkhorn"), "--output_dir", str(tmp_path / "model")]
    assert message in error_of(call)


def test_help_lists_the_tasks_and_explains_each(capsys):
    finetune.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in MAKERS)
    with pytest.raises(SystemExit) as end:
        finetune.main(["question-answering", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert " question-answering ARGUMENTS\n" in printed
    assert all(name in printed for name in ("--question_column", "--lora_r", "--no_answer", "group_by_length"))
    with pytest.raises(SystemExit) as end:
        finetune.main(["summarization"])
    assert end.value.code == 2
