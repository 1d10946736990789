"""How the tests compare two forms of an attention: outputs and every gradient."""

import torch
from variants import padding, random_ids

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def eager(attention, x, mask):
    attention.config._attn_implementation = "eager"
    return attention(x, mask)[0]


def sdpa(attention, x, mask):
    attention.config._attn_implementation = "sdpa"
    return attention(x, mask)[0]


def gradients(form, attention, x, mask):
    """Outputs of one form of attention, and the gradients of a fixed random sum of them, of inputs and parameters."""
    attention.zero_grad()
    x = x.clone().requires_grad_()
    outputs = form(attention, x, mask)
    probe = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=outputs.dtype)
    (outputs * probe).sum().backward()
    return outputs.detach(), x.grad, {name: p.grad for name, p in attention.named_parameters()}


def assert_same_without_gradients(model):
    """A model's outputs for a few tokens, padded on either side, are the same where no gradient is wanted."""
    ids = random_ids(3, 11)
    for side in ("none", "left", "right", "hole"):
        mask = padding(3, 11, side)
        expected = model(ids, attention_mask=mask).last_hidden_state
        with torch.no_grad():
            actual = model(ids, attention_mask=mask).last_hidden_state
        valid = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(actual[valid], expected[valid], atol=1e-12, rtol=1e-10)


def assert_same(actual, expected, tolerance):
    """Outputs and gradients differ by at most `tolerance`, relative to their tensor or a tenth of the largest one."""
    outputs, x_grad, grads = actual
    expected = {"outputs": expected[0], "inputs": expected[1]} | expected[2]
    floor = max(1, *(reference.abs().max() / 10 for reference in expected.values()))
    for name, tensor in ({"outputs": outputs, "inputs": x_grad} | grads).items():
        assert tensor is not None, f"{name} got no gradient"
        error, scale = (tensor - expected[name]).abs().max(), max(floor, expected[name].abs().max())
        assert error <= tolerance * scale, f"{name}: {error} at scale {scale}"
