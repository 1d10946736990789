"""What the fast forms promise beside their values: precision, memory, and weights kept in evaluation."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel
from variants import name_of, padding, random_ids, randomize, tiny_config, tiny_sinkhorn_config

import synkhorn
from synkhorn.modeling.modeling_heads import pool
from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention
from synkhorn.modeling.synthesizer_attention import masked_softmax, shared_weights


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        for tensor in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return outputs


@pytest.mark.parametrize(
    "variant",
    [
        ["dot_product"],
        ["dense"],
        ["factorized_random"],
        ["factorized_dense"],
        ["dense", "dot_product", "factorized_random"],
        ["factorized_dense", "dense"],
    ],
    ids=name_of,
)
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_no_matrix_of_length_by_length_is_built(variant, is_causal):
    length = 1500
    attention = SynthesizerAttention(tiny_config(variant, is_causal=is_causal, max_position_embeddings=length), 0)
    x, mask = torch.randn(1, length, 18, requires_grad=True), torch.ones(1, length, dtype=torch.bool)
    mask[:, -7:] = False
    for implementation, builds in (("sdpa", False), ("eager", True)):
        attention.config._attn_implementation = implementation
        for given in (None, mask):
            with LargestTensor() as largest:
                attention(x, given)[0].sum().backward()
            assert (largest.elements >= length**2) == builds


def test_the_matrix_of_random_is_shared_by_the_batch():
    attention = SynthesizerAttention(tiny_config(["random"], max_position_embeddings=300), 0)
    attention.config._attn_implementation = "sdpa"
    x, mask = torch.randn(50, 300, 18, requires_grad=True), torch.ones(50, 300, dtype=torch.bool)
    mask[::2, 200:] = False
    with LargestTensor() as largest:
        attention(x, mask)[0].sum().backward()
    assert largest.elements < 2 * 50 * 300 * 18 < 50 * 300**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_is_taken_in_float32(dtype):
    matrix = torch.randn(2, 30, 30).to(dtype)
    expected = matrix.float().softmax(-1)
    assert masked_softmax(matrix[None], None, False).dtype == torch.float32
    torch.testing.assert_close(masked_softmax(matrix[None], None, False)[0], expected)
    torch.testing.assert_close(shared_weights(matrix, False, torch.float32), expected)
    assert shared_weights(matrix.double(), False, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("length", [7, 300, 4095])
def test_pooling_is_exact_in_half_precision(length):
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            pooled = pool(torch.ones(1, length, 4, dtype=dtype), None, "mean")
            assert pooled[0].tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize(
    "variant", [["random", "dot_product"], ["factorized_dense", "dense"], ["random"], ["dense"]], ids=name_of
)
def test_gradients_under_autocast_are_those_of_eager(variant):
    attention = randomize(SynthesizerAttention(tiny_config(variant), 0))
    x, mask = torch.randn(3, 11, 18), padding(3, 11, "right").bool()
    grads = {}
    for implementation in ("eager", "sdpa"):
        attention.config._attn_implementation = implementation
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = attention(x, mask)[0]
        outputs.float().square().sum().backward()
        grads[implementation] = {name: p.grad for name, p in attention.named_parameters()}
    largest = max(grad.abs().max() for grad in grads["eager"].values())
    for name, expected in grads["eager"].items():
        assert (grads["sdpa"][name] - expected).abs().max() <= 0.03 * largest, name


def eager(model, ids):
    model.set_attn_implementation("eager")
    outputs = model(ids).last_hidden_state
    model.set_attn_implementation("sdpa")
    return outputs


def test_shared_weights_are_kept_only_for_as_long_as_nothing_changes():
    model = randomize(synkhorn.SynthesizerModel(tiny_config(["random", "fixed_random"]))).eval()
    attention = model.layers[0].attention
    ids = random_ids(2, 11)
    weight = attention.members["random"].weight

    def change_mixture():
        attention.mixture.add_(torch.randn_like(attention.mixture))

    def replace_storage():
        weight.data = weight.data * 3.0

    def write_through_data():
        weight.data.mul_(0.5)
        model.eval()

    with torch.no_grad():
        first = model(ids).last_hidden_state
        kept = attention._cached_weights[1]
        assert torch.equal(model(ids).last_hidden_state, first)
        assert attention._cached_weights[1] is kept
        torch.testing.assert_close(model(ids[:, :7]).last_hidden_state, eager(model, ids[:, :7]))
        for change in (lambda: weight.mul_(2.0), change_mixture, replace_storage, write_through_data):
            change()
            torch.testing.assert_close(model(ids).last_hidden_state, eager(model, ids))
        model.config.is_causal = True
        torch.testing.assert_close(model(ids).last_hidden_state, eager(model, ids))
        model.config.is_causal = False
        with torch.autocast("cpu", torch.bfloat16):
            model(ids)
        torch.testing.assert_close(model(ids).last_hidden_state, eager(model, ids))
    assert not any("cached" in name for name in model.state_dict())
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert clone.layers[0].attention._cached_weights == (None, None)
    assert attention.train()._cached_weights == (None, None)


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
@pytest.mark.parametrize(
    "variant", [["factorized_random", "fixed_random"], ["factorized_random", "random"], ["random"]]
)
def test_gradients_of_shared_weights_in_half_precision(variant, dtype):
    attention = randomize(SynthesizerAttention(tiny_config(variant, attn_implementation="sdpa"), 0)).to(dtype)
    exact = copy.deepcopy(attention).double()
    x, mask = torch.randn(3, 11, 18, dtype=dtype), padding(3, 11, "right").bool()
    for module, states in ((attention, x), (exact, x.double())):
        module(states, mask)[0][mask].sum().backward()
    for (name, half), full in zip(attention.named_parameters(), exact.parameters(), strict=True):
        assert (half.grad - full.grad).abs().max() <= 0.05 * full.grad.abs().max().clamp(min=1), name


@pytest.mark.parametrize(
    "config",
    [tiny_config(members, max_position_embeddings=29) for members in (["dense", "dot_product"], ["factorized_random"])]
    # one round of balancing: more of them repeat the same operations
    + [
        tiny_sinkhorn_config(is_causal=x, use_cache=False, max_position_embeddings=29, sinkhorn_iterations=1)
        for x in (False, True)
    ],
    ids=["dense+dot_product", "factorized_random", "sinkhorn", "sinkhorn-causal"],
)
def test_two_compilations_serve_every_length(config):
    torch._dynamo.reset()
    config.num_hidden_layers = 1
    model = randomize(AutoModel.from_config(config)).eval()
    counter = CompileCounterWithBackend("aot_eager")
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
