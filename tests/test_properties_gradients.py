"""`torch.autograd.gradcheck` in float64 of every attention core, literal and fast, and of what surrounds it."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import configs, implementations, mask_of, optional, padded_rows, seeds
from torch.func import functional_call
from variants import randomize

from synkhorn import FAMILIES, causal_sinkhorn, sinkhorn
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS, COMBINES
from synkhorn.modeling.dot_product_attention import literal_attention, masked_attention
from synkhorn.modeling.sinkhorn_attention import (
    causal_pool_blocks,
    literal_sinkhorn_attention,
    pool_blocks,
    sinkhorn_attention,
)
from synkhorn.modeling.synthesizer_attention import shared_attention, shared_weights, tiled_attention
from synkhorn.modeling.synthesizer_logits import Logits

MODELS = {name: family.model_class("Model") for name, family in FAMILIES.items()}
LONGEST = 7
masks = padded_rows(LONGEST, most=2, left=False).map(mask_of)
widths = st.integers(1, 3)


pytestmark = pytest.mark.usefixtures("small_tiles")


def draws(seed: int):
    """A function of a shape that draws an input with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def check(function, *inputs: torch.Tensor) -> None:
    """Raise unless the gradients are those of finite differences, along a random direction of each input."""
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@given(st.data(), configs(longest=LONGEST), seeds, implementations)
def test_attention_of_any_configuration(data, config, seed, implementation):
    """With respect to its input and every parameter."""
    config._attn_implementation = implementation
    attention = randomize(MODELS[config.model_type].attention_class(config, 0).double(), seed).eval()
    mask = mask_of(data.draw(padded_rows(config.max_position_embeddings, most=2, left=False)))
    names, parameters = zip(*attention.named_parameters(), strict=True)
    x = draws(seed)(*mask.shape, config.hidden_size)

    def outputs(x, *parameters):
        return functional_call(attention, dict(zip(names, parameters, strict=True)), (x, optional(mask)))[0]

    check(outputs, x, *parameters)


@given(masks, seeds, widths, st.booleans(), st.booleans(), st.booleans())
def test_attention_over_features(mask, seed, width, is_causal, has_bias, is_shared):
    draw, (batch, length) = draws(seed), mask.shape
    queries, keys = (draw(1 if is_shared else batch, 2, length, width) for _ in range(2))
    values, bias = draw(batch, 2, length, 3), draw(1 if is_shared else batch, 2, length)

    def fast(queries, keys, values, bias):
        return masked_attention(queries, keys, values, bias if has_bias else None, optional(mask), is_causal)

    def literal(queries, keys, values, bias):
        logits = queries @ keys.transpose(-1, -2) + (bias[:, :, None] if has_bias else 0.0)
        return literal_attention(logits, values, optional(mask), is_causal)

    for form in (fast, literal):
        check(form, queries, keys, values, bias)


@given(masks, seeds, st.booleans())
def test_attention_with_weights_that_the_batch_shares(mask, seed, is_causal):
    draw, (batch, length) = draws(seed), mask.shape

    def whole(matrix, values):
        return shared_attention(shared_weights(matrix, is_causal, values.dtype), values, optional(mask), is_causal)

    def in_tiles(matrix, values):
        return shared_attention(Logits(matrix=matrix), values, optional(mask), is_causal)

    for form in (whole, in_tiles):
        check(form, draw(2, length, length), draw(batch, 2, length, 3))


TERMS = [("queries", "keys"), ("key_bias",), ("matrix",), ("matrix", "matrix_scale"), ("slow", "fast")]


@given(
    masks,
    seeds,
    widths,
    st.booleans(),
    st.lists(st.sampled_from(TERMS), min_size=1, max_size=4),
    st.booleans(),
    st.sets(st.sampled_from(["values", *Logits._fields])),
)
def test_attention_in_tiles(mask, seed, width, is_causal, terms, is_shared, constants):
    """The backward pass is our own: for every set of terms that logits have, and every set that wants gradients."""
    draw, (batch, length) = draws(seed), mask.shape
    shapes = {
        "queries": (1 if is_shared else batch, 2, length, width),
        "keys": (1, 2, length, width),
        "key_bias": (1, 2, length),
        "matrix": (2, length, length),
        "matrix_scale": (2,),
        "slow": (batch, 2, length, -(-length // width)),
        "fast": (batch, 2, length, width),
    }
    names = [name for name in Logits._fields if name in sum(terms, ())]

    def outputs(values, *tensors):
        logits = Logits(**dict(zip(names, tensors, strict=True)))
        return tiled_attention(logits, values, optional(mask), is_causal)

    assume(not {"values", *names} <= constants)
    inputs = {"values": draw(batch, 2, length, 3)} | {name: draw(*shapes[name]) for name in names}
    check(outputs, *(tensor.requires_grad_(name not in constants) for name, tensor in inputs.items()))


@given(
    masks,
    seeds,
    st.integers(1, 4),
    st.sampled_from([(is_causal, combine, None) for is_causal in (False, True) for combine in COMBINES])
    | st.integers(1, 2).map(lambda cut: (False, "concat", cut)),
)
def test_attention_to_sorted_blocks(mask, seed, block_size, options):
    draw, (batch, length) = draws(seed), mask.shape
    n = -(-length // block_size)
    balance = causal_sinkhorn if options[0] else sinkhorn
    for form in (sinkhorn_attention, literal_sinkhorn_attention):

        def outputs(queries, keys, values, logits, form=form):
            keys, values = (x * mask[:, None, :, None] for x in (keys, values))
            attended = form(queries, keys, values, balance(logits, None, 2), optional(mask), block_size, *options)
            return attended[0] if form is literal_sinkhorn_attention else attended

        check(outputs, *(draw(batch, 2, length, 3) for _ in range(3)), draw(batch, 2, n, n))


@given(masks, seeds, st.integers(0, 4), st.sampled_from([sinkhorn, causal_sinkhorn]))
def test_balancing(mask, seed, iterations, balance):
    logits = draws(seed)(*mask.shape, mask.shape[1])
    check(lambda logits: balance(logits, optional(mask), iterations), logits)


@given(
    masks, seeds, st.integers(1, 4), st.sampled_from(BLOCK_POOLINGS), st.sampled_from([pool_blocks, causal_pool_blocks])
)
def test_pooling(mask, seed, block_size, pooling, pool):
    x = draws(seed)(*mask.shape, 2)
    check(lambda x: pool(x, optional(mask), block_size, pooling), x)
