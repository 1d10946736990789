"""Eager against sdpa against a loop written from the paper, in values and in every gradient."""

import copy
import math
from itertools import product

import pytest
import torch
from comparison import TOLERANCE, assert_same, assert_same_without_gradients, eager, gradients, sdpa
from synthesizer_loop import loop_attention
from variants import VARIANTS, name_of, padding, random_ids, randomize, tiny_config

from synkhorn import SynthesizerForCausalLM, SynthesizerModel
from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention

pytestmark = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


def valid_tokens(batch, length, side):
    mask = padding(batch, length, side)
    return None if mask is None else mask.bool()


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_eager_and_sdpa_equal_the_loop(variant, is_causal):
    for weighting, length, side in [("softmax", 1, "none"), ("softmax", 7, "right"), ("sum", 13, "hole")]:
        config = tiny_config(variant, is_causal=is_causal, mixture_weighting=weighting)
        attention = randomize(SynthesizerAttention(config, 0).double())
        x, mask = torch.randn(2, length, 18, dtype=torch.float64), valid_tokens(2, length, side)
        expected = gradients(loop_attention, attention, x, mask)
        assert_same(gradients(eager, attention, x, mask), expected, 1e-10)
        assert_same(gradients(sdpa, attention, x, mask), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_sdpa_equals_eager_at_every_length(variant, is_causal, dtype):
    attention = randomize(SynthesizerAttention(tiny_config(variant, is_causal=is_causal), 0).to(dtype))
    for length, side in product(range(1, 14), ("none", "right", "hole")):
        x, mask = torch.randn(3, length, 18, dtype=dtype), valid_tokens(3, length, side)
        expected = gradients(eager, attention, x, mask)
        assert_same(gradients(sdpa, attention, x, mask), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_sdpa_equals_eager_across_blocks_of_rows(variant, is_causal):
    """Lengths beyond one block of `blocked_attention`, and beyond one tile of the fused kernels."""
    config = tiny_config(variant, is_causal=is_causal, max_position_embeddings=211)
    attention = randomize(SynthesizerAttention(config, 0).double())
    x = torch.randn(2, 197, 18, dtype=torch.float64)
    for side in ("none", "right", "hole"):
        mask = valid_tokens(2, 197, side)
        assert_same(gradients(sdpa, attention, x, mask), gradients(eager, attention, x, mask), 1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_the_same_comes_out_where_no_gradient_is_wanted(variant, is_causal):
    model = SynthesizerModel(tiny_config(variant, is_causal=is_causal))
    assert_same_without_gradients(randomize(model.double()).eval())


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_sdpa_equals_eager_through_the_model_with_left_padding(variant, is_causal):
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=is_causal)).double())
    mask = valid_tokens(3, 11, "left")

    def form(implementation):
        def forward(model, embeds, mask):
            model.set_attn_implementation(implementation)
            return model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[mask]

        return forward

    model.embeddings.word_embeddings.requires_grad_(False)
    embeds = torch.randn(3, 11, 18, dtype=torch.float64)
    expected = gradients(form("eager"), model, embeds, mask)
    actual = gradients(form("sdpa"), model, embeds, mask)
    for grads in (actual[2], expected[2]):
        grads.pop("embeddings.word_embeddings.weight")
    assert_same(actual, expected, 1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_a_row_alone_equals_itself_in_a_padded_batch(variant, is_causal):
    ids = random_ids(3, 11)
    for position in ("learned", "sinusoidal", "none", "rope"):
        if position == "rope" and "dot_product" not in variant:
            continue  # an impossible configuration
        config = tiny_config(variant, is_causal=is_causal, position_embedding_type=position)
        model = randomize(SynthesizerModel(config)).eval()
        for implementation, side in product(("eager", "sdpa"), ("left", "right")):
            model.set_attn_implementation(implementation)
            mask = padding(3, 11, side)
            batch = model(ids, attention_mask=mask).last_hidden_state
            assert batch.isfinite().all()
            for row in range(3):
                valid = mask[row].bool()
                alone = model(ids[row : row + 1, valid]).last_hidden_state[0]
                torch.testing.assert_close(batch[row, valid], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right", "hole"])
def test_the_content_of_padding_never_matters(variant, side):
    mask = padding(3, 11, side)
    for is_causal in (False, True):
        for implementation in ("eager", "sdpa"):
            # without a norm the attention reads what is padded as large as it is
            config = tiny_config(variant, is_causal=is_causal, norm_first=False)
            model = randomize(SynthesizerModel(config)).eval()
            model.set_attn_implementation(implementation)
            embeds = torch.randn(3, 11, 18, requires_grad=True)
            outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
            other = embeds.detach() + 1e6 * torch.randn(3, 11, 18) * (1 - mask)[..., None]
            changed = model(inputs_embeds=other, attention_mask=mask).last_hidden_state
            valid = mask.bool()
            torch.testing.assert_close(changed[valid], outputs[valid], atol=1e-5, rtol=1e-5)
            outputs[valid].square().sum().backward()
            assert embeds.grad[~valid].abs().max() == 0


def test_causality_is_exact(variant):
    for implementation in ("eager", "sdpa"):
        model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True))).eval()
        model.set_attn_implementation(implementation)
        for mask in (None, padding(2, 13, "left"), padding(2, 13, "right")):
            for position in range(13):
                embeds = torch.randn(2, 13, 18, requires_grad=True)
                outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, position]
                valid = slice(None) if mask is None else mask[:, position].bool()
                outputs[valid].square().sum().backward()
                assert embeds.grad[:, position + 1 :].abs().sum() == 0
                assert embeds.grad[0, : position + 1].abs().sum(-1).min() > 0


