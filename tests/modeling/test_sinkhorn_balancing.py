"""Balancing and pooling by themselves: doubly stochastic where that can be, causal where it must be, always finite."""

import math

import pytest
import torch
from comparison import rows_of
from hypothesis import given
from hypothesis import strategies as st
from sinkhorn_loop import loop_pooled
from variants import random_ids, tiny_sinkhorn_config

from synkhorn import SinkhornConfig, SinkhornModel, causal_sinkhorn, sinkhorn
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS, MIN_TEMPERATURE
from synkhorn.modeling.modeling_sinkhorn import SORT_NETS
from synkhorn.modeling.sinkhorn_choice import Choice, choose
from synkhorn.modeling.sinkhorn_kernels import sorted_and_own
from synkhorn.modeling.sinkhorn_sort import (
    Blocks,
    causal_sums,
    log_causal_sinkhorn,
    log_sinkhorn,
    pool_blocks,
    scaled_causal_sums,
)


@pytest.mark.parametrize("iterations", [1, 7, 200])
@pytest.mark.parametrize("shape", [(5, 5), (2, 3, 8, 8)])
def test_balancing_is_doubly_stochastic_on_the_valid_blocks(shape, iterations):
    logits = torch.randn(shape)
    mask = torch.rand(*shape[:-2], 1, shape[-1])[..., 0, :] > 0.3
    mask[..., 0] = True
    matrix = sinkhorn(logits, mask, iterations)
    assert matrix.dtype == torch.float32 and matrix.shape == shape
    torch.testing.assert_close(matrix.sum(-1), mask.float())
    if iterations == 200:
        torch.testing.assert_close(matrix.sum(-2), mask.float(), atol=1e-4, rtol=1e-4)
    outside = ~(mask[..., :, None] & mask[..., None, :])
    assert matrix[outside].abs().sum() == 0
    everything = sinkhorn(logits, torch.ones_like(mask), iterations)
    assert torch.equal(sinkhorn(logits, None, iterations), everything)
    if logits.dim() == 2:
        part = sinkhorn(logits[mask][:, mask], None, iterations)
        torch.testing.assert_close(matrix[mask][:, mask], part)


def test_no_iterations_are_a_softmax_over_the_rows():
    logits = torch.randn(2, 6, 6)
    torch.testing.assert_close(sinkhorn(logits, None, 0), logits.softmax(-1))
    past = logits.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(), -math.inf)
    torch.testing.assert_close(causal_sinkhorn(logits, 0)[:, 1:], past[:, 1:].softmax(-1))


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_causal_balancing_chooses_from_the_past_and_leaks_nothing(iterations):
    logits = torch.randn(2, 9, 9, dtype=torch.float64, requires_grad=True)
    matrix = causal_sinkhorn(logits, iterations)
    assert matrix.triu().abs().sum() == 0
    torch.testing.assert_close(matrix.sum(-1)[:, 1:], torch.ones(2, 8, dtype=torch.float64))
    for row in range(1, 9):
        (grad,) = torch.autograd.grad(matrix[:, row].square().sum(), logits, retain_graph=True)
        assert grad[:, row + 1 :].abs().sum() == 0 and grad.isfinite().all()
    # more blocks change nothing of the earlier rows
    torch.testing.assert_close(causal_sinkhorn(logits[:, :6, :6], iterations), matrix[:, :6, :6])


def test_causal_balancing_tends_to_the_previous_block():
    """A lower-triangular doubly stochastic matrix can only be one thing: a known limit of causal balancing."""
    logits = torch.randn(64, 8, 8)
    mass = [
        causal_sinkhorn(logits, iterations).diagonal(-1, -2, -1)[:, 1:].mean().item()
        for iterations in (0, 1, 2, 4, 8, 16, 64, 512)
    ]
    assert all(later > earlier for earlier, later in zip(mass, mass[1:], strict=False)), mass
    assert mass[0] < 0.4 and mass[-1] > 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_balancing_survives_any_logits(is_causal, dtype):
    logits = (torch.randint(0, 2, (4, 7, 7)) * 2 - 1).to(dtype) * 1e4
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2] = False
    for iterations in (0, 1, 7, 50):
        logits = logits.detach().requires_grad_()
        matrix = causal_sinkhorn(logits, iterations) if is_causal else sinkhorn(logits, mask, iterations)
        assert matrix.dtype == torch.promote_types(dtype, torch.float32)
        assert matrix.isfinite().all()
        expected = mask.to(matrix.dtype)
        if is_causal:
            expected = (torch.arange(7) > 0).to(matrix.dtype).expand(4, -1)
        torch.testing.assert_close(matrix.sum(-1), expected)
        (matrix * torch.randn_like(matrix)).sum().backward()
        assert logits.grad.isfinite().all()


@given(st.integers(0, 2**16), st.integers(1, 9), st.booleans())
def test_a_choice_of_all_blocks_is_the_soft_sort(seed, n, is_causal):
    """In the dense form, and gathered: with as many blocks as there are, and with their own largest entries."""
    generator = torch.Generator().manual_seed(seed)
    logits, tensor = (torch.randn(2, 3, n, width, generator=generator, dtype=torch.float64) for width in (n, 5))
    log_matrix, pairs = log_causal_sinkhorn(logits, 2) if is_causal else log_sinkhorn(logits, None, 2)
    soft, index = choose(log_matrix, pairs)
    assert index is None and torch.equal(choose(log_matrix, pairs, n)[0], soft)
    gathered = Choice.of(soft, soft.argsort(-1), 3).fetch(tensor)
    torch.testing.assert_close(gathered, soft @ tensor)
    for k in range(1, n):
        kept, index = choose(log_matrix, pairs, k)
        smallest = soft.sort(-1, descending=True).values[..., k - 1 : k]
        largest = soft * (soft >= smallest)
        torch.testing.assert_close(kept, largest / largest.sum(-1, keepdim=True).clamp(min=1e-300))
        assert index.shape[-1] == k
        torch.testing.assert_close(Choice.of(kept, index, 3).fetch(tensor), kept @ tensor)


