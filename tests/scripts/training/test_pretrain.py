"""`synkhorn pretrain`: rows, measures, and runs that are interrupted, distributed, or asked for what cannot be."""

import errno
import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_runs import finished, losses, pretraining, same_weights, start, write_texts
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, EvalPrediction, pipeline

import synkhorn
from synkhorn.scripts import pretrain
from synkhorn.scripts.measuring.metrics import nats_and_counts
from synkhorn.scripts.training.language_modeling import (
    as_rows,
    end_of_document,
    is_byte_tokenizer,
    measures,
    text_rows,
)

AUTO_CLASSES = {"mlm": AutoModelForMaskedLM, "clm": AutoModelForCausalLM}


@pytest.fixture
def texts(tmp_path) -> Path:
    return write_texts(tmp_path / "texts.txt")


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_rows_lose_no_token_and_end_each_document(packing, is_causal):
    tokenizer = synkhorn.byte_tokenizer(is_causal=is_causal)
    documents = ["abc", "", "defghijklmnop", "   ", None, "q"]
    columns = text_rows({"text": documents}, "text", tokenizer, 6, packing)
    rows = columns["input_ids"]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    expected = [[start, *text.encode(), end] for text in ("abc", "defghijklmnop", "q")]
    assert sum(rows, []) == sum(expected, [])
    if packing:
        assert [len(row) for row in rows] == [5, 6, 6, 6]
        assert columns["position_ids"] == [[*range(5)], [*range(6)], [*range(6)], [0, 1, 2, 0, 1, 2]]
    else:
        assert not any(end in row[:-1] for row in rows)
        assert [len(row) for row in rows] == [5, 6, 6, 3, 3]


def test_a_tokenizer_without_an_end_is_an_error():
    tokenizer = synkhorn.byte_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token = None
    with pytest.raises(ValueError, match="no eos_token and no sep_token"):
        end_of_document(tokenizer)


def test_only_a_tokenizer_of_bytes_is_measured_in_bits_per_byte():
    assert is_byte_tokenizer(synkhorn.byte_tokenizer())
    assert not is_byte_tokenizer(synkhorn.train_tokenizer(["ab ab ab ab"], vocab_size=262, show_progress=False))


@pytest.mark.parametrize("is_causal", [True, False])
def test_measures_count_tokens_and_not_batches(is_causal):
    logits = torch.randn(3, 5, 8)
    labels = torch.tensor([[1, 2, 3, 4, 7], [5, -100, 7, -100, -100], [-100, -100, -100, -100, 6]])
    rows = nats_and_counts(logits, labels, is_causal, special_ids=(7,))
    log_probabilities = logits.log_softmax(-1)
    predicted = [(b, t) for b in range(3) for t in range(is_causal, 5) if labels[b, t] != -100]
    nats = -sum(log_probabilities[b, t - is_causal, labels[b, t]].item() for b, t in predicted)
    ordinary = sum(labels[b, t].item() != 7 for b, t in predicted)
    measured = measures(EvalPrediction(predictions=rows.numpy(), label_ids=None), of_bytes=True)
    assert measured["perplexity"] == pytest.approx(math.exp(nats / len(predicted)), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / ordinary, rel=1e-5)
    assert measures(EvalPrediction(predictions=rows.numpy() * [[1e6, 1, 1]], label_ids=None), False) == {
        "perplexity": math.inf
    }


def test_masked_then_causal_end_to_end(texts, tmp_path, capsys):
    masked, causal = tmp_path / "masked", tmp_path / "causal"
    first = pretrain.main(pretraining(texts, masked, "synthesizer", num_train_epochs=3, learning_rate=0.01))
    assert 1 < first["eval_perplexity"] < 60
    out = capsys.readouterr().out
    assert "Attention stays inside a document" in out and "100% of the computed positions are real" in out
    arguments = pretraining(texts, causal, "synthesizer", objective="clm", model_name_or_path=masked, no_packing=True)
    second = pretrain.main([part for part in arguments if part not in ("--tokenizer_name", "bytes")])
    assert second["eval_bits_per_byte"] > 0
    assert "Attention stays" not in capsys.readouterr().out
    for folder, objective, tag in ((masked, "mlm", "fill-mask"), (causal, "clm", "text-generation")):
        model = AUTO_CLASSES[objective].from_pretrained(folder)
        assert model.config.max_position_embeddings == 32 and model.config.is_causal == (objective == "clm")
        card = ModelCard.load(folder / "README.md")
        measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
        results = json.loads((folder / "run.json").read_text())["results"]
        assert measured == {
            name: pytest.approx(results[f"eval_{name}"], abs=1e-4) for name in ("perplexity", "bits_per_byte")
        }
        assert f'pipeline("{tag}"' in card.content and "synkhorn pretrain --train_files" in card.content
        assert (folder / "curves.png").stat().st_size > 10_000
    filled = pipeline("fill-mask", model=str(masked), trust_remote_code=True)("goo<mask>")
    assert len(filled) == 5


