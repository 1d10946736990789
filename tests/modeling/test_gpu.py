"""A GPU computes what the CPU does: outputs, gradients and generated tokens of every variant. Skipped without one."""

import pytest
import torch
from variants import CAUSAL_VARIANTS, SINKHORN_VARIANTS, VARIANTS, causal_model, config_of, model_of, name_of, padding

LENGTH = 61  # with blocks of 4 of which the last has one token
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
FIELDS = [pytest.param((variant, False), id=name_of(variant)) for variant in VARIANTS + SINKHORN_VARIANTS] + [
    pytest.param((variant, True), id=f"{name}-causal") for name, variant in CAUSAL_VARIANTS.items()
]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU")


def outputs_and_gradients(model, device, dtype, ids, mask):
    """Hidden states of valid tokens, and the gradients of a fixed random sum of them."""
    model = model.to(device, dtype)
    model.zero_grad()
    mask = None if mask is None else mask.to(device)
    hidden = model(ids.to(device), attention_mask=mask).last_hidden_state.cpu()
    if mask is not None:
        hidden = hidden * mask.cpu()[..., None]
    probe = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (hidden * probe).sum().backward()
    grads = {name: p.grad.double().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"outputs": hidden.detach().double()} | grads


@pytest.mark.parametrize("fields", FIELDS)
def test_outputs_and_gradients_are_those_of_the_cpu(fields):
    variant, is_causal = fields
    model = model_of(config_of(variant, is_causal=is_causal, max_position_embeddings=LENGTH), scale=0.2)
    ids = torch.randint(3, 40, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    for side in ("none", "left", "hole"):
        mask = padding(3, LENGTH, side)
        expected = outputs_and_gradients(model, "cpu", torch.float64, ids, mask)
        for dtype, tolerance in TOLERANCE.items():
            found = outputs_and_gradients(model, "cuda", dtype, ids, mask)
            assert found.keys() == expected.keys()
            floor = max(1, *(x.abs().max() / 10 for x in expected.values()))
            for name, tensor in expected.items():
                error, scale = (found[name] - tensor).abs().max(), max(floor, tensor.abs().max())
                assert error <= tolerance * scale, f"{name}, {side}, {dtype}: {error} at scale {scale}"


@pytest.mark.parametrize("name", CAUSAL_VARIANTS)
@torch.no_grad()
def test_generates_what_the_cpu_does(name):
    model = causal_model(name).double()
    ids = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = padding(3, 9, "left")
    written = [
        model.to(device).generate(ids.to(device), attention_mask=mask.to(device), max_new_tokens=14, do_sample=False)
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(written[0], written[1].cpu())


@pytest.mark.parametrize("variant", [["dense"], ["random", "dot_product"], {}, {"sort_top_k": 2}], ids=name_of)
def test_trains_in_bfloat16_near_float32(variant):
    """A step under autocast: its loss and its gradients are near those of float32."""
    model = model_of(config_of(variant, max_position_embeddings=64), "ForMaskedLM", scale=0.1).cuda()
    ids = torch.randint(3, 40, (4, 64), generator=torch.Generator().manual_seed(0)).cuda()
    grads = []
    for is_autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=is_autocast):
            loss = model(ids, labels=ids).loss
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    cosine = torch.nn.functional.cosine_similarity(*grads, dim=0)
    assert cosine > 0.99, cosine
