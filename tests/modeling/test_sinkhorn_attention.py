"""Every variant against a loop written from the paper, and what the properties of `test_properties*.py` leave out."""

import math

import pytest
import torch
import transformers
from comparison import assert_same, attend, eager, gradients, loop, sdpa
from variants import SINKHORN_VARIANTS, name_of, padding, random_ids, randomize, tiny_sinkhorn_config

from synkhorn import SinkhornModel
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


@every_case
def test_eager_and_sdpa_equal_the_loop(variant, is_causal):
    attention = randomize(SinkhornAttention(tiny_sinkhorn_config(is_causal=is_causal, **variant), 0)).double().eval()
    for length, side in [(1, "none"), (4, "none"), (13, "right"), (13, "hole")]:
        x, mask = torch.randn(2, length, 18, dtype=torch.float64), padding(2, length, side)
        mask = None if mask is None else mask.bool()
        expected = gradients(loop, attention, x, mask)
        for form in (eager, sdpa):
            assert_same(gradients(form, attention, x, mask), expected, 1e-10)


@causal_variants
def test_causality_is_exact(variant):
    model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=True, **variant))).eval()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for position in (0, 3, 4, 6, 12):
            embeds = torch.randn(2, 13, 18, requires_grad=True)
            model(inputs_embeds=embeds).last_hidden_state[:, position].square().sum().backward()
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
    blocks = [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2], [0]]
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
        dropped = attend(attention.train(), x)
        assert dropped.std(0).min() > 0.01
        full = attend(attention.eval(), x[:1])[0]
        error = (dropped.mean(0) - full).abs() / dropped.std(0) * math.sqrt(len(x))
        assert error.max() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
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


@pytest.mark.parametrize(("variant", "is_causal"), [CASES[1], CASES[-1]])
def test_compiles_without_graph_breaks(variant, is_causal):
    torch._dynamo.reset()
    config = tiny_sinkhorn_config(is_causal=is_causal, num_hidden_layers=1, **variant)
    model = randomize(SinkhornModel(config)).eval()
    arguments = {"attention_mask": padding(3, 9, "hole"), "output_attentions": True}
    # first without compilation, because Transformers installs its recording hooks then, under a lock
    expected = model(random_ids(3, 9), **arguments)
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(random_ids(3, 9), **arguments)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    for matrices, own in zip(actual.sort_matrices, expected.sort_matrices, strict=True):
        n = own.shape[-1]
        torch.testing.assert_close(matrices[:, :, :n, :n], own, atol=1e-5, rtol=1e-5)
