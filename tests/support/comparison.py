"""How the tests compare two forms of an attention: outputs and every gradient."""

import torch
from sinkhorn_loop import loop_attention as sinkhorn_loop
from synthesizer_loop import loop_attention as synthesizer_loop

from synkhorn.modeling.rows import Rows

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LOOPS = {"sinkhorn": sinkhorn_loop, "synthesizer": synthesizer_loop}


def rows_of(x: torch.Tensor, mask: torch.Tensor | None = None) -> Rows:
    return Rows.whole(x.shape[:2], x.device) if mask is None else Rows.padded(mask)


def attend(attention, x, mask=None):
    """(B, L, d) inputs of an attention, and a boolean mask -> (B, L, d), 0 at masked tokens."""
    rows = rows_of(x, mask)
    return rows.scatter(attention(rows.gather(x), rows)[0])


def eager(attention, x, mask=None):
    attention.config._attn_implementation = "eager"
    return attend(attention, x, mask)


def sdpa(attention, x, mask=None):
    attention.config._attn_implementation = "sdpa"
    return attend(attention, x, mask)


def loop(attention, x, mask=None):
    """The loop from the paper, row by row on the valid tokens."""
    outputs = torch.zeros_like(x)
    for row in range(len(x)):
        valid = slice(None) if mask is None else mask[row]
        outputs[row, valid] = LOOPS[attention.config.model_type](attention, x[row, valid])
    return outputs


def gradients(form, attention, x, mask=None):
    """
    Outputs of one form of attention, and the gradients of a fixed random sum of them, of inputs and parameters; 0 for
    what it did not come upon.
    """
    attention.zero_grad()
    x = x.clone().requires_grad_()
    outputs = form(attention, x, mask)
    probe = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=outputs.dtype)
    (outputs * probe).sum().backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in attention.named_parameters()}
    return outputs.detach(), x.grad, grads


def assert_same(actual, expected, tolerance):
    """Outputs and gradients differ by at most `tolerance`, relative to their tensor or a tenth of the largest one."""
    outputs, x_grad, grads = actual
    expected = {"outputs": expected[0], "inputs": expected[1]} | expected[2]
    floor = max(1, *(reference.abs().max() / 10 for reference in expected.values()))
    for name, tensor in ({"outputs": outputs, "inputs": x_grad} | grads).items():
        error, scale = (tensor - expected[name]).abs().max(), max(floor, expected[name].abs().max())
        assert error <= tolerance * scale, f"{name}: {error} at scale {scale}"
