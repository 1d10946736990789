"""`synkhorn generate`: prompts in, the text of `generate()` out, on the terminal or in a file."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from checkpoints import write_causal
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM
from variants import randomize

import synkhorn
from synkhorn.scripts import generate
from synkhorn.scripts.common.generation_options import GenerationArguments, given_options

PROMPTS = ["One", "Another", "b"]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write_causal(tmp_path / "model")


def alone(checkpoint: Path, prompt: str, **options) -> str:
    """What follows a prompt by `generate()` itself, without a batch."""
    model = synkhorn.SinkhornForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = synkhorn.byte_tokenizer(is_causal=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    sequences = model.generate(**inputs, **options)
    return tokenizer.decode(sequences[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_prompts_of_different_lengths_in_batches_to_a_file(checkpoint, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "to" / "output.jsonl"
    prompts.write_text("\n".join(PROMPTS) + "\n\n")
    line = ["--prompt_file", str(prompts), "--output_file", str(output), "--batch_size", "2", "--max_new_tokens", "7"]
    rows = generate.main([str(checkpoint), *line])
    assert rows == [json.loads(row) for row in output.read_text().splitlines()]
    assert rows == [{"prompt": p, "continuation": alone(checkpoint, p, max_new_tokens=7)} for p in PROMPTS]


def test_one_prompt_grows_on_the_terminal(checkpoint, capsys, monkeypatch):
    put = []
    monkeypatch.setattr(generate.TextStreamer, "put", lambda self, value: put.append(value.flatten().tolist()))
    generate.main([str(checkpoint), "--prompt", "One", "--min_new_tokens", "5", "--max_new_tokens", "5"])
    assert [len(ids) for ids in put] == [4, 1, 1, 1, 1, 1]
    monkeypatch.undo()
    capsys.readouterr()
    (row,) = generate.main([str(checkpoint), "--prompt", "One", "--max_new_tokens", "5"])
    assert capsys.readouterr().out == f"One{row['continuation']}\n"


def test_several_prompts_on_the_terminal(checkpoint, capsys):
    rows = generate.main([str(checkpoint), "--prompt", *PROMPTS, "--max_new_tokens", "3"])
    assert capsys.readouterr().out == "\n\n".join(row["prompt"] + row["continuation"] for row in rows) + "\n"


def test_sampling_with_a_seed(checkpoint):
    options = "--do_sample --max_new_tokens 9 --num_return_sequences 2"
    line = [str(checkpoint), "--prompt", *PROMPTS, *options.split()]
    first, again, other = (generate.main([*line, "--seed", seed]) for seed in ("1", "1", "2"))
    assert first == again != other
    assert [row["prompt"] for row in first] == ["One", "One", "Another", "Another", "b", "b"]


@pytest.mark.parametrize("precision", [["--dtype", "bfloat16"], ["--autocast", "bfloat16"]], ids=lambda p: p[0][2:])
def test_precision(checkpoint, precision, monkeypatch):
    seen = []
    head = synkhorn.SinkhornForCausalLM
    forward = head.forward

    def watched(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        seen.append((self.dtype, outputs.logits.dtype))
        return outputs

    monkeypatch.setattr(head, "forward", watched)
    generate.main([str(checkpoint), "--prompt", "One", "--max_new_tokens", "2", *precision])
    weights = torch.bfloat16 if precision[0] == "--dtype" else torch.float32
    assert set(seen) == {(weights, torch.bfloat16)}


def test_an_encoders_tokenizer_leaves_its_end_away(checkpoint):
    expected = generate.main([str(checkpoint), "--prompt", *PROMPTS, "--max_new_tokens", "5"])
    synkhorn.byte_tokenizer(model_max_length=32).save_pretrained(checkpoint)
    assert generate.main([str(checkpoint), "--prompt", *PROMPTS, "--max_new_tokens", "5"]) == expected


def test_without_a_length_the_room_behind_the_longest_prompt_is_filled(checkpoint):
    (row,) = generate.main([str(checkpoint), "--prompt", "x" * 30, "--min_length", "32"])
    assert row["continuation"] == alone(checkpoint, "x" * 30, max_new_tokens=1, min_new_tokens=1)


def test_every_option_of_transformers_is_an_argument():
    names = {entry.name for entry in fields(GenerationArguments)}
    assert names >= {
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty",
        "stop_strings", "prompt_lookup_num_tokens", "cache_implementation", "sequence_bias", "eos_token_id",
    }  # fmt: skip
    assert names <= set(vars(GenerationConfig()))
    assert all(entry.metadata["help"].strip() for entry in fields(GenerationArguments))


def test_options_have_the_types_that_transformers_documents(checkpoint, monkeypatch):
    taken = {}
    line = "--do_sample --top_k 5 --top_p 0.5 --stop_strings a b --eos_token_id 1 2 --sequence_bias [[[5,6],2.0]]"
    line += " --early_stopping never --num_beams 2 --use_cache false"

    def record(model, tokenizer, encoded, options, streamer):
        taken.update(options)
        return [[]]

    monkeypatch.setattr(generate, "generate", record)
    generate.main([str(checkpoint), "--prompt", "One", "--max_new_tokens", "4", *line.split()])
    assert taken == {
        "max_new_tokens": 4, "do_sample": True, "top_k": 5, "top_p": 0.5, "stop_strings": ["a", "b"],
        "eos_token_id": [1, 2], "sequence_bias": [[[5, 6], 2.0]], "early_stopping": "never", "num_beams": 2,
        "use_cache": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "prompt=None and prompt_file=None: give one of the two"),
        (["--prompt", "One", "--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--prompt", "One", "--sequence_bias", "[["], r"sequence_bias='\[\[' is not valid YAML"),
        (["--prompt_file", "missing.txt"], "prompt_file='missing.txt' does not exist"),
    ],
)
def test_bad_arguments(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        generate.main([str(checkpoint), *options])


def test_a_jsonl_file_of_prompts(checkpoint, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a\\nb"}\n{"prompt": "c"}\n')
    rows = generate.main([str(checkpoint), "--prompt_file", str(tmp_path / "prompts.jsonl"), "--max_new_tokens", "2"])
    assert [row["prompt"] for row in rows] == ["a\nb", "c"]


def test_a_checkpoint_says_how_much_follows(checkpoint):
    GenerationConfig(max_new_tokens=4, eos_token_id=2, pad_token_id=0).save_pretrained(checkpoint)
    (row,) = generate.main([str(checkpoint), "--prompt", "One"])
    assert row["continuation"] == alone(checkpoint, "One", max_new_tokens=4)


def test_what_a_smaller_model_drafts_changes_nothing(checkpoint, tmp_path):
    model = synkhorn.SinkhornForCausalLM.from_pretrained(checkpoint)
    randomize(model, 5).save_pretrained(tmp_path / "draft")
    options = ["--prompt", "One", "--max_new_tokens", "9", "--assistant_model", str(tmp_path / "draft")]
    assert generate.main([str(checkpoint), *options])[0]["continuation"] == alone(checkpoint, "One", max_new_tokens=9)


def test_a_tokenizer_without_padding_pads_with_its_end(checkpoint):
    tokenizer = synkhorn.byte_tokenizer(model_max_length=32, is_causal=True)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(checkpoint)
    rows = generate.main([str(checkpoint), "--prompt", *PROMPTS, "--max_new_tokens", "4"])
    assert rows == [{"prompt": p, "continuation": alone(checkpoint, p, max_new_tokens=4)} for p in PROMPTS]


def test_a_prompt_of_no_tokens_is_an_error(checkpoint):
    tokenizer = synkhorn.byte_tokenizer(model_max_length=32, is_causal=True)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"prompt 2 \(''\) has no tokens"):
        generate.main([str(checkpoint), "--prompt", "One", ""])


def test_a_model_without_a_limit_of_length(tmp_path):
    tokenizer = synkhorn.byte_tokenizer(is_causal=True)
    sizes = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    MambaForCausalLM(MambaConfig(**sizes, eos_token_id=None)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (row,) = generate.main([str(tmp_path), "--prompt", 40 * "long ", "--max_new_tokens", "3"])
    assert row["prompt"] == 40 * "long "


def test_a_write_that_fails_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "output.jsonl"
    output.write_text("old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        generate.main([str(checkpoint), "--prompt", "One", "--max_new_tokens", "2", "--output_file", str(output)])
    assert output.read_text() == "old"


def test_given_options_are_those_that_were_given():
    assert given_options(GenerationArguments(top_k=3)) == {"top_k": 3}