def test_attentions_are_the_effective_weights(variant):
    """`attentions @ V` is the heads' output, in the frame of the caller's tokens."""
    config = tiny_config(variant, num_hidden_layers=1, attn_implementation="eager")
    model = randomize(SynthesizerModel(config)).eval()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    captured = {}
    attention = model.layers[0].attention
    attention.output.register_forward_pre_hook(lambda module, args: captured.update(heads=args[0]))
    attention.value.register_forward_hook(lambda module, args, output: captured.update(values=output))
    outputs = model(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    (weights,) = outputs.attentions
    assert weights.shape == (3, 3, 11, 11)
    valid = mask.bool()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 11))
    assert (weights * (1 - mask)[:, None, None, :]).abs().max() == 0
    for row in range(3):
        pads = 11 - int(valid[row].sum())
        values = captured["values"][row, : 11 - pads].view(-1, 3, 6).transpose(0, 1)
        expected = captured["heads"][row, : 11 - pads].view(-1, 3, 6).transpose(0, 1)
        torch.testing.assert_close(weights[row, :, pads:, pads:] @ values, expected, atol=1e-5, rtol=1e-5)
    assert [states.shape for states in outputs.hidden_states] == [(3, 11, 18)] * 2
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)


def test_attention_dropout_is_exact_for_each_row_of_the_batch(variant):
    """The mean over many draws of the dropped outputs is the undropped output, and rows draw on their own."""
    config = tiny_config(variant, attention_dropout=0.5)
    attention = randomize(SynthesizerAttention(config, 0))
    x = torch.randn(1, 6, 18).expand(4000, -1, -1)
    for implementation in ("eager", "sdpa"):
        attention.config._attn_implementation = implementation
        dropped = attention.train()(x)[0]
        assert dropped.std(0).min() > 0.01
        full = attention.eval()(x[:1])[0][0]
        error = (dropped.mean(0) - full).abs() / dropped.std(0) * math.sqrt(len(x))
        assert error.max() < 5


def test_half_precision_is_finite_and_close(variant):
    for is_causal in (False, True):
        model = randomize(SynthesizerModel(tiny_config(variant, is_causal=is_causal))).eval()
        ids, mask = random_ids(3, 13), padding(3, 13, "left")
        mask[2] = 0  # a row of nothing but padding
        exact = model(ids, attention_mask=mask).last_hidden_state
        for dtype in (torch.bfloat16, torch.float16):
            half = copy.deepcopy(model).to(dtype)
            for implementation in ("eager", "sdpa"):
                half.set_attn_implementation(implementation)
                outputs = half(ids, attention_mask=mask).last_hidden_state
                assert outputs.dtype == dtype and outputs.isfinite().all()
                valid = mask.bool()
                assert (outputs[valid].float() - exact[valid]).abs().mean() < 0.05
        with torch.autocast("cpu", torch.bfloat16):
            assert model(ids, attention_mask=mask).last_hidden_state.isfinite().all()


def test_compiles_without_graph_breaks(variant):
    torch._dynamo.reset()
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True))).eval()
    ids, mask = random_ids(3, 9), padding(3, 9, "left")
    expected = model(ids, attention_mask=mask).last_hidden_state
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, attention_mask=mask).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_exports_with_dynamic_batch_and_length(variant):
    model = randomize(SynthesizerModel(tiny_config(variant, is_causal=True, use_cache=False))).eval()
    shape = {0: torch.export.Dim("batch", min=2, max=16), 1: torch.export.Dim("length", min=2, max=12)}
    inputs = {"input_ids": random_ids(3, 9), "attention_mask": padding(3, 9, "left")}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    for batch, length, side in [(3, 9, "right"), (5, 12, "left"), (2, 7, "hole")]:
        ids, mask = random_ids(batch, length), padding(batch, length, side)
        outputs = exported(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(outputs[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_generates_what_the_full_forward_says(variant):
    model = randomize(SynthesizerForCausalLM(tiny_config(variant, eos_token_id=None))).eval()
    for side in ("none", "left", "hole"):
        ids, mask = random_ids(3, 5), padding(3, 5, side)
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        assert generated.shape == (3, 13)
        for row in range(3):
            seen = torch.ones(5, dtype=torch.long) if mask is None else mask[row]
            first = seen.argmax()  # a row without its padding on the left
            tokens, seen = ids[row, first:], seen[first:]
            for _ in range(8):
                logits = model(tokens[None], attention_mask=seen[None]).logits[0, -1:]
                tokens, seen = torch.cat((tokens, logits.argmax(-1))), torch.cat((seen, seen.new_ones(1)))
            assert generated[row, -8:].tolist() == tokens[-8:].tolist()
