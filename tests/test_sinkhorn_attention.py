"""Eager against sdpa against a loop written from the paper, in values and in every gradient."""

import copy
import math

import pytest
import torch
import transformers
from comparison import TOLERANCE, assert_same, assert_same_without_gradients, eager, gradients, sdpa
from sinkhorn_loop import loop_attention
from variants import SINKHORN_VARIANTS, name_of, padding, random_ids, randomize, tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SinkhornModel
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES
from synkhorn.modeling.modeling_sinkhorn import SinkhornAttention

# a variant and whether it is causal; SortCut is bidirectional only
CASES = [
    pytest.param(variant, is_causal, id=f"{name_of(variant)}-{'causal' if is_causal else 'bidirectional'}")
    for variant in SINKHORN_VARIANTS
    for is_causal in (False, True)
    if not (is_causal and "sortcut_blocks" in variant)
]
every_case = pytest.mark.parametrize(("variant", "is_causal"), CASES)
causal_variants = pytest.mark.parametrize(
    "variant", [variant for variant in SINKHORN_VARIANTS if "sortcut_blocks" not in variant], ids=name_of
)


def boolean_padding(batch, length, side):
    mask = padding(batch, length, side)
    return None if mask is None else mask.bool()


def compare_forms(attention, x, mask, tolerance):
    assert_same(gradients(sdpa, attention, x, mask), gradients(eager, attention, x, mask), tolerance)


@every_case
def test_eager_and_sdpa_equal_the_loop(variant, is_causal):
    attention = randomize(SinkhornAttention(tiny_sinkhorn_config(is_causal=is_causal, **variant), 0)).double().eval()
    for length, side in [(1, "none"), (4, "none"), (11, "right"), (13, "none"), (13, "hole")]:
        x = torch.randn(2, length, 18, dtype=torch.float64)
        mask = boolean_padding(2, length, side)
        if side == "hole":
            mask[1, 4:8] = False  # a whole block
        expected = gradients(loop_attention, attention, x, mask)
        zeros = {name: torch.zeros_like(p) for name, p in attention.named_parameters()}
        reached = {name: grad for name, grad in expected[2].items() if grad is not None}
        expected = (*expected[:2], zeros | reached)
        for form in (eager, sdpa):
            assert_same(gradients(form, attention, x, mask), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@every_case
def test_sdpa_equals_eager_at_every_length(variant, is_causal, dtype):
    config = tiny_sinkhorn_config(is_causal=is_causal, **variant)
    attention = randomize(SinkhornAttention(config, 0)).to(dtype).eval()
    for length in (*range(1, 10), 13):
        for side in ("none", "right", "hole"):
            x = torch.randn(3, length, 18, dtype=dtype)
            compare_forms(attention, x, boolean_padding(3, length, side), TOLERANCE[dtype])


@every_case
def test_the_same_comes_out_where_no_gradient_is_wanted(variant, is_causal):
    model = SinkhornModel(tiny_sinkhorn_config(**variant, is_causal=is_causal))
    assert_same_without_gradients(randomize(model.double()).eval())


@pytest.mark.parametrize("position", ["learned", "rope"])
@every_case
def test_a_row_alone_equals_itself_in_a_padded_batch(variant, is_causal, position):
    config = tiny_sinkhorn_config(is_causal=is_causal, position_embedding_type=position, **variant)
    model = randomize(SinkhornModel(config)).eval()
    ids = random_ids(3, 11)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for side in ("left", "right"):
            mask = padding(3, 11, side)
            batch = model(ids, attention_mask=mask, output_attentions=True)
            for row in range(3):
                valid = mask[row].bool()
                alone = model(ids[row : row + 1, valid], output_attentions=True)
                actual = batch.last_hidden_state[row, valid]
                torch.testing.assert_close(actual, alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)
                for matrices, own in zip(batch.sort_matrices, alone.sort_matrices, strict=True):
                    n = own.shape[-1]
                    torch.testing.assert_close(matrices[row, :, :n, :n], own[0], atol=1e-5, rtol=1e-5)
                    assert matrices[row, :, n:].abs().sum() == 0 and matrices[row, :, :, n:].abs().sum() == 0


@pytest.mark.parametrize("side", ["left", "right", "hole"])
@every_case
def test_the_content_of_padding_never_matters(variant, is_causal, side):
    mask = padding(3, 11, side)
    # without a norm the attention reads what is padded as large as it is
    model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=is_causal, norm_first=False, **variant))).eval()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        embeds = torch.randn(3, 11, 18, requires_grad=True)
        outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        other = embeds.detach() + 1e6 * torch.randn(3, 11, 18) * (1 - mask)[..., None]
        changed = model(inputs_embeds=other, attention_mask=mask).last_hidden_state
        valid = mask.bool()
        torch.testing.assert_close(changed[valid], outputs[valid], atol=1e-6, rtol=1e-6)
        outputs[valid].square().sum().backward()
        assert embeds.grad[~valid].abs().max() == 0


