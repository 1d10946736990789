"""What holds for every configuration of both families, every length, padding and precision, on examples drawn."""

import copy

import pytest
import torch
from comparison import TOLERANCE, assert_same, attend, eager, gradients, loop, rows_of, sdpa
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import VOCABULARY, configs, implementations, mask_of, normal, optional, padded_rows, seeds
from variants import attention_of, model_of

from synkhorn.modeling.softmax_attention import split_heads

HALVES = [torch.bfloat16, torch.float16]


pytestmark = pytest.mark.usefixtures("small_tiles")


@given(st.data(), configs(longest=9), seeds)
def test_eager_and_sdpa_are_the_loop(data, config, seed):
    rows = data.draw(padded_rows(config.max_position_embeddings, most=2))
    attention, mask = attention_of(config, seed), optional(mask_of(rows))
    x = normal(len(rows), max(map(len, rows)), config.hidden_size, seed=seed)
    expected = gradients(loop, attention, x, mask)
    for form in (eager, sdpa):
        assert_same(gradients(form, attention, x, mask), expected, 1e-9)


@given(st.data(), configs(longest=40), seeds, st.sampled_from([torch.float64, torch.float32]))
def test_sdpa_is_eager_at_every_length(data, config, seed, dtype):
    rows = data.draw(padded_rows(config.max_position_embeddings))
    attention, mask = attention_of(config, seed).to(dtype), optional(mask_of(rows))
    x = normal(len(rows), max(map(len, rows)), config.hidden_size, seed=seed, dtype=dtype)
    actual, expected = (gradients(form, attention, x, mask) for form in (sdpa, eager))
    assert_same(actual, expected, TOLERANCE[dtype])
    # other kernels serve where no gradient is wanted
    with torch.no_grad():
        assert_same((sdpa(attention, x, mask), *actual[1:]), expected, TOLERANCE[dtype])


@given(st.data(), configs(), seeds)
def test_attentions_times_values_are_the_outputs(data, config, seed):
    given = mask_of(data.draw(padded_rows(config.max_position_embeddings)))
    attention, x = attention_of(config, seed), normal(*given.shape, config.hidden_size, seed=seed)
    rows = rows_of(x, given)
    attention.config._attn_implementation = "eager"
    outputs, weights = attention(rows.gather(x), rows)
    outputs, weights = rows.scatter(outputs), rows.scatter_weights(weights)
    assert (weights >= 0).all() and not weights.mT[~given[:, None].expand(weights.shape[:3])].any()
    assert not (config.is_causal and weights.triu(1).any())
    heads = weights @ split_heads(attention.value(x), config.num_attention_heads)
    torch.testing.assert_close(attention.output(heads.transpose(1, 2).flatten(2))[given], outputs[given])


@given(
    st.data(),
    configs(),
    seeds,
    implementations,
    st.sampled_from([torch.float32, *HALVES]),
    st.sampled_from([0.02, 0.4, 3.0]),
    st.booleans(),
)
def test_nothing_is_infinite_or_no_number(data, config, seed, implementation, dtype, scale, autocast):
    """In training too, with noise, and for rows of nothing but padding."""
    rows = data.draw(padded_rows(config.max_position_embeddings))
    mask = mask_of(rows)
    mask[-1] &= data.draw(st.booleans())
    # weights as large as that have gradients that float16 cannot hold
    assume(scale < 1 or dtype != torch.float16)
    model = model_of(config, seed=seed, scale=scale).to(torch.float32 if autocast else dtype)
    model.set_attn_implementation(implementation)
    ids = torch.randint(0, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(seed))
    for is_training in (False, True):
        model.train(is_training)
        with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
            outputs = model(ids, attention_mask=mask).last_hidden_state
        assert outputs.isfinite().all()
        model.zero_grad()
        outputs.float().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@given(st.data(), configs(), seeds, implementations, st.sampled_from(HALVES))