def test_one_choice_of_a_permutation_moves_blocks_exactly():
    order = torch.tensor([2, 0, 3, 1])
    logits = torch.eye(4)[order][None, None] * 30
    matrices, index = choose(*log_sinkhorn(logits, None, 7), 1)
    assert torch.equal(matrices[0, 0], torch.eye(4)[order]) and torch.equal(index[0, 0, :, 0], order)
    slots = torch.randn(4, 1, 3, 5)
    blocks = Blocks(3, ((1, 4),), 0, None, None, None)
    for x in (slots, slots.half()):
        both = sorted_and_own(Choice.of(matrices, index, 1), x, None, blocks)
        assert torch.equal(both, torch.cat((x[order], x), dim=2))


def test_straight_through_is_hard_with_the_gradient_of_the_soft_sort():
    """S is hard, and dL/dlogits = (dL/dS - sum_j dL/dS_ij P_ij) P_ij, P being the softmax of a row."""
    logits = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for k in (1, 2):
        matrices, index = choose(logits, None, k, is_hard=True)
        assert index is None and torch.equal(matrices.detach(), choose(logits.detach(), None, k)[0])
        (grad,) = torch.autograd.grad((matrices * upstream).sum(), logits)
        soft = logits.detach().softmax(-1)
        torch.testing.assert_close(grad, (upstream - (upstream * soft).sum(-1, keepdim=True)) * soft)
    # one block without it: no gradient at all, not a rounded one
    (grad,) = torch.autograd.grad((choose(logits, None, 1)[0] * upstream).sum(), logits)
    assert not grad.any()


@pytest.mark.parametrize("pooling", BLOCK_POOLINGS)
def test_pooling_equals_its_definition(pooling):
    x = torch.randn(3, 11, 5)
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1, 1:3], mask[1, 4:8], mask[2, 5:] = False, False, False
    rows = rows_of(x, mask)
    for is_causal in (False, True):
        config = tiny_sinkhorn_config(block_pooling=pooling, is_causal=is_causal)
        blocks = Blocks.of(rows, 4, is_causal)
        filled = blocks.fill(rows.gather(x))
        if is_causal:
            pooled = scaled_causal_sums(causal_sums(filled, blocks, pooling), 4, pooling)
        else:
            pooled = pool_blocks(filled, blocks, pooling)
        for row, own in enumerate(rows.in_order(pooled)):
            valid = x[row, mask[row]]
            for block in range(-(-len(valid) // 4)):
                torch.testing.assert_close(own[block], loop_pooled(config, valid, block))


@given(st.sampled_from([1, 2, 8, 32, 64, 256]), st.integers(3, 40), st.booleans(), st.sampled_from(["linear", "mlp"]))
def test_the_spread_of_normed_logits_depends_on_no_size(block_size, n, is_causal, sort_net):
    """As that of blocks of 1 token: sums of 64 times as many tokens give logits 8 times as large."""
    torch.manual_seed(0)
    config = SinkhornConfig(
        block_size=block_size,
        sort_net=sort_net,
        is_causal=is_causal,
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=n * block_size,
    )
    net = SORT_NETS[sort_net](config)
    net.initialize_parameters(0.02)
    states = torch.randn(2, n * block_size, 64)
    blocks = Blocks.of(rows_of(states), block_size, is_causal)

    def spread(pooling: str, scale: float = 1.0) -> float:
        filled = blocks.fill(scale * states.flatten(0, 1)[None])
        if is_causal:
            pooled = scaled_causal_sums(causal_sums(filled, blocks, pooling), block_size, pooling)
        else:
            pooled = pool_blocks(filled, blocks, pooling)
        return net(pooled, pooled).std(-1).mean().item()

    expected = {"linear": 0.02 * 64, "mlp": 0.02**2 * 64 * 8**0.5}[sort_net]
    for scale in (0.1, 1.0, 10.0):
        assert expected / 2 < spread("normed_sum", scale) < expected * 2
    if block_size == 256:
        assert spread("sum") > 1.5 * expected


@pytest.mark.parametrize("pooling", BLOCK_POOLINGS)
@pytest.mark.parametrize("sort_net", SORT_NETS)
def test_the_smallest_temperature_is_finite(sort_net, pooling):
    for is_causal in (False, True):
        config = tiny_sinkhorn_config(
            sort_net=sort_net,
            block_pooling=pooling,
            is_causal=is_causal,
            causal_balancing="sinkhorn",
            sinkhorn_temperature=MIN_TEMPERATURE,
        )
        model = SinkhornModel(config)
        # identical tokens too, whose blocks tie
        outputs = model(torch.cat((random_ids(2, 13), torch.full((1, 13), 3)))).last_hidden_state
        outputs.square().sum().backward()
        assert outputs.isfinite().all()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert torch.stack([grad.square().sum() for grad in gradients]).isfinite().all()
