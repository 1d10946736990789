"""Every variant against a loop written from the paper, and what the properties of `test_properties*.py` leave out."""

import math

import pytest
import torch
from comparison import assert_same, attend, eager, gradients, loop, sdpa
from variants import VARIANTS, name_of, padding, random_ids, randomize, tiny_config

from synkhorn import SynthesizerModel
from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@every_variant
def test_eager_and_sdpa_equal_the_loop(variant, is_causal):
    for weighting, length, side in [("softmax", 1, "none"), ("softmax", 7, "right"), ("sum", 13, "hole")]:
        config = tiny_config(variant, is_causal=is_causal, mixture_weighting=weighting)
        attention = randomize(SynthesizerAttention(config, 0).double())
        x, mask = torch.randn(2, length, 18, dtype=torch.float64), padding(2, length, side)
        mask = None if mask is None else mask.bool()
        expected = gradients(loop, attention, x, mask)
        for form in (eager, sdpa):
            assert_same(gradients(form, attention, x, mask), expected, 1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@every_variant
def test_sdpa_equals_eager_across_tiles(variant, is_causal):
    """Lengths beyond one tile of our kernels, and of the fused ones."""
    config = tiny_config(variant, is_causal=is_causal, max_position_embeddings=611)
    attention = randomize(SynthesizerAttention(config, 0).double())
    x, mask = torch.randn(2, 597, 18, dtype=torch.float64), padding(2, 597, "right").bool()
    assert_same(gradients(sdpa, attention, x, mask), gradients(eager, attention, x, mask), 1e-10)


@every_variant
def test_causality_is_exact(variant):
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True))).eval()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for position in (0, 5, 12):
            embeds = torch.randn(2, 13, 18, requires_grad=True)
            model(inputs_embeds=embeds).last_hidden_state[:, position].square().sum().backward()
            assert embeds.grad[:, position + 1 :].abs().sum() == 0
            assert embeds.grad[:, : position + 1].abs().sum(-1).min() > 0


@every_variant
def test_attention_dropout_is_exact_for_each_row_of_the_batch(variant):
    """The mean over many draws of the dropped outputs is the undropped output, and rows draw on their own."""
    attention = randomize(SynthesizerAttention(tiny_config(variant, attention_dropout=0.5), 0))
    x = torch.randn(1, 6, 18).expand(4000, -1, -1)
    for implementation in ("eager", "sdpa"):
        attention.config._attn_implementation = implementation
        dropped = attend(attention.train(), x)
        assert dropped.std(0).min() > 0.01
        full = attend(attention.eval(), x[:1])[0]
        error = (dropped.mean(0) - full).abs() / dropped.std(0) * math.sqrt(len(x))
        assert error.max() < 5


@pytest.mark.parametrize("variant", VARIANTS[-1:], ids=name_of)
def test_compiles_without_graph_breaks(variant):
    torch._dynamo.reset()
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True))).eval()
    ids, mask = random_ids(3, 9), padding(3, 9, "hole")
    expected = model(ids, attention_mask=mask).last_hidden_state
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, attention_mask=mask).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [["random"], ["dense", "dot_product"]], ids=name_of)
def test_exports_with_dynamic_batch_and_length(variant):
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True, use_cache=False))).eval()
    shape = {0: torch.export.Dim("batch", min=2, max=16), 1: torch.export.Dim("length", min=2, max=12)}
    inputs = {"input_ids": random_ids(3, 9), "attention_mask": padding(3, 9, "left")}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    for batch, length, side in [(3, 9, "right"), (5, 12, "left"), (2, 7, "hole")]:
        ids, mask = random_ids(batch, length), padding(batch, length, side)
        outputs = exported(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
