"""`synkhorn convert`: a folder in, a checkpoint out that loads anywhere, or an error and nothing."""

from pathlib import Path

import pytest
import torch
import transformers
from processes import python
from safetensors.torch import save_file
from source_models import source_model
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

import synkhorn
from synkhorn import convert
from synkhorn.scripts import convert as command
from synkhorn.scripts import finetune

WORDS = ["good", "bad", "film", "plot", "very", "the", "a", "dull"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CLASSES = {
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "RobertaForSequenceClassification": "AutoModelForSequenceClassification",
    "DistilBertForTokenClassification": "AutoModelForTokenClassification",
    "GPT2LMHeadModel": "AutoModelForCausalLM",
}
# run in a process that cannot import synkhorn
USE = """
import sys
sys.modules["synkhorn"] = None
import torch, transformers
from safetensors.torch import load_file
for folder, auto in zip(sys.argv[1::2], sys.argv[2::2]):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    batch = tokenizer(["good film very dull plot", "bad"], padding=True, return_tensors="pt")
    torch.testing.assert_close(model(**batch).logits, load_file(folder + ".safetensors")["logits"])
    print(type(model).__name__, tokenizer.model_max_length)
"""


def save_source(folder: Path, class_name: str, **fields) -> Path:
    """A random checkpoint with a tokenizer of its architecture."""
    if class_name.startswith("GPT2"):
        tokenizer = synkhorn.byte_tokenizer(24, is_causal=True)
    elif class_name.startswith("Roberta"):
        words = [*ROBERTA_SPECIAL, "Ġ", *sorted({*"".join(WORDS)})]
        tokenizer = RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)
    else:
        words = BERT_SPECIAL + WORDS
        tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=24)
    vocabulary = {"vocab_size": 260, "pad_token_id": 256} if class_name.startswith("GPT2") else {}
    source_model(class_name, **vocabulary | fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(source: Path, *options: str) -> Path:
    output = source.with_name("converted")
    command.main([str(source), "--output_dir", str(output), *options])
    return output


def check_converted(source: Path, output: Path, class_name: str, auto_class: str) -> None:
    """Compare a converted checkpoint with its source, and record what it computes beside it."""
    tokenizer, original = AutoTokenizer.from_pretrained(output), AutoTokenizer.from_pretrained(source)
    assert (tokenizer.model_max_length, original.model_max_length) == (40, 24)
    assert tokenizer.special_tokens_map == original.special_tokens_map
    text = "good film very dull plot"
    assert tokenizer(text).input_ids == original(text).input_ids
    model = getattr(transformers, auto_class).from_pretrained(output).eval()
    config = model.config
    assert (config.max_position_embeddings, config.block_size, config.attention_dropout) == (40, 16, 0.25)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        assert getattr(config, f"{name}_token_id") == getattr(original, f"{name}_token_id"), name
    batch = tokenizer([text, "bad"], padding=True, return_tensors="pt")
    # token types only where the model has them
    assert ("token_type_ids" in batch) == class_name.startswith("Bert")
    save_file({"logits": model(**batch).logits.contiguous()}, f"{output}.safetensors")


def test_converted_checkpoints_load_without_the_package(tmp_path, capsys):
    arguments, expected = [], []
    for class_name, auto_class in CLASSES.items():
        folder = tmp_path / class_name
        source = save_source(folder / "source", class_name)
        options = ["--model_config", '{"block_size": 16, "attention_dropout": 0.25}', "--positions", "interpolate"]
        output = run(source, "--to", "sinkhorn", "--max_length", "40", *options)
        printed = capsys.readouterr().out
        ours = auto_class.replace("AutoModel", "Sinkhorn")
        assert f"{class_name} -> {ours}" in printed and "interpolated from 24 to 40" in printed
        check_converted(source, output, class_name, auto_class)
        arguments += [str(output), auto_class]
        expected.append(f"{ours} 40")
    assert python("-c", USE, *arguments).splitlines() == expected


def test_a_converted_checkpoint_is_fine_tuned_like_any_other(tmp_path):
    source = save_source(tmp_path / "source", "GPT2LMHeadModel")
    # as GPT-2's own, which has no token to pad with
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source)
    output = run(source, "--to", "sinkhorn", "--max_length", "64")
    assert AutoTokenizer.from_pretrained(output).pad_token is None
    (tmp_path / "train.csv").write_text("text,label\n" + "good film,1\nvery dull plot,0\n" * 8)
    results = finetune.main(
        ["classification", "--model_name_or_path", str(output), "--train_files", str(tmp_path / "train.csv")]
        + ["--validation_size", "4", "--max_steps", "2", "--output_dir", str(tmp_path / "tuned")]
        + ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"]
    )
    assert results and (tmp_path / "tuned" / "model.safetensors").exists()


def test_labels_and_their_names_come_along(tmp_path):
    names = {0: "bad", 1: "fair", 2: "good"}
    source = source_model("BertForSequenceClassification", id2label=names, problem_type="multi_label_classification")
    config = convert(source, to="sinkhorn", max_length=64).model.config
    assert (config.id2label, config.problem_type) == (names, "multi_label_classification")
    assert (config.classifier_pooling, config.is_causal, config.norm_first) == ("cls", False, False)


