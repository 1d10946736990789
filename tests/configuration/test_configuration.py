"""Every impossible configuration is an error at construction that names the field and its value."""

import json

import pytest
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig
from variants import random_ids, tiny_config, tiny_sinkhorn_config

from synkhorn import (
    SinkhornConfig,
    SinkhornForCausalLM,
    SinkhornModel,
    SynthesizerConfig,
    SynthesizerForCausalLM,
    SynthesizerForMaskedLM,
    SynthesizerModel,
)
from synkhorn.configuration.configuration_backbone import most_even_pair
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS

ROTARY = {"position_embedding_type": "rope", "synthesizers": ["dot_product"]}


def check_refused(make, model_class, fields, words):
    """Fields are refused by the constructor, and assigned one by one at once or by a model of the configuration."""
    config = make()

    def assign():
        for field, value in fields.items():
            setattr(config, field, value)
        model_class(config)

    for refused in (lambda: make(**fields), assign):
        with pytest.raises(ValueError) as error:
            refused()
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"synthesizers": []}, ["synthesizers", "[]"]),
        ({"synthesizers": ["dens"]}, ["synthesizers", "dens", "factorized_dense"]),
        ({"synthesizers": ["dense", "dense"]}, ["synthesizers", "twice"]),
        ({"mixture_weighting": "max"}, ["mixture_weighting", "max", "softmax, sum"]),
        ({"rank": 0}, ["rank", "0"]),
        ({"synthesizer_hidden_size": -1}, ["synthesizer_hidden_size", "-1"]),
        ({"factors": [3], "synthesizers": ["factorized_dense"]}, ["factors", "[3]"]),
        ({"factors": [2, 6], "synthesizers": ["factorized_dense"]}, ["[2, 6]", "max_position_embeddings=13"]),
        ({"factors": [0, 60], "synthesizers": ["factorized_dense"]}, ["factors", "[0, 60]"]),
        ({"factors": [4, 4]}, ["factors", "[4, 4]", "factorized_dense", "['dense']"]),
        ({"position_embedding_type": "rope"}, ["position_embedding_type", "rope", "dot_product"]),
        ({"position_embedding_type": "alibi"}, ["position_embedding_type", "alibi", "sinusoidal"]),
        (
            ROTARY | {"num_attention_heads": 6},
            ["rope", "num_attention_heads=6", "3"],
        ),
        (ROTARY | {"rope_parameters": {"rope_type": "liner"}}, ["rope_type='liner'", "linear, dynamic, yarn"]),
        (ROTARY | {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor=0.5", "1"]),
        (ROTARY | {"rope_parameters": {"rope_type": "longrope"}}, ["rope_type='longrope'", "yarn"]),
        ({"hidden_size": 19}, ["hidden_size=19", "num_attention_heads=3"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"num_hidden_layers": -2}, ["num_hidden_layers", "-2"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings", "0"]),
        ({"type_vocab_size": -1}, ["type_vocab_size", "-1"]),
        ({"hidden_act": "gelo"}, ["hidden_act", "gelo"]),
        ({"hidden_dropout": 1.0}, ["hidden_dropout", "1.0"]),
        ({"attention_dropout": -0.1}, ["attention_dropout", "-0.1"]),
        ({"classifier_dropout": 2.0}, ["classifier_dropout", "2.0"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps", "0.0"]),
        ({"initializer_range": -1.0}, ["initializer_range", "-1.0"]),
        ({"classifier_pooling": "max"}, ["classifier_pooling", "max", "mean"]),
        ({"pad_token_id": 40}, ["pad_token_id=40", "39"]),
        ({"mask_token_id": -1}, ["mask_token_id=-1"]),
        ({"eos_token_id": [2, 99]}, ["eos_token_id=[2, 99]", "39"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_values_are_named(fields, words):
    check_refused(tiny_config, SynthesizerModel, fields, words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block_size": 0}, ["block_size", "0"]),
        ({"block_size": 14}, ["block_size=14", "max_position_embeddings=13"]),
        ({"sort_net": "cnn"}, ["sort_net", "cnn", "bilinear"]),
        ({"block_pooling": "max"}, ["block_pooling", "max", "first"]),
        ({"combine": "product"}, ["combine", "product", "logits"]),
        ({"causal_balancing": "none"}, ["causal_balancing", "none", "softmax"]),
        ({"sinkhorn_iterations": 0}, ["sinkhorn_iterations", "0", "1"]),
        ({"sinkhorn_iterations": 0, "is_causal": True, "causal_balancing": "sinkhorn"}, ["sinkhorn_iterations", "0"]),
        ({"sinkhorn_iterations": -1, "is_causal": True}, ["sinkhorn_iterations", "-1"]),
        ({"sinkhorn_temperature": 0.0}, ["sinkhorn_temperature", "0.0"]),
        ({"sinkhorn_temperature": 1e-39}, ["sinkhorn_temperature=1e-39", "at least 1e-06"]),
        ({"sinkhorn_temperature": float("nan")}, ["sinkhorn_temperature", "nan"]),
        ({"sinkhorn_temperature": float("inf")}, ["sinkhorn_temperature", "inf"]),
        ({"sortcut_blocks": 0}, ["sortcut_blocks", "0"]),
        ({"sortcut_blocks": 5}, ["sortcut_blocks=5", "4 blocks", "block_size=4", "max_position_embeddings=13"]),
        ({"sortcut_blocks": 2, "is_causal": True}, ["sortcut_blocks=2", "is_causal=True"]),
        ({"sortcut_blocks": 2, "sort_net": "none"}, ["sortcut_blocks=2", "sort_net='none'"]),
        ({"sort_top_k": 0}, ["sort_top_k", "0"]),
        ({"sorted_blocks": 0}, ["sorted_blocks", "0"]),
        ({"sort_hard": True, "sort_net": "none"}, ["sort_hard=True", "sort_net='none'"]),
        ({"sort_top_k": 2, "sort_net": "none"}, ["sort_top_k=2", "sort_net='none'"]),
        ({"sorted_blocks": 2, "sort_net": "pooled"}, ["sorted_blocks=2", "sort_net='pooled'"]),
        ({"sorted_blocks": 2, "combine": "logits"}, ["sorted_blocks=2", "combine='logits'"]),
        ({"sorted_blocks": 2, "sortcut_blocks": 2}, ["sorted_blocks=2", "sortcut_blocks=2"]),
        ({"sortcut_blocks": 2, "combine": "sum"}, ["combine='sum'", "sortcut_blocks=2"]),
        ({"position_embedding_type": "rope", "num_attention_heads": 6}, ["rope", "num_attention_heads=6", "3"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_values_of_sinkhorn_are_named(fields, words):
    check_refused(tiny_sinkhorn_config, SinkhornModel, fields, words)


@pytest.mark.parametrize(
    "fields",
    [
        {"block_size": 13},
        {"block_size": 1},
        {"sinkhorn_iterations": 0, "is_causal": True},
        {"sinkhorn_iterations": 0, "sort_net": "none"},
        {"sortcut_blocks": 4},
        {"sinkhorn_temperature": 1},
        {"position_embedding_type": "rope"},
    ],
    ids="-".join,
)
def test_possible_values_of_sinkhorn_run(fields):
    model = SinkhornModel(tiny_sinkhorn_config(**fields))
    assert model(random_ids(2, 13)).last_hidden_state.isfinite().all()


def test_defaults_of_sinkhorn():
    config = SinkhornConfig()
    assert (config.block_size, config.sort_net, config.block_pooling) == (64, "linear", "normed_sum")
    assert (config.sinkhorn_iterations, config.sinkhorn_temperature, config.gumbel_noise) == (7, 0.75, True)
    assert (config.combine, config.mix_dot_product, config.sortcut_blocks) == ("concat", False, None)
    assert (config.causal_balancing, config.share_sort_net, config.num_blocks) == ("softmax", False, 8)


def test_a_saved_configuration_says_its_pooling(tmp_path):
    """Checkpoints from when `sum` was the default are not read with the default of today."""
    for pooling in BLOCK_POOLINGS:
        SinkhornConfig(block_pooling=pooling).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["block_pooling"] == pooling
        assert AutoConfig.from_pretrained(tmp_path).block_pooling == pooling


def test_a_causal_lm_takes_no_sortcut():
    """The configuration is possible, but the causal copy that the head makes of it is not."""
    with pytest.raises(ValueError, match="sortcut_blocks=2 with is_causal=True"):
        SinkhornForCausalLM(tiny_sinkhorn_config(sortcut_blocks=2))
    with pytest.raises(ValueError, match="block_size=4 is more than max_position_embeddings=3"):
        SinkhornModel(tiny_sinkhorn_config()).resize_max_position_embeddings(3)


@pytest.mark.parametrize(
    "fields",
    [{"block_size": 0}, {"sinkhorn_temperature": 0.0}, {"combine": "product"}, {"attention_dropout": 1.0}],
    ids=str,
)
def test_a_model_stays_as_it_was_where_an_assignment_is_refused(fields):
    model, ids = SinkhornModel(tiny_sinkhorn_config()).eval(), random_ids(2, 13)
    expected = model(ids).last_hidden_state
    ((field, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{field}="):
        setattr(model.config, field, value)
    assert torch.equal(model(ids).last_hidden_state, expected)


def test_a_list_that_was_changed_in_place_is_refused():
    config = tiny_config()
    config.synthesizers.append("dens")
    with pytest.raises(ValueError, match="synthesizers='dens' is unknown"):
        SynthesizerModel(config)


def test_a_family_that_cannot_be_causal_makes_no_causal_model():
    @strict
    class BidirectionalConfig(SynthesizerConfig):
        def validate_architecture(self):
            super().validate_architecture()
            if self.is_causal:
                raise ValueError("is_causal=True is not for this family")

    assert not SynthesizerModel(BidirectionalConfig()).config.is_causal
    with pytest.raises(ValueError, match="is_causal=True is not for this family"):
        SynthesizerForCausalLM(BidirectionalConfig())


def test_fields_are_typed():
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        SynthesizerConfig(hidden_size="768")
    with pytest.raises(StrictDataclassFieldValidationError, match="synthesizers"):
        SynthesizerConfig(synthesizers="dense")
    with pytest.raises(StrictDataclassFieldValidationError, match="block_size"):
        SinkhornConfig(block_size=1.5)


def test_a_masked_lm_is_not_causal():
    with pytest.raises(ValueError, match="is_causal=True"):
        SynthesizerForMaskedLM(tiny_config(is_causal=True))


def test_a_causal_lm_is_causal_in_its_own_copy():
    config = tiny_config()
    model = SynthesizerForCausalLM(config)
    assert model.config.is_causal and model.model.layers[0].attention.config.is_causal
    assert not config.is_causal


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(["random", "factorized_dense"], factors=[5, 3], num_labels=4, mixture_weighting="sum"),
        tiny_sinkhorn_config(sort_net="mlp", sortcut_blocks=2, num_labels=4, sinkhorn_temperature=0.5),
    ],
    ids=lambda config: config.model_type,
)
def test_survives_json(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config.model_type


def test_rope_parameters_are_those_of_transformers():
    config = tiny_config(["dot_product"], position_embedding_type="rope", rope_parameters={"rope_theta": 500.0})
    assert config.rope_parameters == {"rope_theta": 500.0, "rope_type": "default"}
    assert tiny_config().rope_parameters is None


def test_scaled_rotations_are_those_of_scaled_positions():
    def outputs(scaling: dict, positions=None):
        rotations = {"rope_theta": 500.0} | scaling
        config = tiny_config(["dot_product"], position_embedding_type="rope", rope_parameters=rotations)
        torch.manual_seed(0)
        model = SynthesizerForMaskedLM(config).eval()
        return model(random_ids(2, 13), position_ids=positions).logits

    plain, linear = outputs({}), outputs({"rope_type": "linear", "factor": 4.0})
    torch.testing.assert_close(linear, outputs({}, torch.arange(13)[None] / 4))
    # no text is longer than the model was made for
    torch.testing.assert_close(outputs({"rope_type": "dynamic", "factor": 4.0}), plain)
    for scaled in (linear, outputs({"rope_type": "yarn", "factor": 4.0})):
        assert (scaled - plain).abs().max() > 1e-3


@pytest.mark.parametrize("length", [*range(1, 60), 512, 1000, 4096])
def test_the_most_even_pair_covers_the_length(length):
    a, b = most_even_pair(length)
    assert a <= b <= a + 2
    assert a * b >= length > (a - 1) * b
