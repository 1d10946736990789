"""A checkpoint that is not what it says is a clear error or a loud warning, and never a model of random weights."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel
from variants import model_of, tiny_sinkhorn_config

import synkhorn
from synkhorn.scripts.common.checkpoints import load_whole

KEY = "model.layers.1.attention.value.weight"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    model_of(tiny_sinkhorn_config(), "ForMaskedLM").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def loud(caplog):
    """What Transformers logs, as a user sees it by default."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        yield caplog


def replace_weights(checkpoint: Path, **tensors: torch.Tensor | None) -> None:
    """Give the file of weights other tensors, or, for `None`, fewer."""
    weights = load_file(checkpoint / "model.safetensors") | tensors
    kept = {name: x for name, x in weights.items() if x is not None}
    save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda content: b"",
        "a part of the header": lambda content: content[:100],
        "half": lambda content: content[: len(content) // 2],
        "all but a byte": lambda content: content[:-1],
        "a byte more": lambda content: content + b"x",
        "another length of the header": lambda content: flip(content, 1),
        "a bracket of the header": lambda content: flip(content, 8),
        "a size in the header": lambda content: content.replace(b'"shape":[40,18]', b'"shape":[40,19]', 1),
        "a type in the header": lambda content: content.replace(b'"F32"', b'"F33"', 1),
        "a pickle": lambda content: b"\x80\x04\x95" + content,
    }.items(),
    ids=lambda damage: damage[0],
)
def test_a_damaged_file_is_an_error(checkpoint, damage):
    weights = checkpoint / "model.safetensors"
    damaged = damage[1](weights.read_bytes())
    assert damaged != weights.read_bytes()
    weights.write_bytes(damaged)
    with pytest.raises(SafetensorError, match="header"):
        AutoModelForMaskedLM.from_pretrained(checkpoint)


def test_no_weights_are_an_error(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModelForMaskedLM.from_pretrained(checkpoint)
    # nothing that is pickled is read in their place, unless it can hold nothing but tensors
    torch.save({"harm": pytest.fail}, checkpoint / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only"):
        AutoModelForMaskedLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("auto_class", [AutoModelForMaskedLM, AutoModel, None], ids=["its own", "another", "the class"])
def test_a_missing_tensor_is_reported_or_an_error(checkpoint, auto_class, loud):
    replace_weights(checkpoint, **{KEY: None})
    architecture = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    auto_class = auto_class or getattr(synkhorn, architecture)
    auto_class.from_pretrained(checkpoint)
    report = loud.text.replace("model.layers", "layers")
    assert "LOAD REPORT" in report and "layers.1.attention.value.weight" in report and "MISSING" in report
    # the commands that use a model as it is do not go on
    with pytest.raises(ValueError, match=r"lacks weights of a S\w+: .*layers.1.attention.value.weight"):
        load_whole(auto_class, str(checkpoint))


def test_a_bit_of_a_name_that_is_flipped_is_reported(checkpoint, loud):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"mlm_head.dense.weight", b"mlm_head.dance.weight"))
    AutoModelForMaskedLM.from_pretrained(checkpoint)
    assert "mlm_head.dense.weight" in loud.text and "mlm_head.dance.weight" in loud.text
    assert "MISSING" in loud.text and "UNEXPECTED" in loud.text


