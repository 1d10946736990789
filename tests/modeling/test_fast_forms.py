"""What the fast forms promise beside their values: precision, memory, large logits, and no state."""

import copy
from unittest.mock import Mock

import pytest
import torch
from comparison import assert_same, eager, gradients, rows_of, sdpa
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from variants import (
    SYNTHESIZERS,
    attention_of,
    config_of,
    model_of,
    name_of,
    padding,
    random_ids,
    randomize,
    tiny_config,
)

import synkhorn
from synkhorn.modeling import modeling_synthesizer
from synkhorn.modeling.modeling_heads import pool
from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention
from synkhorn.modeling.softmax_attention import masked_softmax
from synkhorn.modeling.synthesizer_kernels import tiled_attention


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        for tensor in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return outputs


@pytest.mark.parametrize("variant", [["dense", "dot_product", "factorized_random"], ["factorized_dense"]], ids=name_of)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_no_matrix_of_length_by_length_is_built(variant, is_causal):
    length = 800
    attention = SynthesizerAttention(tiny_config(variant, is_causal=is_causal, max_position_embeddings=length), 0)
    x, mask = torch.randn(1, length, 18, requires_grad=True), torch.ones(1, length, dtype=torch.bool)
    mask[:, -7:] = False
    for form, builds in ((sdpa, False), (eager, True)):
        for given in (None, mask):
            with LargestTensor() as largest:
                form(attention, x, given).sum().backward()
            assert (largest.elements >= length**2) == builds


def test_the_matrix_of_random_is_shared_by_the_batch():
    attention = SynthesizerAttention(tiny_config(["random"], max_position_embeddings=300), 0)
    x, mask = torch.randn(50, 300, 18, requires_grad=True), torch.ones(50, 300, dtype=torch.bool)
    mask[::2, 200:] = False
    with LargestTensor() as largest:
        sdpa(attention, x, mask).sum().backward()
    assert largest.elements < 2 * 50 * 300 * 18 < 50 * 300**2


@pytest.mark.parametrize("variant", [["random", "dot_product"], ["factorized_dense"], ["random"]], ids=name_of)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_short_rows_are_written_out(variant, is_causal, monkeypatch):
    attention = SynthesizerAttention(tiny_config(variant, is_causal=is_causal, max_position_embeddings=300), 0)
    randomize(attention)
    x, mask = torch.randn(5, 300, 18), torch.arange(300) < torch.tensor([300, 9, 41, 100, 7])[:, None]
    tiled = gradients(sdpa, attention, x, mask)
    monkeypatch.setattr(modeling_synthesizer, "tiled_attention", in_tiles := Mock(wraps=tiled_attention))
    monkeypatch.setattr(modeling_synthesizer, "WRITTEN_AT_MOST", 5 * attention.config.num_attention_heads * 300**2)
    assert_same(gradients(sdpa, attention, x, mask), tiled, 1e-5)
    # weights that all rows share are no loop over rows
    assert in_tiles.called == (variant == ["random"])
    monkeypatch.setattr(modeling_synthesizer, "WRITTEN_AT_MOST", 5 * attention.config.num_attention_heads * 300**2 - 1)
    gradients(sdpa, attention, x, mask)
    assert in_tiles.called


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_is_taken_in_float32(dtype):
    matrix = torch.randn(2, 30, 30).to(dtype)
    expected = matrix.float().softmax(-1)
    assert masked_softmax(matrix[None], None, False).dtype == torch.float32
    torch.testing.assert_close(masked_softmax(matrix[None], None, False)[0], expected)


@pytest.mark.parametrize("length", [7, 300, 4095])
def test_pooling_is_exact_in_half_precision(length):
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            ones = torch.ones(1, length, 4, dtype=dtype)
            pooled = pool(ones, rows_of(ones), "mean")
            assert pooled[0].tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize(
    "variant",
    [["random", "dot_product"], ["factorized_dense", "dense"], ["random"], ["dense"], {}, {"is_causal": True},
     {"combine": "sum", "sorted_blocks": 2}],
    ids=name_of,
)  # fmt: skip
def test_gradients_under_autocast_are_those_of_eager(variant):
    attention = attention_of(config_of(variant)).float()
    x, mask = torch.randn(3, 11, 18), padding(3, 11, "right").bool()
    grads = {}
    for form in (eager, sdpa):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = form(attention, x, mask)
        outputs.float().square().sum().backward()
        grads[form.__name__] = {name: p.grad for name, p in attention.named_parameters()}
    largest = max(grad.abs().max() for grad in grads["eager"].values())
    for name, expected in grads["eager"].items():
        most = 0.06 * expected.abs().max() + 0.002 * largest
        assert (grads["sdpa"][name] - expected).abs().max() <= most, name