@causal_variants
def test_causality_is_exact(variant):
    for implementation in ("eager", "sdpa"):
        model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=True, **variant))).eval()
        model.set_attn_implementation(implementation)
        for mask in (None, padding(2, 13, "left"), padding(2, 13, "right"), padding(2, 13, "hole")):
            for position in range(13):
                embeds = torch.randn(2, 13, 18, requires_grad=True)
                outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, position]
                valid = slice(None) if mask is None else mask[:, position].bool()
                outputs[valid].square().sum().backward()
                assert embeds.grad[:, position + 1 :].abs().sum() == 0
                assert embeds.grad[0, position].abs().sum() > 0
                if variant.get("sort_net") != "none" and position >= 4:
                    # the past beyond the own block is read
                    assert embeds.grad[0, : position - position % 4].abs().sum() > 0


def test_a_bidirectional_model_reads_every_token():
    model = randomize(SinkhornModel(tiny_sinkhorn_config())).eval()
    embeds = torch.randn(1, 13, 18, requires_grad=True)
    model(inputs_embeds=embeds).last_hidden_state[:, 0].square().sum().backward()
    assert embeds.grad.abs().sum(-1).min() > 0


@every_case
def test_attentions_are_the_effective_weights(variant, is_causal):
    """`attentions @ V` is the heads' output, in the frame of the caller's tokens."""
    config = tiny_sinkhorn_config(num_hidden_layers=1, attn_implementation="eager", is_causal=is_causal, **variant)
    model = randomize(SinkhornModel(config)).eval()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    captured = {}
    attention = model.layers[0].attention
    attention.output.register_forward_pre_hook(lambda module, args: captured.update(heads=args[0]))
    attention.value.register_forward_hook(lambda module, args, output: captured.update(values=output))
    (weights,) = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert weights.shape == (3, 3, 11, 11)
    assert (weights * (1 - mask)[:, None, None, :]).abs().max() == 0
    for row in range(3):
        pads = 11 - int(mask[row].sum())
        values = captured["values"][row, : 11 - pads].view(-1, 3, 6).transpose(0, 1)
        expected = captured["heads"][row, : 11 - pads].view(-1, 3, 6).transpose(0, 1)
        valid = weights[row, :, pads:, pads:]
        torch.testing.assert_close(valid @ values, expected, atol=1e-5, rtol=1e-5)
        sums = valid.sum(-1)
        if variant.get("combine") != "sum" and "mix_dot_product" not in variant:
            torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("auto", AUTO_CLASSES)
def test_every_head_returns_what_its_base_model_recorded(auto):
    model = getattr(transformers, auto).from_config(tiny_sinkhorn_config())
    ids = random_ids(2, 13)[:, None].repeat(1, 2, 1) if auto == "AutoModelForMultipleChoice" else random_ids(2, 13)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs = model.eval()(ids, output_attentions=True, output_hidden_states=True)
        rows = ids.flatten(0, -2)
        base = getattr(model, "model", model)(rows, output_attentions=True, output_hidden_states=True)
        for name in ("hidden_states", "attentions", "sort_matrices"):
            assert len(outputs[name]) == len(base[name])
            assert all(torch.equal(*pair) for pair in zip(outputs[name], base[name], strict=True))
        assert [matrices.shape for matrices in outputs.sort_matrices] == [(len(rows), 3, 4, 4)] * 2
        assert "sort_matrices" not in model(ids)


