"""`synkhorn export`: what the exported files compute is what the model does, and a mismatch is an error."""

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from onnxruntime.quantization import quantize_dynamic
from processes import python
from variants import SYNTHESIZERS, config_of, padding, random_ids, randomize, tiny_config

import synkhorn
from synkhorn import FAMILIES
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES
from synkhorn.scripts import export
from synkhorn.scripts.common import exporting

ENCODERS = [auto for auto in AUTO_CLASSES if auto != exporting.CAUSAL]
# the tokenizer has 260 tokens
FIELDS = {"num_hidden_layers": 1, "vocab_size": 260, "num_labels": 3}
# run in a new process, where an import of these packages fails
USE_PROGRAM = """
import sys
sys.modules["synkhorn"] = sys.modules["transformers"] = None
import torch
module = torch.export.load(sys.argv[1]).module()
ids = torch.tensor([[1, 2, 3, 4, 5]])
print(module(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"].shape)
"""


def save(folder: Path, config, auto_class: str = "AutoModel") -> Path:
    randomize(getattr(transformers, auto_class).from_config(config)).save_pretrained(folder)
    synkhorn.byte_tokenizer(model_max_length=13, is_causal=auto_class == exporting.CAUSAL).save_pretrained(folder)
    return folder


def small_config(family: str, **fields):
    variant = {"sinkhorn_iterations": 1} if family == "sinkhorn" else ["random", "dot_product"]
    return config_of(variant, **FIELDS | fields)


def exported(checkpoint: Path, *options: str) -> Path:
    output = checkpoint.with_name("exported")
    export.main([str(checkpoint), "--output_dir", str(output), *options])
    return output


# one of them, and all with `-m 'slow or not slow'`
@pytest.mark.parametrize(
    ("auto_class", "family"),
    [
        pytest.param(*pair, marks=[] if pair[0] == exporting.MULTIPLE_CHOICE else pytest.mark.slow)
        for pair in zip(ENCODERS, itertools.cycle(FAMILIES), strict=False)
    ],
)
def test_every_head_in_both_formats(family, auto_class, tmp_path):
    # the sort is in the test of variants; without it a graph is much smaller
    fields = {"sort_net": "none"} if family == "sinkhorn" else {}
    checkpoint = save(tmp_path / "model", small_config(family, **fields), auto_class)
    output = exported(checkpoint, "--formats", "onnx", "torch")
    assert {path.name for path in output.iterdir()} == {
        "model.onnx", "model.pt2", "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    # what the command checked is checked once more by other means, with a hole in a row as well
    ids, mask = random_ids(5, 10), padding(5, 10, "left")
    mask[0, 4] = 0
    if auto_class == exporting.MULTIPLE_CHOICE:
        ids, mask = ids[:, None].repeat(1, 3, 1), mask[:, None].repeat(1, 3, 1)
    model = getattr(transformers, auto_class).from_pretrained(checkpoint).eval()
    expected = model(input_ids=ids, attention_mask=mask)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    names = [value.name for value in session.get_outputs()]
    assert names == list(expected)
    outputs = session.run(names, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    program = torch.export.load(output / "model.pt2").module()(input_ids=ids, attention_mask=mask)
    for name, array in zip(names, outputs, strict=True):
        np.testing.assert_allclose(array, expected[name].detach(), atol=1e-4)
        torch.testing.assert_close(program[name], expected[name], atol=1e-4, rtol=1e-4)
    # onnxruntime's quantizer takes the file; 8 bits a weight are near, but not equal
    quantize_dynamic(output / "model.onnx", tmp_path / "quantized.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "quantized.onnx")
    quantized = session.run(names, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    for array, exact in zip(quantized, outputs, strict=True):
        assert 0 < np.abs(array - exact).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("variant", "is_causal"),
    [
        (SYNTHESIZERS, False),
        *(
            pytest.param(variant, is_causal, marks=pytest.mark.slow)
            for variant, is_causal in (
                ({"sort_top_k": 2, "sorted_blocks": 2}, False),
                (["random", "dot_product"], True),
                ({"sort_net": "mlp", "share_sort_net": True}, False),
                ({"sort_net": "bilinear", "mix_dot_product": True, "combine": "logits"}, False),
                ({"sortcut_blocks": 2, "block_pooling": "first"}, False),
                ({"sort_net": "pooled", "sort_hard": True}, False),
                ({"causal_balancing": "sinkhorn", "combine": "sum", "block_pooling": "sum"}, True),
            )
        ),
    ],
    ids=str,
)
def test_variants_and_causal_trunks_as_onnx(variant, is_causal, tmp_path):
    # one round of balancing: more of them repeat the same operations
    once = {} if isinstance(variant, list) else {"sinkhorn_iterations": 1}
    config = config_of(variant, is_causal=is_causal, **FIELDS | once)
    checkpoint = save(tmp_path / "model", config, "AutoModelForTokenClassification" if is_causal else "AutoModel")
    assert (exported(checkpoint) / "model.onnx").exists()


def test_positions_and_token_types(tmp_path):
    config = tiny_config(
        ["dot_product", "dense"], position_embedding_type="rope", type_vocab_size=2, norm_first=False, **FIELDS
    )
    output = exported(save(tmp_path / "model", config), "--formats", "onnx", "torch")
    session = onnxruntime.InferenceSession(output / "model.onnx")
    inputs = [(value.name, value.shape) for value in session.get_inputs()]
    assert inputs == [(name, ["batch", "length"]) for name in ("input_ids", "attention_mask", "token_type_ids")]


def test_a_program_loads_without_transformers_and_a_tokenizer_as_ever(tmp_path):
    checkpoint = save(tmp_path / "model", small_config("sinkhorn"), "AutoModelForSequenceClassification")
    output = exported(checkpoint, "--formats", "torch")
    assert python("-c", USE_PROGRAM, output / "model.pt2") == "torch.Size([1, 3])\n"
    assert transformers.AutoTokenizer.from_pretrained(output)("ab").input_ids == [257, 97, 98, 258]


def test_the_base_model_of_a_language_model(tmp_path):
    checkpoint = save(tmp_path / "model", small_config("sinkhorn"), exporting.CAUSAL)
    with pytest.raises(ValueError, match="is a SinkhornForCausalLM, and an encoder is exported"):
        exported(checkpoint)
    assert (exported(checkpoint, "--auto_class", "AutoModel") / "model.onnx").exists()


def test_a_mismatch_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = save(tmp_path / "model", small_config("synthesizer"))
    monkeypatch.setitem(exporting.READERS, "torch", lambda path: lambda inputs: {
        "last_hidden_state": torch.zeros(*inputs["input_ids"].shape, 18)
    })  # fmt: skip
    with pytest.raises(RuntimeError, match=r"model.pt2: last_hidden_state of a batch of 1 with length 1 is .* from"):
        exported(checkpoint, "--formats", "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "tensorrt"], r"formats=\['tensorrt'\] must be one or more of onnx, torch"),
        (["--tolerance", "0"], "tolerance=0.0 must be positive"),
        (
            ["--auto_class", "AutoModelForTokenClassification"],
            "lacks weights of a SynthesizerForTokenClassification: classifier",
        ),
    ],
)
def test_what_cannot_be_exported(options, message, tmp_path):
    checkpoint = save(tmp_path / "model", small_config("synthesizer"), "AutoModelForMaskedLM")
    with pytest.raises(ValueError, match=message):
        exported(checkpoint, *options)