@torch.no_grad()
def test_no_weights_are_kept_between_evaluations():
    model = randomize(synkhorn.SynthesizerModel(tiny_config(["random", "fixed_random"]))).eval()
    ids, members = random_ids(2, 11), model.layers[0].attention.members

    def fused_step():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        with torch.enable_grad():
            model(ids).last_hidden_state.square().sum().backward()
        optimizer.step()

    def average():
        for parameter in model.parameters():
            parameter.data.lerp_(torch.randn_like(parameter), 0.5)

    def write_through_numpy():
        members["fixed_random"].weight.numpy()[:] *= 2.0

    def write_to_the_state():
        model.state_dict()["layers.0.attention.members.random.weight"].mul_(0.5)

    before = model(ids).last_hidden_state
    for change in (fused_step, average, write_through_numpy, write_to_the_state):
        change()
        outputs = model(ids).last_hidden_state
        assert (outputs - before).abs().max() > 1e-3
        model.set_attn_implementation("eager")
        torch.testing.assert_close(outputs, model(ids).last_hidden_state, atol=1e-5, rtol=1e-5)
        model.set_attn_implementation("sdpa")
        before = outputs
    for seed in range(3):
        # parameters that are freed, so that the next ones take their place in memory
        other = {name: p.clone() for name, p in randomize(copy.deepcopy(model), seed).state_dict().items()}
        outputs = torch.func.functional_call(model, other, (ids,)).last_hidden_state
        expected = copy.deepcopy(model)
        expected.load_state_dict(other)
        assert torch.equal(outputs, expected(ids).last_hidden_state)


def spread_logits(attention, size: float) -> None:
    """Parameters of members such that logits spread by about `size`, or, where it is negative, are all exactly that."""
    heads, head_dim = attention.config.num_attention_heads, attention.config.head_dim
    for member in getattr(attention, "members", {"": attention}).values():
        for name, tensor in [*member.named_parameters(recurse=False), *member.named_buffers(recurse=False)]:
            tensor.data *= 1.0 if size < 0 else size if name in ("weight", "query_weight", "fast_weight") else 1.0
            if size < 0:
                ones = name in ("query_weight", "slow_bias")
                rank = tensor.shape[-1] if name in ("query_weight", "key_weight") else 1
                zero = name in ("slow_weight", "fast_weight") or (name == "weight" and hasattr(member, "input"))
                tensor.data.fill_(0.0 if zero else 1.0 / rank if ones else size)
        if hasattr(member, "key") and size < 0:
            for projection in (member.query, member.key):
                projection.weight.data.zero_()
            member.query.bias.data.copy_(torch.eye(head_dim)[0].repeat(heads) * head_dim**0.5)
            member.key.bias.data.copy_(torch.eye(head_dim)[0].repeat(heads) * size)
        elif hasattr(member, "query"):
            member.query.weight.data *= size


