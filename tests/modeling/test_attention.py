"""Every variant against a loop written from the paper, and what the properties of `test_properties*.py` leave out."""

import math

import pytest
import torch
from comparison import assert_same, attend, eager, gradients, loop, sdpa
from variants import (
    SINKHORN_VARIANTS,
    SYNTHESIZERS,
    VARIANTS,
    attention_of,
    config_of,
    model_of,
    name_of,
    padding,
    random_ids,
)

FORMS = ("eager", "sdpa")
DIRECTIONS = {"bidirectional": False, "causal": True}
# a variant and whether it is causal; SortCut is bidirectional only
every_case = pytest.mark.parametrize(
    ("variant", "is_causal"),
    [
        pytest.param(variant, is_causal, id=f"{name_of(variant)}-{name}")
        for variant in [*VARIANTS, *SINKHORN_VARIANTS]
        for name, is_causal in DIRECTIONS.items()
        if not (is_causal and "sortcut_blocks" in variant)
    ],
)
both_directions = pytest.mark.parametrize("is_causal", DIRECTIONS.values(), ids=DIRECTIONS)


def check_loop(config, length: int, side: str) -> None:
    attention = attention_of(config)
    x, mask = torch.randn(2, length, 18, dtype=torch.float64), padding(2, length, side)
    mask = None if mask is None else mask.bool()
    expected = gradients(loop, attention, x, mask)
    for form in (eager, sdpa):
        assert_same(gradients(form, attention, x, mask), expected, 1e-10)


@every_case
def test_eager_and_sdpa_equal_the_loop(variant, is_causal):
    check_loop(config_of(variant, is_causal=is_causal), 13, "hole")


@both_directions
def test_one_token_and_a_plain_sum_of_members(is_causal):
    for config in (config_of(SYNTHESIZERS, is_causal=is_causal, mixture_weighting="sum"), config_of({})):
        for length, side in ((1, "none"), (4, "none"), (7, "right")):
            check_loop(config, length, side)


@pytest.mark.parametrize("variant", [SYNTHESIZERS, ["dense", "dot_product"], ["random"]], ids=name_of)
@both_directions
def test_sdpa_equals_eager_across_tiles(variant, is_causal):
    """Lengths beyond one tile of our kernels, and of the fused ones."""
    attention = attention_of(config_of(variant, is_causal=is_causal, max_position_embeddings=611))
    x, mask = torch.randn(2, 597, 18, dtype=torch.float64), padding(2, 597, "right").bool()
    assert_same(gradients(sdpa, attention, x, mask), gradients(eager, attention, x, mask), 1e-10)


@pytest.mark.parametrize("variant", [SYNTHESIZERS, *SINKHORN_VARIANTS[:4], *SINKHORN_VARIANTS[9:11]], ids=name_of)
def test_causality_is_exact(variant):
    model = model_of(config_of(variant, is_causal=True))
    for form in FORMS:
        model.set_attn_implementation(form)
        # block 2 is the first with a choice
        for position in (0, 3, 4, 9, 12):
            embeds = torch.randn(2, 13, 18, requires_grad=True)
            model(inputs_embeds=embeds).last_hidden_state[:, position].square().sum().backward()
            assert not embeds.grad[:, position + 1 :].any()
            # the past is read, beyond the own block too
            assert embeds.grad[0, position].any() and (position < 4 or embeds.grad[0, : position // 4 * 4].any())


@pytest.mark.parametrize(
    "variant", [SYNTHESIZERS, ["dense"], ["random"], {}, {"combine": "logits"}, {"sortcut_blocks": 2}], ids=name_of
)
def test_attention_dropout_is_exact_for_each_row_of_the_batch(variant):
    """The mean over many draws of the dropped outputs is the undropped output, and rows draw on their own."""
    fields = {} if isinstance(variant, list) else {"gumbel_noise": False}
    attention = attention_of(config_of(variant, attention_dropout=0.5, **fields)).float()
    x = torch.randn(1, 6, 18).expand(4000, -1, -1)
    for form in FORMS:
        attention.config._attn_implementation = form
        dropped = attend(attention.train(), x)
        assert dropped.std(0).min() > 0.01
        full = attend(attention.eval(), x[:1])[0]
        error = (dropped.mean(0) - full).abs() / dropped.std(0) * math.sqrt(len(x))
        assert error.max() < 5


@pytest.mark.parametrize(
    ("variant", "is_causal"), [(SYNTHESIZERS, True), ({"block_pooling": "sum"}, True), ({"sortcut_blocks": 1}, False)]
)
def test_compiles_without_graph_breaks(variant, is_causal):
    torch._dynamo.reset()
    model = model_of(config_of(variant, is_causal=is_causal, num_hidden_layers=1))
    ids, arguments = random_ids(3, 9), {"attention_mask": padding(3, 9, "hole"), "output_attentions": True}
    # first without compilation, because Transformers installs its recording hooks then, under a lock
    expected = model(ids, **arguments)
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, **arguments)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    for matrices, own in zip(actual.get("sort_matrices", ()), expected.get("sort_matrices", ()), strict=True):
        n = own.shape[-1]
        torch.testing.assert_close(matrices[:, :, :n, :n], own, atol=1e-5, rtol=1e-5)


def test_exports_with_dynamic_batch_and_length():
    model = model_of(config_of(["random", "dense", "dot_product"], is_causal=True, use_cache=False))
    shape = {0: torch.export.Dim("batch", min=2, max=16), 1: torch.export.Dim("length", min=2, max=12)}
    inputs = {"input_ids": random_ids(3, 9), "attention_mask": padding(3, 9, "left")}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape)).module()
    for batch, length, side in [(3, 9, "right"), (5, 12, "left"), (2, 7, "hole")]:
        ids, mask = random_ids(batch, length), padding(batch, length, side)
        outputs = exported(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
