"""`torch.autograd.gradcheck` in float64 of every attention core, literal and fast, and of what surrounds it."""

import pytest
import torch
from comparison import attend
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import configs, implementations, mask_of, optional, padded_rows, seeds
from torch.func import functional_call
from variants import attention_of

from synkhorn import causal_sinkhorn, sinkhorn
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS, COMBINES
from synkhorn.modeling.rows import Rows
from synkhorn.modeling.sinkhorn_attention import Options, literal_sinkhorn_attention, sinkhorn_attention
from synkhorn.modeling.sinkhorn_choice import Choice, choose
from synkhorn.modeling.sinkhorn_sort import Blocks, causal_sums, log_causal_sinkhorn, log_sinkhorn, pool_blocks
from synkhorn.modeling.synthesizer_kernels import tiled_attention, written_attention
from synkhorn.modeling.synthesizer_logits import Logits

LONGEST = 7
rows_of_texts = padded_rows(LONGEST, most=3).map(mask_of).map(Rows.padded)
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
    """With respect to its input and every parameter, but for straight-through, whose gradient is another's."""
    assume(not getattr(config, "sort_hard", False))
    config._attn_implementation = implementation
    attention = attention_of(config, seed)
    mask = mask_of(data.draw(padded_rows(config.max_position_embeddings, most=2)))
    names, parameters = zip(*attention.named_parameters(), strict=True)
    x = draws(seed)(*mask.shape, config.hidden_size)

    def outputs(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return attend(lambda *inputs: functional_call(attention, given, inputs), x, optional(mask))

    check(outputs, x, *parameters)


TERMS = [
    ("queries", "keys"),
    ("queries", "keys", "key_bias"),
    ("matrix",),
    ("matrix", "matrix_scale"),
    ("slow", "fast"),
]


@given(
    rows_of_texts,
    seeds,
    widths,
    st.booleans(),
    st.lists(st.sampled_from(TERMS), min_size=1, max_size=4),
    st.booleans(),
    st.sets(st.sampled_from(["values", *Logits._fields])),
)
def test_attention_in_tiles(rows, seed, width, is_causal, terms, is_shared, constants):
    """The backward pass is our own: for every set of terms that logits have, and every set that wants gradients."""
    draw, count = draws(seed), rows.num_tokens
    shapes = {
        "queries": (2, LONGEST, width) if is_shared else (1, 2, count, width),
        "keys": (2, LONGEST, width),
        "key_bias": (2, LONGEST),
        "matrix": (2, LONGEST, LONGEST),
        "matrix_scale": (2,),
        "slow": (1, 2, count, -(-LONGEST // width)),
        "fast": (1, 2, count, width),
    }
    names = [name for name in Logits._fields if name in sum(terms, ())]
    assume(not {"values", *names} <= constants)
    inputs = {"values": draw(1, 2, count, 3)} | {name: draw(*shapes[name]) for name in names}
    inputs = [tensor.requires_grad_(name not in constants) for name, tensor in inputs.items()]

    def tiled(values, *tensors):
        return tiled_attention(Logits(**dict(zip(names, tensors, strict=True))), values, rows, is_causal)

    def written(values, *tensors):
        return written_attention(rows, is_causal, values, *Logits(**dict(zip(names, tensors, strict=True))))

    torch.testing.assert_close(tiled(*inputs), written(*inputs))
    for form in (tiled, written):
        check(form, *inputs)
    # twice
    assert torch.autograd.gradgradcheck(tiled, inputs, fast_mode=True)


@pytest.mark.parametrize("top_k", [None, 1, 2])
@given(
    rows=rows_of_texts,
    seed=seeds,
    block_size=st.integers(1, 4),
    options=st.tuples(st.booleans(), st.sampled_from(COMBINES))
    | st.tuples(st.just(False), st.just("concat"), st.integers(1, 2)),
    m=st.integers(1, 3),
)
def test_attention_to_sorted_blocks(top_k, rows, seed, block_size, options, m):
    draw, options = draws(seed), Options(block_size, *options)
    m = 1 if options.combine == "logits" or options.sortcut_blocks else m
    blocks = Blocks.of(rows, block_size, options.is_causal)
    n = blocks.longest
    # else nothing is left out
    assume(top_k is None or n > top_k)

    def matrices(logits):
        if options.is_causal:
            return choose(*log_causal_sinkhorn(logits, 2), top_k)
        mask = blocks.row_mask
        return choose(*log_sinkhorn(logits, None if mask is None else mask[:, None], 2), top_k)

    def fast(queries, keys, values, logits):
        choice = Choice.of(*matrices(logits), 2)
        return sinkhorn_attention(queries, keys, values, choice, rows, blocks, options)

    def literal(queries, keys, values, logits):
        queries, keys, values = (rows.to_rows(x.transpose(1, 2)).transpose(1, 2) for x in (queries, keys, values))
        outputs = literal_sinkhorn_attention(queries, keys, values, matrices(logits)[0], rows.row_mask(), options)[0]
        return rows.to_tokens(outputs.transpose(1, 2).flatten(2))

    inputs = [*(draw(1, 2, rows.num_tokens, 3) for _ in range(3)), draw(rows.num_rows, 2 * m, n, n)]
    torch.testing.assert_close(fast(*inputs), literal(*inputs))
    for form in (fast, literal):
        check(form, *inputs)
    # SortCut is a fused call, which PyTorch differentiates once
    assert options.sortcut_blocks or torch.autograd.gradgradcheck(fast, inputs, fast_mode=True)


@given(padded_rows(LONGEST, most=2).map(mask_of), seeds, st.integers(0, 4), st.booleans())
def test_balancing(mask, seed, iterations, is_causal):
    logits = draws(seed)(*mask.shape, mask.shape[1])

    def balanced(logits):
        return causal_sinkhorn(logits, iterations) if is_causal else sinkhorn(logits, optional(mask), iterations)

    check(balanced, logits)
    assert torch.autograd.gradgradcheck(balanced, [logits], fast_mode=True)


@given(rows_of_texts, seeds, st.integers(1, 4), st.sampled_from(BLOCK_POOLINGS), st.booleans())
def test_pooling(rows, seed, block_size, pooling, is_causal):
    blocks, pool = Blocks.of(rows, block_size, is_causal), causal_sums if is_causal else pool_blocks
    check(lambda x: pool(blocks.fill(x), blocks, pooling), draws(seed)(1, rows.num_tokens, 2))