def test_weights_that_the_checkpoint_lacks_are_new(tmp_path):
    folder = save_source(tmp_path / "source", "BertModel")
    model = transformers.BertForMaskedLM.from_pretrained(folder)
    del model.cls.predictions.transform
    model.save_pretrained(folder)
    conversion = convert(folder, to="synthesizer")
    assert conversion.new["mlm_head.dense.weight"] == "in a new model"
    assert "mlm_decoder.bias" in conversion.copied


def test_a_checkpoint_that_names_no_class_gives_the_base_model(tmp_path):
    folder = save_source(tmp_path / "source", "BertForMaskedLM")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"architectures"', '"unnamed"'))
    conversion = convert(folder, to="synthesizer")
    assert type(conversion.model).__name__ == "SynthesizerModel"
    assert "cls.predictions.bias" in conversion.left_behind


@pytest.mark.parametrize(
    "class_name, options, message",
    [
        ("T5Model", {}, r"T5Model with model_type='t5', which does not fit: take one of bert \(Bert...\), roberta"),
        ("BertLMHeadModel", {}, "BertLMHeadModel, whose head does not fit: take one of BertModel, BertForMaskedLM"),
        ("BertModel", {"to": "longformer"}, "to='longformer' is unknown: choose one of sinkhorn, synthesizer"),
        ("BertModel", {"positions": "repeat"}, "positions='repeat' is unknown: choose one of tile, interpolate"),
        ("BertModel", {"max_length": 0}, "max_length=0 is too small: it must be at least 1"),
        ("BertModel", {"hidden_size": 12}, "hidden_size=12 cannot be set, because the source decides it: leave it out"),
        ("BertModel", {"max_position_embeddings": 9}, "max_position_embeddings=9 cannot be set.* give max_length"),
        ("BertModel", {"blocksize": 9}, "blocksize=9 is not a field of SinkhornConfig: it has .*'block_size'"),
        ("BertModel", {"block_size": 30}, "block_size=30 is more than max_position_embeddings=24"),
        ("GPT2Model", {"sortcut_blocks": 1, "block_size": 8}, "sortcut_blocks=1 with is_causal=True"),
    ],
)
def test_what_does_not_fit_is_an_error(class_name, options, message):
    if class_name == "T5Model":
        source = transformers.T5Model(transformers.T5Config(vocab_size=9, d_model=8, num_layers=1, num_heads=1))
    else:
        source = source_model(class_name)
    with pytest.raises(ValueError, match=message):
        convert(source, **{"to": "sinkhorn"} | options)


@pytest.mark.parametrize(
    "class_name, fields, message",
    [
        (
            "GPT2LMHeadModel",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True.* be False",
        ),
        ("RobertaForMaskedLM", {"hidden_act": "relu"}, "hidden_act='relu', which does not fit: it must be 'gelu'"),
        ("BertModel", {"is_decoder": True}, "is_decoder=True, which does not fit: it must be False"),
    ],
)
def test_a_source_that_computes_something_else_is_an_error(class_name, fields, message):
    with pytest.raises(ValueError, match=message):
        convert(source_model(class_name, **fields), to="synthesizer")


def test_a_source_with_pruned_heads_is_an_error():
    source = source_model("BertModel")
    value = source.encoder.layer[1].attention.self.value
    value.weight = torch.nn.Parameter(value.weight[:18].clone())
    with pytest.raises(
        ValueError, match=r"1.attention.self.value.weight has shape \(18, 36\), but must have \(36, 36\)"
    ):
        convert(source, to="synthesizer")


def test_a_converted_model_is_saved_without_a_tokenizer(tmp_path):
    conversion = convert(source_model("BertModel"), to="synthesizer")
    conversion.save_pretrained(tmp_path / "converted")
    assert not list((tmp_path / "converted").glob("tokenizer*"))
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "converted")
    ids = torch.arange(1, 17)[None]
    torch.testing.assert_close(loaded(ids).last_hidden_state, conversion.model.eval()(ids).last_hidden_state)


def test_a_folder_without_a_tokenizer_is_an_error_and_writes_nothing(tmp_path):
    source = tmp_path / "source"
    source_model("BertForMaskedLM").save_pretrained(source)
    with pytest.raises(ValueError, match="has no tokenizer: save it there too"):
        run(source, "--to", "sinkhorn", "--max_length", "40", "--model_config", '{"block_size": 16}')
    synkhorn.byte_tokenizer().save_pretrained(source)
    with pytest.raises(ValueError, match="a tokenizer of 260 tokens, more than its vocab_size=61"):
        run(source, "--to", "sinkhorn", "--max_length", "40", "--model_config", '{"block_size": 16}')
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    source = save_source(tmp_path / "source", "BertModel")
    with pytest.raises(FileExistsError, match="output_dir=.* exists"):
        command.main([str(source), "--to", "sinkhorn", "--output_dir", str(source)])


def test_nothing_is_left_where_saving_fails(tmp_path, monkeypatch):
    source = save_source(tmp_path / "source", "BertModel")

    def fail(self, folder):
        (Path(folder) / "config.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(synkhorn.Conversion, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        run(source, "--to", "synthesizer")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