@pytest.mark.parametrize("size", [100.0, -30000.0])
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    "variant",
    [*([name] for name in SYNTHESIZERS), {"combine": "sum", "sort_net": "none"}, {"combine": "sum"}, {}],
    ids=name_of,
)
def test_large_logits_are_those_of_eager(variant, is_causal, size):
    attention = attention_of(config_of(variant, is_causal=is_causal))
    spread_logits(attention, size)
    x, mask = torch.randn(3, 13, 18, dtype=torch.float64), padding(3, 13, "hole").bool()
    expected = gradients(eager, attention, x, mask)
    assert_same(gradients(sdpa, attention, x, mask), expected, 1e-9)
    with torch.no_grad():
        torch.testing.assert_close(sdpa(attention, x, mask), expected[0], atol=1e-9, rtol=1e-9)
        is_sorted = isinstance(variant, dict) and "sort_net" not in variant
        if variant in (["random"], ["fixed_random"]) or (size < 0 and not is_sorted):
            # logits that no product rounds
            single = sdpa(attention.float(), x.float(), mask)
            torch.testing.assert_close(single, expected[0].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("precision", ["float16", "autocast"])
def test_features_whose_sum_float16_cannot_hold(precision, is_causal):
    """Members of 40,000, 40,000 and -40,000: their sum and each of them fit, two of them together do not."""
    config = tiny_config(["dot_product", "dense", "random"], is_causal=is_causal, mixture_weighting="sum")
    attention = randomize(SynthesizerAttention(config, 0)).eval()
    dot_product, dense = attention.members["dot_product"], attention.members["dense"]
    with torch.no_grad():
        for projection in (dot_product.query, dot_product.key):
            projection.weight[::6] = 0.0
            projection.bias[::6] = 200.0 * 6**0.25
        dense.input.weight[::5], dense.input.bias[::5], dense.weight[:, :, 0], dense.bias[:] = 0.0, 200.0, 200.0, -4e4
        attention.members["random"].weight -= 4e4
    x, mask = torch.randn(3, 13, 18), padding(3, 13, "hole").bool()
    if precision == "float16":
        attention, x = attention.half(), x.half()
    expected = eager(copy.deepcopy(attention).double(), x.double(), mask)
    with torch.autocast("cpu", torch.float16, enabled=precision == "autocast"):
        # whose products of 40,000 are rounded by up to 16
        assert eager(attention, x, mask).isfinite().all()
        outputs, *grads = gradients(sdpa, attention, x, mask)
    torch.testing.assert_close(outputs.double(), expected, atol=0.1, rtol=0.0)
    assert all(grad.isfinite().all() for grad in (grads[0], *grads[1].values()))


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16", "autocast"])
def test_shared_weights_stay_positive_where_padding_hides_the_larger_ones(precision):
    """Kept logits 200 below the row's largest: no 0 / 0, in any precision."""
    model = randomize(synkhorn.SynthesizerModel(tiny_config(["random"])))
    for layer in model.layers:
        layer.attention.members["random"].weight.data[:, :, 5:] += 200.0
    model = model.to(torch.float32 if precision == "autocast" else getattr(torch, precision)).eval()
    ids, mask = random_ids(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.autocast("cpu", torch.float16, enabled=precision == "autocast"):
        outputs = model(ids, attention_mask=mask).last_hidden_state
    assert outputs.isfinite().all()
    outputs[mask.bool()].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", [["factorized_random", "random"], ["random"]])
def test_gradients_of_shared_weights_in_half_precision(variant, dtype):
    attention = randomize(SynthesizerAttention(tiny_config(variant, attn_implementation="sdpa"), 0)).to(dtype)
    exact = copy.deepcopy(attention).double()
    x, mask = torch.randn(3, 11, 18, dtype=dtype), padding(3, 11, "right").bool()
    for module, states in ((attention, x), (exact, x.double())):
        sdpa(module, states, mask).sum().backward()
    for (name, half), full in zip(attention.named_parameters(), exact.parameters(), strict=True):
        assert (half.grad - full.grad).abs().max() <= 0.05 * full.grad.abs().max().clamp(min=1), name


@pytest.mark.parametrize(
    ("variant", "is_causal"),
    [(["factorized_random", "dense", "dot_product"], True), ({"sinkhorn_iterations": 1}, False)],
)
@torch.no_grad()
def test_two_compilations_serve_every_length(variant, is_causal):
    config = config_of(variant, is_causal=is_causal, max_position_embeddings=29, num_hidden_layers=1, use_cache=False)
    torch._dynamo.reset()
    model = model_of(config)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    # Sinkhorn compiles once for lengths of whole blocks, and once for the others
    for length in (9, 12, 13, 20):
        ids, mask = random_ids(3, length), padding(3, length, "left")
        expected = model(ids, attention_mask=mask).last_hidden_state
        actual = compiled(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
        counts.append(counter.frame_count)
    assert counts[1] == counts[-1]
