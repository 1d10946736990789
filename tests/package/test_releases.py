"""Checkpoints of different releases, names and makers of configurations stand beside each other."""

import copy
import json
import pickle
import re

import pytest
import torch
import transformers
from checkpoints import family_config
from processes import run
from safetensors.torch import load_file, save_file
from shipped_code import CODE, every_family
from transformers import BertConfig, BertLMHeadModel, DynamicCache, EncoderDecoderModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, STATIC_LAYER_TYPE_MAPPING
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from variants import random_ids, randomize

import synkhorn
from synkhorn import FAMILIES, hub_export
from synkhorn.hub_export import export_code

# a name inside the cache layers
RENAMED = re.compile(r"(def |self\.|\(\)\.)prepare\(")


def model_of(family: str, head: str, **fields) -> torch.nn.Module:
    return randomize(getattr(synkhorn, f"{family.title()}{head}")(family_config(family, **fields))).eval()


@pytest.fixture
def another_release(monkeypatch):
    """Changes what is exported: the caches of another release, whose other files are the same."""

    def change(module: str) -> str:
        return RENAMED.sub(r"\1make_room(", source(module))

    source = hub_export.flat_source
    return lambda: monkeypatch.setattr(hub_export, "flat_source", change)


def test_two_releases_in_one_process_use_their_own_code(another_release, tmp_path):
    models, ids = {family: model_of(family, "ForCausalLM") for family in FAMILIES}, random_ids(2, 5)
    for release in "ab":
        for family, model in models.items():
            model.save_pretrained(tmp_path / "saved" / family / release / "model")
        another_release()
    for family, model in models.items():
        generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        recorded = {"input_ids": ids, "generated": generated, "logits": model(generated).logits[:, -1].contiguous()}
        save_file(recorded, tmp_path / "saved" / family / "recorded.safetensors")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    assert run("two_releases.py", tmp_path / "saved", **home) == "checked\n"


@every_family
def test_caches_are_no_matter_of_the_configuration(family, tmp_path):
    model, ids = model_of(family, "ForCausalLM"), random_ids(1, 5)
    for config in (model.config, copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
        cache = DynamicCache(config=config)
        assert model(ids, past_key_values=cache).past_key_values is cache
        assert {type(layer) for layer in cache.layers} == {model.cache_layers[0]}
    # one object for models of two heads
    shared = family_config(family, is_causal=True)
    first, second = (getattr(synkhorn, f"{family.title()}Model")(shared) for _ in range(2))
    second(ids, past_key_values=first(ids, past_key_values=DynamicCache(config=shared)).past_key_values)
    known = [*DYNAMIC_LAYER_TYPE_MAPPING.values(), *STATIC_LAYER_TYPE_MAPPING.values()]
    assert not any("synkhorn" in layer.__module__ for layer in known)
    model.save_pretrained(tmp_path)
    assert not any("layer_type" in name for name in json.loads((tmp_path / "config.json").read_text()))


def test_every_exported_file_tells_its_release(another_release, tmp_path):
    def texts() -> dict[str, str]:
        return {path.name: path.read_text() for path in export_code("sinkhorn", tmp_path)}

    first = texts()
    assert first == texts()
    another_release()
    second = texts()
    assert all(first[name] != second[name] for name in first)


def remote_config(folder, family: str):
    """The configuration of a checkpoint, made by its own code."""
    module = f"configuration_{family}.{family.title()}Config"
    return get_class_from_dynamic_module(module, str(folder)).from_pretrained(folder)


@every_family
def test_a_configuration_of_remote_code_makes_a_model_that_saves_its_files(family, tmp_path):
    saved = model_of(family, "ForCausalLM", initializer_range=0.25)
    saved.save_pretrained(tmp_path / "first")
    config = remote_config(tmp_path / "first", family)
    assert config.export_code is None
    config._attn_implementation = "eager"
    model = type(saved)(config)
    assert type(model.config) is type(model.model.config) is type(saved.config)
    assert model.config is model.model.config and model.config._attn_implementation == "eager"
    assert model.config.initializer_range == 0.25
    model.save_pretrained(tmp_path / "second")
    assert {path.name for path in (tmp_path / "second").glob("*.py")} == CODE[family]
    with pytest.raises(ValueError, match="config=BertConfig must be a .*Config for"):
        type(saved)(BertConfig())


@every_family
def test_an_encoder_of_an_encoder_decoder_model_loads(family, tmp_path):
    encoder = model_of(family, "Model")
    sizes = {"vocab_size": 40, "hidden_size": 18, "num_hidden_layers": 1, "num_attention_heads": 3}
    decoder = BertLMHeadModel(BertConfig(**sizes, intermediate_size=20, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert type(loaded.encoder) is type(encoder)
    ids = {"input_ids": random_ids(2, 7), "decoder_input_ids": random_ids(2, 3)}
    torch.testing.assert_close(loaded(**ids).logits, model(**ids).logits)


HEADS = [("SequenceClassification", "sequence_classifier"), ("TokenClassification", "token_classifier")]


@every_family
@pytest.mark.parametrize(("head", "former"), HEADS)
def test_a_checkpoint_with_the_former_name_of_its_head_loads(family, head, former, tmp_path):
    model, ids = model_of(family, f"For{head}", num_labels=3), random_ids(2, 7)
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    old = {name.replace("classifier.", f"{former}.", 1): weight for name, weight in load_file(path).items()}
    assert any(name.startswith(former) for name in old)
    save_file(old, path, metadata={"format": "pt"})
    auto = getattr(transformers, f"AutoModelFor{head}")
    remote = get_class_from_dynamic_module(f"modeling_{family}.{type(model).__name__}", str(tmp_path / "old"))
    for loaded_class in (auto, type(model), remote):
        loaded, report = loaded_class.from_pretrained(tmp_path / "old", output_loading_info=True)
        assert not any(report.values()), report
        torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits)
        loaded.save_pretrained(tmp_path / "new")
        assert load_file(tmp_path / "new" / "model.safetensors").keys() == model.state_dict().keys()
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(old)
    torch.testing.assert_close(fresh(ids).logits, model(ids).logits)


@every_family
@pytest.mark.parametrize("former", [False, True])
def test_heads_of_like_names_are_new_to_each_other(family, former, tmp_path):
    """Whatever head a checkpoint has, another one is new, and never a clash of shapes."""
    for head, name in (*HEADS, ("MultipleChoice", "choice_classifier"), ("QuestionAnswering", "qa_outputs")):
        source = model_of(family, f"For{head}", num_labels=3)
        source.save_pretrained(tmp_path / head)
        if former:
            path = tmp_path / head / "model.safetensors"
            weights = {key.replace("classifier.", f"{name}.", 1): x for key, x in load_file(path).items()}
            weights = {key.replace("choice_choice", "choice"): x for key, x in weights.items()}
            save_file(weights, path, metadata={"format": "pt"})
        for other in ("SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering"):
            if other == head:
                continue
            target = getattr(synkhorn, f"{family.title()}For{other}")
            loaded, report = target.from_pretrained(tmp_path / head, num_labels=5, output_loading_info=True)
            own = {key for key in loaded.state_dict() if not key.startswith("model.")}
            assert set(report["missing_keys"]) == own and not report["mismatched_keys"]
