"""Runs of `synkhorn finetune` that are killed, spread over processes, or out of disk."""

import errno
import json
import time
from dataclasses import make_dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from task_data import TRAINING, from_scratch, write_data
from tiny_runs import finished, same_weights, start
from transformers import AutoTokenizer, modeling_utils

import synkhorn
from synkhorn.scripts import finetune
from synkhorn.scripts.data.text_data import hold_out
from synkhorn.scripts.tasks.classification import Classification, ClassificationArguments
from synkhorn.scripts.training.messages import rare_classes
from synkhorn.scripts.training.runs import settings_of
from synkhorn_console.parser import Chosen

NAME = "classification"
# counts what trains a tokenizer, in each process
COUNTED = """
import sys
import synkhorn
from synkhorn.scripts import finetune
train = synkhorn.train_tokenizer
def counted(*arguments, **options):
    print("a tokenizer is trained", flush=True)
    return train(*arguments, **options)
synkhorn.train_tokenizer = counted
finetune.main(sys.argv[1:])
"""


def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(tmp_path, one_thread):
    # an epoch has 12 steps
    common = [*write_data(tmp_path, NAME), *from_scratch("sinkhorn", hidden_dropout=0.1, gumbel_noise=True), *TRAINING,
              "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "5", "--eval_steps", "5",
              "--logging_steps", "1", "--train_sampling_strategy", "group_by_length"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [NAME, *common, "--output_dir", str(killed)]
    process = start("synkhorn.scripts.finetune", *command)
    while not (killed / "checkpoint-15" / "trainer_state.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and not (killed / "model.safetensors").exists()
    resumed = finetune.main(command)
    assert finetune.main([NAME, *common, "--output_dir", str(whole)]) == resumed
    assert same_weights(killed, whole)
    assert (killed / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_texts_are_tokenized_once_for_a_tokenizer_and_its_saved_copy(tmp_path):
    examples = Dataset.from_dict({"text": ["a good film", "a bad film"] * 2, "label": ["a", "b"] * 2})
    trained = synkhorn.train_tokenizer(examples["text"], 270, show_progress=False)
    trained.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    prints = [
        Classification(ClassificationArguments(), tokenizer, length, ["a", "b"]).prepare(examples, "train")._fingerprint
        for tokenizer, length in ((trained, 8), (saved, 8), (saved, 9))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_rate_that_is_chosen_later_is_recorded_as_chosen():
    arguments = make_dataclass("Arguments", [("rate", float), ("output_dir", str)])
    assert settings_of(arguments(Chosen(5e-5), "x")) == {"rate": "chosen for the model and the data"}
    assert settings_of(arguments(5e-5, "x")) == {"rate": 5e-5}


def test_a_misspelt_class_is_named():
    assert "learn from: netwroking (is a name misspelt?)" in rare_classes(["networking"] * 3 + ["netwroking"])
    assert rare_classes(["a", "b"] * 3) == ""


def test_a_tenth_of_the_rows_that_are_used_is_held_out():
    rows = Dataset.from_dict({"text": [str(number) for number in range(400)]})
    for most, held_out in ((None, 40), (50, 5), (1, 1)):
        parts = hold_out("it", rows, None, most)
        assert (len(parts["validation"]), len(parts["train"])) == (held_out, 400 - held_out)


def test_two_processes_train_one_tokenizer_and_predict_in_order(tmp_path):
    common = [NAME, *write_data(tmp_path, NAME, test=21), *from_scratch("synthesizer"), "--max_steps", "4"]
    common += ["--per_device_train_batch_size", "8"]
    one, two = tmp_path / "one", tmp_path / "two"
    expected = finetune.main([*common, "--output_dir", str(one)])
    (tmp_path / "counted.py").write_text(COUNTED)
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "counted.py"))
    printed = finished(start(*launcher, *common, "--per_device_train_batch_size", "4", "--output_dir", str(two)))
    assert printed.count("a tokenizer is trained") == 1
    vocabularies = [json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (one, two)]
    assert vocabularies[0] == vocabularies[1]
    assert json.loads((two / "run.json").read_text())["results"] == pytest.approx(expected, abs=1e-5)
    rows = [[json.loads(line) for line in (folder / "predictions.jsonl").open()] for folder in (one, two)]
    for left, right in zip(*rows, strict=True):
        assert left == right | {"probability": pytest.approx(left["probability"], abs=1e-4)}


def test_a_full_disk_leaves_no_half_model(tmp_path, monkeypatch, one_thread):
    """`test_pretrain.py` fills it in a checkpoint."""
    steps = "--max_steps 12 --save_steps 4 --eval_steps 4 --save_strategy steps --eval_strategy steps"
    arguments = [*write_data(tmp_path, NAME), *from_scratch("sinkhorn"), *steps.split()]
    whole, full = tmp_path / "whole", tmp_path / "full"
    expected = finetune.main([NAME, *arguments, "--output_dir", str(whole)])
    save = modeling_utils.safe_save_file

    def until_full(content, path, *rest, **options):
        if Path(path) == full / "model.safetensors":
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(content, path, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(modeling_utils, "safe_save_file", until_full)
        with pytest.raises(OSError, match="the disk is full: .* Free space .*then repeat the command"):
            finetune.main([NAME, *arguments, "--output_dir", str(full)])
    assert not (full / "model.safetensors").exists()
    assert finetune.main([NAME, *arguments, "--output_dir", str(full)]) == expected
    assert same_weights(full, whole)