def test_half_precision_is_close(data, config, seed, implementation, dtype):
    mask = mask_of(data.draw(padded_rows(config.max_position_embeddings)))
    half = attention_of(config, seed).to(dtype)
    exact = copy.deepcopy(half).double()
    x = normal(*mask.shape, config.hidden_size, seed=seed).to(dtype)
    for attention in (half, exact):
        attention.config._attn_implementation = implementation
    expected = attend(exact, x.double(), mask)
    error = attend(half, x, mask) - expected
    assert error.abs().max() < 0.05 * max(1, expected.abs().max())


@given(st.data(), configs(), seeds, implementations, st.sampled_from([1.0, 100.0, 1e5]))
def test_the_content_of_padding_never_matters(data, config, seed, implementation, size):
    rows = data.draw(padded_rows(config.max_position_embeddings))
    mask = mask_of(rows)
    model = model_of(config, seed=seed).double()
    model.set_attn_implementation(implementation)
    embeds = normal(*mask.shape, config.hidden_size, seed=seed).requires_grad_()
    outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    other = embeds.detach() + size * normal(*embeds.shape, seed=seed + 1) * ~mask[..., None]
    changed = model(inputs_embeds=other, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(changed[mask], outputs[mask], atol=1e-12, rtol=1e-12)
    (outputs[mask] * normal(*outputs[mask].shape, seed=seed)).sum().backward()
    assert not embeds.grad[~mask].any()


@given(st.data(), configs(), seeds)
def test_the_order_of_calls_never_matters(data, config, seed):
    """Nothing of a call stays: other inputs, gradients, training steps and forms in between change no later call."""
    model = model_of(config, seed=seed).double()
    calls = []
    for number in range(2):
        rows = data.draw(padded_rows(config.max_position_embeddings))
        mask = mask_of(rows)
        ids = torch.randint(0, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(seed + number))
        calls.append({"input_ids": ids, "attention_mask": optional(mask)})
    with torch.no_grad():
        expected = {
            (number, form): copy.deepcopy(model).forward(**calls[number]).last_hidden_state
            for form in ("eager", "sdpa")
            for number in range(2)
            if model.set_attn_implementation(form) is None
        }
    order = st.tuples(st.integers(0, 1), implementations, st.sampled_from(["plain", "gradients", "training"]))
    for number, form, mode in data.draw(st.lists(order, min_size=1, max_size=6)):
        model.set_attn_implementation(form)
        with torch.set_grad_enabled(mode != "plain"):
            outputs = model.train(mode == "training")(**calls[number]).last_hidden_state
        if mode == "gradients":
            outputs.sum().backward()
        if mode != "training":
            torch.testing.assert_close(outputs, expected[number, form], atol=1e-12, rtol=1e-12)
        model.eval()


@given(st.data(), configs(is_causal=True), seeds, implementations)
def test_causality_is_exact(data, config, seed, implementation):
    rows = data.draw(padded_rows(config.max_position_embeddings))
    mask = mask_of(rows)
    position = data.draw(st.integers(0, mask.shape[1] - 1))
    model = model_of(config, seed=seed).double()
    model.set_attn_implementation(implementation)
    embeds = normal(*mask.shape, config.hidden_size, seed=seed).requires_grad_()
    outputs = model(inputs_embeds=embeds, attention_mask=optional(mask)).last_hidden_state[:, : position + 1]
    outputs = outputs[mask[:, : position + 1]]
    (outputs * normal(*outputs.shape, seed=seed)).sum().backward()
    assert not embeds.grad[:, position + 1 :].any()


@given(st.data(), configs(), seeds)
def test_resizing_keeps_what_was_learned(data, config, seed):
    shortest = getattr(config, "block_size", 1) * (getattr(config, "sortcut_blocks", None) or 1)
    model = model_of(config, seed=seed).double()
    length = config.max_position_embeddings
    shorter = data.draw(st.integers(min(shortest, length), length))
    ids = torch.randint(0, VOCABULARY, (1, shorter), generator=torch.Generator().manual_seed(seed))
    expected = model(ids).last_hidden_state
    for size in (data.draw(st.integers(length, 3 * length)), shorter):
        model.resize_max_position_embeddings(size)
        torch.testing.assert_close(model(ids).last_hidden_state, expected, atol=1e-9, rtol=1e-9)
