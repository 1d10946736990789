"""What Sinkhorn models return and draw beside their hidden states: sort matrices, residuals and noise."""

import pytest
import torch
import transformers
from variants import config_of, model_of, padding, random_ids, randomize, tiny_sinkhorn_config

from synkhorn import SinkhornModel
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES


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


def test_noise_is_drawn_in_training_by_the_sort_only():
    for variant, is_noisy in (({}, True), ({"sort_net": "none"}, False), ({"gumbel_noise": False}, False)):
        model, ids = model_of(config_of(variant)).train(), random_ids(2, 13)
        assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state) != is_noisy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("variant", "is_causal"),
    [
        ({}, False),
        ({"sort_net": "mlp", "combine": "sum"}, True),
        ({"sort_net": "bilinear", "combine": "logits", "mix_dot_product": True}, False),
        ({"causal_balancing": "sinkhorn", "block_pooling": "sum"}, True),
        ({"sortcut_blocks": 2}, False),
    ],
    ids=str,
)
def test_huge_sort_logits_stay_finite(variant, is_causal, dtype):
    model = model_of(config_of(variant, is_causal=is_causal)).train()
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
