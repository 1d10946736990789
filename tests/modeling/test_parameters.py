"""Parameter counts equal the formulas of the papers, and resizing keeps what was learned."""

import pytest
import torch
from comparison import rows_of
from variants import SYNTHESIZERS, VARIANTS, config_of, model_of, name_of, random_ids, tiny_config, tiny_sinkhorn_config

from synkhorn import SynthesizerForMaskedLM, SynthesizerForTokenClassification, SynthesizerModel
from synkhorn.modeling.modeling_sinkhorn import SinkhornAttention
from synkhorn.modeling.modeling_synthesizer import MEMBERS, SynthesizerAttention

WIDTH, HEADS, LENGTH, RANK = 18, 3, 13, 3
HEAD_WIDTH = WIDTH // HEADS
# per head, weights and biases; with 13 positions the factors are [4, 4]
FORMULAS = {
    "dot_product": 2 * WIDTH * HEAD_WIDTH + 2 * HEAD_WIDTH,
    "dense": WIDTH * HEAD_WIDTH + HEAD_WIDTH * LENGTH + HEAD_WIDTH + LENGTH,
    "random": LENGTH**2,
    "fixed_random": 0,
    "factorized_random": 2 * LENGTH * RANK,
    "factorized_dense": WIDTH * HEAD_WIDTH + HEAD_WIDTH * (4 + 4) + HEAD_WIDTH + 4 + 4,
}
# per sort matrix, of a hidden width w; 13 positions are 4 blocks
BLOCKS = 4
SORT_NET_FORMULAS = {
    "linear": lambda w: WIDTH * BLOCKS + BLOCKS,
    "mlp": lambda w: WIDTH * w + w + w * BLOCKS + BLOCKS,
    "bilinear": lambda w: 2 * WIDTH * w,
    "none": lambda w: 0,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_parameter_counts(name):
    member = MEMBERS[name](tiny_config([name], synthesizer_hidden_size=None))
    assert sum(p.numel() for p in member.parameters()) == HEADS * FORMULAS[name]


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_mixture_has_the_sum_and_a_weight_for_each_head_and_member(variant):
    config = tiny_config(variant, synthesizer_hidden_size=None)
    attention = SynthesizerAttention(config, 0)
    projections = 2 * (WIDTH * WIDTH + WIDTH)
    mixture = HEADS * len(variant) if len(variant) > 1 else 0
    expected = projections + mixture + HEADS * sum(FORMULAS[name] for name in variant)
    assert sum(p.numel() for p in attention.parameters()) == expected


@pytest.mark.parametrize("sort_net", SORT_NET_FORMULAS)
@pytest.mark.parametrize("share", [False, True], ids=["each", "shared"])
def test_parameter_counts_of_sort_nets(sort_net, share):
    attention = SinkhornAttention(tiny_sinkhorn_config(sort_net=sort_net, share_sort_net=share), 0)
    heads, width = (1, WIDTH) if share else (HEADS, HEAD_WIDTH)
    expected = 4 * (WIDTH * WIDTH + WIDTH) + heads * SORT_NET_FORMULAS[sort_net](width)
    assert sum(p.numel() for p in attention.parameters()) == expected


def test_fixed_random_is_saved_and_not_trained():
    attention = SynthesizerAttention(tiny_config(["fixed_random"]), 0)
    assert "members.fixed_random.weight" in attention.state_dict()
    assert "members.fixed_random.weight" not in dict(attention.named_parameters())


@pytest.mark.parametrize("variant", [SYNTHESIZERS, {}, {"sort_net": "bilinear", "combine": "sum"}], ids=name_of)
def test_resizing_keeps_what_was_learned_and_moves_the_limit(variant):
    model = model_of(config_of(variant), "ForMaskedLM")
    ids = random_ids(2, 9)
    before = model(ids).logits
    with pytest.raises(ValueError, match="14 tokens.*max_position_embeddings=13"):
        model(random_ids(2, 14))
    model.resize_max_position_embeddings(31)
    assert model.config.max_position_embeddings == 31
    torch.testing.assert_close(model(ids).logits, before)
    model(random_ids(2, 31)).logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.resize_max_position_embeddings(9)
    torch.testing.assert_close(model(ids).logits, before)
    with pytest.raises(ValueError, match="10 tokens.*max_position_embeddings=9"):
        model(random_ids(2, 10))


def test_new_positions_are_initialised_as_at_construction():
    config = tiny_config(["random", "dense"], initializer_range=0.02)
    model = SynthesizerForMaskedLM(config)
    model.resize_max_position_embeddings(500)
    assert model.model.embeddings.position_embeddings.weight[13:].std().item() == pytest.approx(0.02, rel=0.1)
    member = model.model.layers[0].attention.members
    assert member["random"].weight[:, 13:, 13:].std().item() == pytest.approx(1.0, rel=0.1)
    assert member["dense"].weight[:, 13:].std().item() == pytest.approx(0.02, rel=0.1)
    assert member["dense"].bias[:, 13:].abs().max() == 0


@pytest.mark.parametrize("name", ["random", "fixed_random", "factorized_random", "factorized_dense"])
def test_synthesised_logits_start_out_different(name):
    """Weights that all start equal would not learn, or, where they are fixed, never be anything but a mean."""
    config = tiny_config([name], max_position_embeddings=100, initializer_range=0.02)
    attention = SynthesizerModel(config).layers[0].attention
    x = torch.randn(1, 100, 18)
    assert attention.members[name](x, None).padded(rows_of(x)).written(100).std() > 1e-3


@pytest.mark.parametrize("variant", [["factorized_dense", "fixed_random"], {"sort_net": "mlp"}], ids=name_of)
def test_a_resized_model_saves_and_loads(variant, tmp_path):
    model = model_of(config_of(variant), "ForMaskedLM")
    model.resize_max_position_embeddings(29)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(random_ids(2, 29)).logits, model(random_ids(2, 29)).logits)


def test_resizing_rejects_what_is_no_length():
    with pytest.raises(ValueError, match="max_position_embeddings=0"):
        SynthesizerForMaskedLM(tiny_config()).resize_max_position_embeddings(0)


def test_a_head_loads_from_another_head_with_only_its_own_weights_new(tmp_path):
    SynthesizerForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    model, info = SynthesizerForTokenClassification.from_pretrained(tmp_path, num_labels=7, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert all(name.startswith("mlm_") for name in info["unexpected_keys"])
    assert not info["mismatched_keys"]
    assert model.classifier.weight.std() > 0
