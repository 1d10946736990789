"""The caches: what a model says with one is what it says without, at every step and in every variant."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer
from variants import CAUSAL_VARIANTS, SOME_CAUSAL, causal_model, padding, random_ids, tiny_config, tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SynthesizerForCausalLM, SynthesizerModel

LENGTH = 23  # five blocks of 4, and three tokens
# how the tokens are given: a prompt and single tokens, chunks that cross several edges of blocks
CROPPED = [
    "synthesizer-random+dot_product",
    "sinkhorn-default",
    "sinkhorn-sort_net=none",
    "sinkhorn-sort_net=pooled",
    "sinkhorn-sort_top_k=2-sorted_blocks=2",
]
SPLITS = {"steps": [9] + [1] * 14, "chunks": [6, 5, 9, 1, 2]}


def cache_of(model, kind: str):
    return DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=27)


def run(model, ids, mask, cache, split, start=0, **kwargs):
    """Outputs of each part of the tokens from `start` on, given one after the other."""
    outputs = []
    for size in split:
        stop = start + size
        seen = None if mask is None else mask[:, :stop]
        outputs.append(model(ids[:, start:stop], attention_mask=seen, past_key_values=cache, **kwargs))
        start = stop
    return outputs


def logits_of(outputs) -> torch.Tensor:
    return torch.cat([output.logits for output in outputs], dim=1)


def assert_same_where_valid(actual, expected, mask, tolerance=1e-5):
    valid = torch.ones(expected.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(actual[valid], expected[valid], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", CAUSAL_VARIANTS)
@torch.no_grad()
def test_cached_logits_are_those_of_the_full_forward(name, kind):
    """What `test_properties_cache.py` draws for any configuration, here for every variant over many blocks."""
    model = causal_model(name)
    ids = random_ids(4, LENGTH)
    for side, split in (("none", "chunks"), ("left", "steps"), ("hole", "chunks")):
        mask, cache = padding(4, LENGTH, side), cache_of(model, kind)
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        assert_same_where_valid(logits_of(run(model, ids, mask, cache, SPLITS[split])), expected, mask)
        assert int(cache.get_seq_length()) == LENGTH


@pytest.mark.parametrize("name", SOME_CAUSAL)
@torch.no_grad()
def test_attentions_of_a_step_are_rows_of_the_whole(name):
    model = causal_model(name, attn_implementation="eager")
    ids, mask = random_ids(3, LENGTH), padding(3, LENGTH, "left")
    recorded = {"output_attentions": True, "output_hidden_states": True}
    expected = model(ids, attention_mask=mask, use_cache=False, **recorded)
    start = 0
    outputs = run(model, ids, mask, cache_of(model, "dynamic"), SPLITS["chunks"], **recorded)
    for size, output in zip(SPLITS["chunks"], outputs, strict=True):
        part = slice(start, start + size)
        for ours, whole in zip(output.attentions, expected.attentions, strict=True):
            assert ours.shape == (3, 3, size, start + size)
            rows = ours.transpose(1, 2), whole[:, :, part, : start + size].transpose(1, 2)
            assert_same_where_valid(*rows, mask[:, part])
        for ours, whole in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert_same_where_valid(ours, whole[:, part], mask[:, part])
        start += size


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", CROPPED)
@torch.no_grad()
def test_a_cropped_cache_goes_on_exactly(name, kind):
    model = causal_model(name)
    ids, other = random_ids(3, LENGTH), random_ids(3, LENGTH, seed=1)
    # into a block, to its beginning, and to the beginning of the one that the text ended in
    for side, kept, split in (
        ("none", 11, "steps"),
        ("left", 8, "chunks"),
        ("none", 20, "steps"),
        ("left", 20, "chunks"),
    ):
        mask = padding(3, LENGTH, side)
        # one text, cut at `kept` and continued with another
        mixed = torch.cat((ids[:, :kept], other[:, kept:]), dim=1)
        expected = model(mixed, attention_mask=mask, use_cache=False).logits[:, kept:]
        cache = cache_of(model, kind)
        run(model, ids, mask, cache, SPLITS[split])
        for steps in ([1] * (LENGTH - kept), [LENGTH - kept]):
            cache.crop(kept - LENGTH)
            assert_same_where_valid(logits_of(run(model, mixed, mask, cache, steps, start=kept)), expected, None)


@pytest.mark.parametrize("name", SOME_CAUSAL)
def test_gradients_flow_through_a_cache(name):
    model = causal_model(name).double()
    ids, mask = random_ids(3, LENGTH), padding(3, LENGTH, "left")
    probe = torch.randn(3, LENGTH, 40, dtype=torch.float64) * mask[..., None]
    grads = []
    for split in ([LENGTH], [9, 1, 1, 1, 5, 6]):
        model.zero_grad()
        (logits_of(run(model, ids, mask, cache_of(model, "dynamic"), split)) * probe).sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for parameter, expected in grads[0].items():
        torch.testing.assert_close(grads[1][parameter], expected, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_an_offloaded_layer_moves_all_that_grows():
    for name in ("synthesizer-dense", "sinkhorn-default"):
        model = causal_model(name)
        layer = model(random_ids(2, 9), use_cache=True).past_key_values.layers[0]
        # before its first tokens, as the offloaded cache of Transformers does with the next layer
        type(layer)().prefetch()
        layer.move("meta")
        assert {getattr(layer, state).device.type for state in layer.states} == {"meta"}
        assert len(layer.states) == (3 if name == "sinkhorn-default" else 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading uses CUDA streams")
@pytest.mark.parametrize("name", ["synthesizer-random+dot_product", "sinkhorn-default"])
def test_generates_with_an_offloaded_cache(name):
    model = causal_model(name).cuda()
    ids = random_ids(2, 9).cuda()
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    for kind in ("offloaded", "offloaded_static"):
        offloaded = model.generate(ids, max_new_tokens=12, do_sample=False, cache_implementation=kind)
        assert torch.equal(offloaded, expected)


@torch.no_grad()
def test_synthetic_variants_cache_values_only():
    sizes = {}
    for name in ("synthesizer-dense", "synthesizer-random", "synthesizer-factorized_dense", "synthesizer-dot_product"):
        layer = causal_model(name)(random_ids(2, 9)).past_key_values.layers[0]
        sizes[name] = layer.keys.numel() + layer.values.numel()
    dot_product = sizes.pop("synthesizer-dot_product")
    assert set(sizes.values()) == {dot_product // 2}


class Work(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the elements that operations write, views apart."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for tensor in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.elements += tensor.numel()
        return outputs


@pytest.mark.parametrize("name", CROPPED[1:])
@torch.no_grad()
def test_a_token_of_a_sinkhorn_model_costs_the_same_at_any_length(name):
    work = {}
    for length in (34, 4 * 250 + 2):
        model = causal_model(name, max_position_embeddings=1100)
        ids = random_ids(1, length + 2)
        cache = run(model, ids, None, cache_of(model, "dynamic"), [length, 1])[-1].past_key_values
        with Work() as counted:
            model(ids[:, -1:], past_key_values=cache)
        work[length] = counted.elements
    assert len(set(work.values())) == 1, work


def test_what_a_cache_is_made_of_is_checked():
    model, ids = causal_model("synthesizer-dense"), random_ids(1, 5)
    sinkhorn = causal_model("sinkhorn-default")
    # made without the configuration, or with another one of as many layers, but still empty
    for empty in (DynamicCache(), DynamicCache(config=sinkhorn.config), StaticCache(sinkhorn.config, max_cache_len=9)):
        assert model(ids, past_key_values=empty).past_key_values.get_seq_length() == 5
    states = torch.zeros(1, 3, 2, 6)
    filled, shorter, other = (DynamicCache(config=model.config) for _ in range(3))
    filled.update(states, states, 1)
    shorter.layers.pop()
    other.layers[1] = type("QuantizedLayer", (DynamicLayer,), {})()
    for cache in (sinkhorn(ids).past_key_values, filled, shorter, other, DynamicCache([(states, states)] * 2)):
        with pytest.raises(ValueError, match="is not a cache of this model"):
            model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="is_causal=False"):
        SynthesizerModel(tiny_config())(ids, past_key_values=DynamicCache(config=model.config))
    assert "past_key_values" not in SynthesizerModel(tiny_config())(ids, use_cache=True)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1\).*\(1, 6\)"):
        model(ids[:, :1], attention_mask=torch.ones(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"25 tokens after the 5 in past_key_values.*max_position_embeddings=29"):
        model(random_ids(1, 25), past_key_values=cache)
    for removed in (1, -6):
        with pytest.raises(ValueError, match=rf"crop\({removed}\).*at most 5"):
            cache.crop(removed)
    with pytest.raises(ValueError, match="max_cache_len=4 is too short for 5 tokens"):
        model(ids, past_key_values=StaticCache(model.config, max_cache_len=4))
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="activation checkpointing"):
        model.train()(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["synthesizer-dense", "sinkhorn-default"])
@torch.no_grad()
def test_a_mask_that_contradicts_the_one_of_a_cache_is_an_error(name, kind):
    model, ids = causal_model(name), random_ids(3, LENGTH)
    mask, one = padding(3, LENGTH, "left"), torch.ones(3, 1, dtype=torch.long)
    moved = torch.cat((mask[:, 1:9], mask[:, :1], one), dim=1)
    for first, then, message in [
        (mask, None, "column 0 of row 1 is valid, but .* masked"),
        (mask, torch.ones(3, 10), "column 0 of row 1 is valid, but .* masked"),
        (mask, moved, "column 2 of row 1 is valid, but .* masked"),
        (None, mask, "column 0 of row 1 is masked, but .* valid"),
    ]:
        cache = cache_of(model, kind)
        run(model, ids, first, cache, [9])
        with pytest.raises(ValueError, match=f"attention_mask says that {message}"):
            model(ids[:, 9:10], attention_mask=None if then is None else then[:, :10], past_key_values=cache)
    # one's own mask may change afterwards, and what was cropped away may come back otherwise
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    own, cache = mask.bool(), cache_of(model, kind)
    own[:, 9:] = False
    run(model, ids, own, cache, [9, 2])
    own.fill_(False)
    cache.crop(-2)
    assert_same_where_valid(logits_of(run(model, ids, mask, cache, [1] * 14, start=9)), expected[:, 9:], None)
    if kind == "dynamic":
        cache.batch_select_indices(torch.tensor([2, 0]))
        seen = torch.cat((mask[[2, 0]], one[:2]), dim=1)
        last = model(ids[[2, 0], :1], attention_mask=seen, past_key_values=cache).logits
        whole = torch.cat((ids, ids[:, :1]), dim=1)[[2, 0]]
        assert_same_where_valid(last, model(whole, attention_mask=seen).logits[:, -1:], None)


@pytest.mark.parametrize("name", ["synthesizer-dot_product", "synthesizer-random", "sinkhorn-default"])
@torch.no_grad()
def test_copied_layers_go_their_own_ways(name):
    """As those of Transformers do; `copy.copy` of a cache shares the list of its layers."""
    model, ids, other = causal_model(name), random_ids(2, LENGTH), random_ids(2, LENGTH, seed=1)
    for steps in ([9], [9, 1, 1]):
        cache, twin, start = DynamicCache(), DynamicCache(), sum(steps)
        run(model, ids, None, cache, steps)
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        # what the twin holds is written over first
        cache.crop(-1)
        mixed = torch.cat((ids[:, : start - 1], other[:, start - 1 :]), dim=1)
        for tokens, own, done in ((mixed, cache, start - 1), (ids, twin, start)):
            logits = logits_of(run(model, tokens, None, own, [1] * (LENGTH - done), start=done))
            assert_same_where_valid(logits, model(tokens, use_cache=False).logits[:, done:], None)
    # copied once, and no more
    storages = set()
    for _ in range(3):
        twin.crop(-1)
        run(model, ids, None, twin, [1], start=LENGTH - 1)
        storages.add(twin.layers[0].values.data_ptr())
    assert len(storages) == 1 and cache.layers[0].values.data_ptr() not in storages


def test_use_cache_decides_what_is_returned():
    for model in (SynthesizerForCausalLM(tiny_config()), SinkhornForCausalLM(tiny_sinkhorn_config())):
        ids = random_ids(1, 5)
        assert "past_key_values" in model(ids) and "past_key_values" not in model(ids, use_cache=False)
        model.config.use_cache = False
        assert "past_key_values" not in model(ids) and "past_key_values" in model(ids, use_cache=True)