def test_sort_matrices_are_in_the_outputs_of_either_form():
    config = tiny_sinkhorn_config(num_hidden_layers=3, causal_balancing="sinkhorn")
    model = randomize(SinkhornModel(config)).eval()
    ids, mask = random_ids(2, 13), padding(2, 13, "left")
    plain = model(ids, attention_mask=mask)
    assert "sort_matrices" not in plain and "attentions" not in plain
    recorded = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs = model(ids, attention_mask=mask, output_attentions=True)
        assert [matrices.shape for matrices in outputs.sort_matrices] == [(2, 3, 4, 4)] * 3
        assert len(outputs.attentions) == (3 if implementation == "eager" else 0)
        assert outputs.to_tuple()[-1] is outputs.sort_residuals
        recorded.append(torch.stack(outputs.sort_matrices))
    torch.testing.assert_close(*recorded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(recorded[0].sum(-1)[:, 0], torch.ones(3, 3, 4))
    assert (recorded[0][:, 0, 0] - recorded[0][:, 0, 1]).abs().max() > 0.01
    shared = randomize(SinkhornModel(tiny_sinkhorn_config(share_sort_net=True))).eval()
    matrices = shared(ids, output_attentions=True).sort_matrices[0]
    assert torch.equal(matrices[:, 0], matrices[:, 2])


def test_residuals_are_those_of_the_columns_that_take_part():
    ids, mask = random_ids(4, 13), torch.ones(4, 13, dtype=torch.bool)
    mask[1, 9:], mask[2, 4:8], mask[3, 1:] = False, False, False
    blocks = [[0, 1, 2, 3], [0, 1, 2], [0, 2, 3], [0]]
    model = randomize(SinkhornModel(tiny_sinkhorn_config(sinkhorn_iterations=1))).eval()
    outputs = model(ids, attention_mask=mask, output_attentions=True)
    for matrices, residuals in zip(outputs.sort_matrices, outputs.sort_residuals, strict=True):
        assert residuals.shape == (4, 3) and not residuals.requires_grad
        for row, taking_part in enumerate(blocks):
            sums = matrices[row][:, taking_part][..., taking_part].sum(1)  # (H, blocks)
            torch.testing.assert_close(residuals[row], (sums - 1).abs().max(-1).values)
        assert residuals[:3].min() > 1e-3
    # nothing balances the columns of a causal sort
    causal = SinkhornModel(tiny_sinkhorn_config(is_causal=True)).eval()(ids, output_attentions=True)
    assert len(causal.sort_matrices) == 2 and causal.sort_residuals == ()


@every_case
def test_noise_is_drawn_in_training_only(variant, is_causal):
    model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=is_causal, **variant)))
    ids = random_ids(2, 13)
    model.eval()
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.train()
    is_noisy = not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    assert is_noisy == (variant.get("sort_net") != "none")
    model.config.gumbel_noise = False
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("variant", SINKHORN_VARIANTS[::2], ids=name_of)
def test_attention_dropout_is_exact_for_each_row_of_the_batch(variant):
    """The mean over many draws of the dropped outputs is the undropped output, and rows draw on their own."""
    config = tiny_sinkhorn_config(attention_dropout=0.5, gumbel_noise=False, **variant)
    attention = randomize(SinkhornAttention(config, 0))
    x = torch.randn(1, 6, 18).expand(4000, -1, -1)
    for implementation in ("eager", "sdpa"):
        attention.config._attn_implementation = implementation
        dropped = attention.train()(x)[0]
        assert dropped.std(0).min() > 0.01
        full = attention.eval()(x[:1])[0][0]
        error = (dropped.mean(0) - full).abs() / dropped.std(0) * math.sqrt(len(x))
        assert error.max() < 5


@every_case
def test_half_precision_is_finite_and_close(variant, is_causal):
    model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=is_causal, **variant))).eval()
    ids, mask = random_ids(4, 13), padding(4, 13, "left")
    mask[2] = 0  # a row of nothing but padding
    mask[3, 4:8] = 0  # a block of nothing but padding
    valid = mask.bool()
    exact = model(ids, attention_mask=mask).last_hidden_state
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(model).to(dtype)
        for implementation in ("eager", "sdpa"):
            half.set_attn_implementation(implementation)
            half.zero_grad()
            outputs = half(ids, attention_mask=mask).last_hidden_state
            assert outputs.dtype == dtype and outputs.isfinite().all()
            assert (outputs[valid].float() - exact[valid]).abs().mean() < 0.1
            outputs.float().square().sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in half.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, attention_mask=mask).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("variant", "is_causal"), [case for case in CASES if case.values[0].get("sort_net") != "none"])
def test_huge_sort_logits_stay_finite(variant, is_causal, dtype):
    model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=is_causal, **variant)))
    for layer in model.layers:
        for parameter in layer.attention.sort.net.parameters():
            # where two weights are multiplied, the gradient of one is in the size of the other
            parameter.data *= 1e4 if variant.get("sort_net", "linear") == "linear" else 1e2
    model = model.to(dtype)
    ids, mask = random_ids(4, 13), padding(4, 13, "right")
    mask[2] = 0
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for arguments in ({}, {"attention_mask": mask}):
            model.zero_grad()
            outputs = model(ids, **arguments).last_hidden_state
            outputs.float().square().sum().backward()
            assert outputs.isfinite().all()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_case
def test_compiles_without_graph_breaks(variant, is_causal):
    torch._dynamo.reset()
    config = tiny_sinkhorn_config(is_causal=is_causal, num_hidden_layers=1, **variant)
    model = randomize(SinkhornModel(config)).eval()
    arguments = {"attention_mask": padding(3, 9, "left"), "output_attentions": True}
    # first without compilation, because Transformers installs its recording hooks then, under a lock
    expected = model(random_ids(3, 9), **arguments)
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(random_ids(3, 9), **arguments)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.sort_matrices, expected.sort_matrices, atol=1e-5, rtol=1e-5)


@causal_variants
def test_generates_what_the_full_forward_says(variant):
    model = randomize(SinkhornForCausalLM(tiny_sinkhorn_config(eos_token_id=None, **variant))).eval()
    ids, mask = random_ids(3, 5), padding(3, 5, "left")
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert generated.shape == (3, 13)
    for row in range(3):
        tokens = ids[row, mask[row].bool()]
        for _ in range(8):
            tokens = torch.cat((tokens, model(tokens[None]).logits[0, -1:].argmax(-1)))
        assert generated[row, -8:].tolist() == tokens[-8:].tolist()