def test_perplexity_is_that_of_the_saved_model(texts, tmp_path):
    results = pretrain.main(pretraining(texts, tmp_path / "run", objective="clm", max_steps=4))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    held_out = Dataset.from_dict({"text": texts.read_text().splitlines()}).train_test_split(20, seed=0)["test"]
    rows = as_rows(held_out, "text", tokenizer, 32, packing=False, num_workers=None)["input_ids"]
    nats = count = characters = 0
    with torch.no_grad():
        for row in (row for row in rows if len(row) > 1):
            ids = torch.tensor([row])
            nats += model(ids, labels=ids).loss.item() * (len(row) - 1)
            count += len(row) - 1
            characters += sum(token < 256 for token in row[1:])
    assert results["eval_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert results["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / characters, rel=1e-4)


def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(texts, tmp_path, one_thread):
    # masks, dropout, Gumbel noise and the order of the rows are all drawn anew in each epoch of 21 steps
    arguments = {"max_steps": 40, "save_steps": 14, "eval_steps": 8, "logging_steps": 1, "streaming": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start("synkhorn.scripts.pretrain", *pretraining(texts, killed, **arguments))
    while not (killed / "checkpoint-14" / "trainer_state.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and "results" not in json.loads((killed / "run.json").read_text())
    resumed = pretrain.main(pretraining(texts, killed, **arguments))
    uninterrupted = pretrain.main(pretraining(texts, whole, **arguments))
    assert same_weights(killed, whole)
    assert resumed["eval_perplexity"] == uninterrupted["eval_perplexity"]
    assert losses(killed) == losses(whole) and len(losses(whole)) == 40
    # repeated once more it trains no further
    written = (killed / "model.safetensors").stat().st_mtime_ns
    assert pretrain.main(pretraining(texts, killed, **arguments)) == resumed
    assert (killed / "model.safetensors").stat().st_mtime_ns == written


def test_a_run_killed_after_its_last_step_takes_no_other(texts, tmp_path, one_thread):
    arguments = {"max_steps": 6, "save_steps": 2, "eval_steps": 2, "lr_scheduler_type": "constant", "logging_steps": 1}
    # such a rate makes it worse, so that the best is not the last
    arguments |= {"load_best_model_at_end": True, "learning_rate": 3.0}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    results = pretrain.main(pretraining(texts, whole, **arguments))
    assert not same_weights(whole, whole / "checkpoint-6")
    shutil.copytree(whole, killed)
    record = json.loads((killed / "run.json").read_text())
    record.pop("results")
    (killed / "run.json").write_text(json.dumps(record))
    (killed / "model.safetensors").write_bytes(b"half")
    assert pretrain.main(pretraining(texts, killed, **arguments))["eval_perplexity"] == results["eval_perplexity"]
    assert same_weights(killed, whole) and losses(killed) == losses(whole)
    assert not (killed / "checkpoint-7").exists()


def test_two_processes_train_as_one_with_the_same_global_batch(texts, tmp_path):
    arguments = {"family": "synthesizer", "objective": "mlm", "max_steps": 8, "logging_steps": 1}
    config = {"hidden_dropout": 0.0}
    one = pretrain.main(pretraining(texts, tmp_path / "one", config=config, **arguments))
    command = pretraining(texts, tmp_path / "two", config=config, **arguments, per_device_train_batch_size=4)
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    finished(start(*launcher, "synkhorn.scripts.pretrain", *command))
    two = json.loads((tmp_path / "two" / "run.json").read_text())["results"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert two["eval_perplexity"] == pytest.approx(one["eval_perplexity"], rel=1e-5)


def test_training_stops_early_and_is_logged(texts, tmp_path):
    # nothing is learned at this rate, so that no evaluation is better than the first
    results = pretrain.main(
        pretraining(
            texts,
            tmp_path / "run",
            max_steps=50,
            eval_steps=4,
            save_steps=4,
            learning_rate=0,
            early_stopping_patience=2,
            load_best_model_at_end=True,
            report_to="tensorboard",
            bf16=True,
        )
    )
    assert max(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")) == 12
    assert results["eval_perplexity"] > 1
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_trained_tokenizer_is_kept_and_a_file_of_arguments_overridden(tmp_path):
    (tmp_path / "texts.jsonl").write_text(
        "\n".join(json.dumps({"body": f"sentence number {i} of the corpus", "id": i}) for i in range(60))
    )
    (tmp_path / "sizes.yaml").write_text(
        "hidden_size: 16\nnum_hidden_layers: 1\nnum_attention_heads: 2\nblock_size: 8\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"train_files: [{tmp_path / 'texts.jsonl'}]\ntext_column: body\nvocab_size: 300\nmax_length: 16\n"
        f"model_config: {tmp_path / 'sizes.yaml'}\nlearning_rate: 1e-2\nmax_steps: 9\nvalidation_size: 6\n"
    )
    output = tmp_path / "run"
    pretrain.main(["--config", str(tmp_path / "run.yaml"), "--max_steps", "3", "--output_dir", str(output)])
    settings = json.loads((output / "run.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["max_steps"]) == (0.01, 3)
    tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
    assert 260 < len(tokenizer) <= 300
    model = AutoModelForMaskedLM.from_pretrained(output)
    assert model.config.block_size == 8 and model.config.vocab_size == len(tokenizer)


def test_a_checkpoint_goes_on_at_a_greater_length(texts, tmp_path):
    pretrain.main(pretraining(texts, tmp_path / "short", max_steps=1))
    options = {"model_name_or_path": tmp_path / "short", "max_steps": 1}
    with pytest.raises(ValueError, match=r"max_length=64 is more than .*=32: lower it, or make the model longer by"):
        pretrain.main(pretraining(texts, tmp_path / "other", max_length=64, **options))
    longer = {"max_position_embeddings": 64}
    pretrain.main(pretraining(texts, tmp_path / "long", config=longer, max_length=64, **options))
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "long").config.max_position_embeddings == 64
    tokenizer = synkhorn.byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    tokenizer.save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match="tokens, more than the model's vocab_size=.*: leave out tokenizer_name"):
        pretrain.main(pretraining(texts, tmp_path / "third", tokenizer_name=tmp_path / "larger", **options))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dataset": "reviews"}, "name a dataset or files, and not both"),
        ({"validation_size": 120}, "validation_size=120 must lie in 1 to 119"),
        ({"model_config": '{"blok_size": 8}'}, "--model_config has blok_size: not fields of SinkhornConfig"),
        ({"model_config": '{"block_size": 8'}, "is not valid JSON"),
        ({"model_config": "absent.yaml"}, "must be a JSON object, such as .*, or an existing .json or .yaml file"),
        ({"model_config": '{"max_position_embeddings": 16, "block_size": 8}'}, "max_length=32 is more than .*=16"),
        ({"max_length": 1}, "max_length=1 must be at least 2"),
        ({"mlm_probability": 1.5}, "mlm_probability=1.5 must lie between 0 and 1"),
        ({"early_stopping_patience": 2}, "early_stopping_patience=2 needs --load_best_model_at_end"),
        ({"streaming": True}, "streaming=True needs --max_steps"),
        ({"fsdp": True}, "needs accelerators"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint='nowhere' is no whole checkpoint"),
    ],
)
def test_bad_input_is_an_error_that_names_it(arguments, message, texts, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain.main(pretraining(texts, tmp_path / "run", **arguments))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_data_without_texts_is_an_error(tmp_path):
    for name, content, message in (
        ("numbers.jsonl", '{"text": 1}\n{"text": 2}\n', "text_column='text' holds int, such as"),
        ("broken.json", '[{"text": "a"', "broken.json.* cannot be read, or hold no row"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            pretrain.main(pretraining(tmp_path / name, tmp_path / f"run-{name}", validation_size=1))


def test_a_folder_of_anything_else_is_left_alone(texts, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a run of pretrain: choose a new folder"):
        pretrain.main(pretraining(texts, folder, max_steps=2))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    # an option about checkpoints keeps them
    pretrain.main(pretraining(texts, tmp_path / "other", max_steps=2, save_steps=2))
    with pytest.raises(FileExistsError, match="other arguments: max_steps 2, now 3"):
        pretrain.main(pretraining(texts, tmp_path / "other", max_steps=3, save_steps=2))
    last = tmp_path / "other" / "checkpoint-2"
    pretrain.main(pretraining(texts, tmp_path / "other", max_steps=3, save_steps=1, resume_from_checkpoint=last))
    assert (tmp_path / "other" / "checkpoint-3").exists()


def test_a_full_disk_leaves_no_half_checkpoint(texts, tmp_path, monkeypatch, one_thread):
    arguments = {"max_steps": 8, "save_steps": 2, "logging_steps": 1}
    whole, full = tmp_path / "whole", tmp_path / "full"
    pretrain.main(pretraining(texts, whole, **arguments))
    save = torch.save

    def until_full(content, path, *args, **kwargs):
        if "checkpoint-6" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(content, path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", until_full)
        with pytest.raises(OSError, match="the disk is full: .* Free space .*then repeat the command") as caught:
            pretrain.main(pretraining(texts, full, **arguments))
    assert caught.value.errno == errno.ENOSPC
    assert not (full / "checkpoint-6").exists() and not (full / "model.safetensors").exists()
    # what a writer that is killed leaves behind
    half = full / "checkpoint-7"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"epoch": 0.5,')
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        pretrain.main(pretraining(texts, full, **arguments, resume_from_checkpoint=half))
    pretrain.main(pretraining(texts, full, **arguments))
    assert same_weights(full, whole)
    assert not half.exists()