def test_the_weights_of_another_architecture_are_reported(checkpoint, loud):
    sizes = {"hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 29}
    bert = BertModel(BertConfig(vocab_size=40, max_position_embeddings=13, **sizes))
    save_file(bert.state_dict(), checkpoint / "model.safetensors", metadata={"format": "pt"})
    model, report = AutoModelForMaskedLM.from_pretrained(checkpoint, output_loading_info=True)
    assert report["missing_keys"] >= {name for name in model.state_dict() if name.startswith("model.layers.")}
    assert "MISSING" in loud.text and "UNEXPECTED" in loud.text
    with pytest.raises(ValueError, match="lacks weights"):
        load_whole(AutoModelForMaskedLM, str(checkpoint))


def test_another_shape_is_an_error_unless_asked_for(checkpoint, loud):
    replace_weights(checkpoint, **{KEY: torch.ones(4, 4)})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForMaskedLM.from_pretrained(checkpoint)
    assert "MISMATCH" in loud.text and KEY in loud.text
    loud.clear()
    AutoModelForMaskedLM.from_pretrained(checkpoint, ignore_mismatched_sizes=True)
    assert "MISMATCH" in loud.text and KEY in loud.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "18"}, "hidden_size' expected int, got str"),
        ({"hidden_size": 18.0}, "hidden_size' expected int, got float"),
        ({"hidden_size": None}, "hidden_size' expected int, got NoneType"),
        ({"hidden_size": [18]}, "hidden_size' expected int, got list"),
        ({"is_causal": "false"}, "is_causal' expected bool, got str"),
        ({"norm_first": 1}, "norm_first' expected bool, got int"),
        ({"auto_map": "x"}, "auto_map' expected dict, got str"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan must be positive and finite"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf must be positive and finite"),
        ({"initializer_range": float("inf")}, "initializer_range=inf must be finite"),
        # absurd sizes take no memory
        ({"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000 is too large: it must be at most 10000"),
        ({"hidden_size": 3 * 10**12}, r"overflowed with sizes=\[3000000000000, 3000000000000\]"),
        ({"vocab_size": 10**12}, "ignore_mismatched_sizes"),
        ({"max_position_embeddings": 10**9}, "ignore_mismatched_sizes|overflowed"),
        ({"intermediate_size": 10**12}, "ignore_mismatched_sizes"),
        ({"model_type": "sinkhron", "auto_map": {}}, "sinkhron"),
    ],
    ids=str,
)
def test_an_impossible_configuration_is_an_error(checkpoint, fields, message):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises((ValueError, RuntimeError, StrictDataclassFieldValidationError), match=message):
        AutoModelForMaskedLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", None])
def test_a_configuration_that_is_none_is_an_error(checkpoint, content):
    path = checkpoint / "config.json"
    path.unlink() if content is None else path.write_text(content)
    # a list: the TypeError of Transformers 5.17
    with pytest.raises((ValueError, OSError, TypeError), match="not a valid JSON|Unrecognized model|list indices"):
        AutoModelForMaskedLM.from_pretrained(checkpoint)


def test_a_field_that_is_misspelt_is_named(loud):
    synkhorn.SinkhornConfig(blok_size=8)
    assert "blok_size=8 is not a field of SinkhornConfig: did you mean block_size?" in loud.text
    synkhorn.SynthesizerConfig(hidden_dropout_prob=0.5)
    assert "hidden_dropout_prob=0.5 is not a field of SynthesizerConfig: did you mean hidden_dropout?" in loud.text
    loud.clear()
    # what Transformers, or anybody else, adds is let through
    config = synkhorn.SinkhornConfig(num_labels=3, transformers_version="5.0", trained_on="reviews")
    assert config.trained_on == "reviews" and not loud.text


def test_sizes_for_which_there_is_no_memory_are_an_error_at_once():
    for name, config_class in (("Sinkhorn", synkhorn.SinkhornConfig), ("Synthesizer", synkhorn.SynthesizerConfig)):
        for fields in (
            {"hidden_size": 10**9, "num_attention_heads": 10},
            {"vocab_size": 10**15},
            {"max_position_embeddings": 10**15},
            {"intermediate_size": 10**15},
        ):
            config = config_class(**{"num_hidden_layers": 1, "hidden_size": 12, "vocab_size": 30} | fields)
            with pytest.raises(RuntimeError, match="you tried to allocate|overflow"):
                getattr(synkhorn, f"{name}Model")(config)


def test_a_tokenizer_with_more_tokens_than_the_model_is_named(checkpoint):
    synkhorn.byte_tokenizer().save_pretrained(checkpoint)
    fill = transformers.pipeline("fill-mask", model=str(checkpoint))
    with pytest.raises(ValueError, match=r"input_ids holds \d+, but vocab_size=40: ids lie in 0 to 39"):
        fill("a<mask>")
