"""Where public Sinkhorns went wrong: each faulty form is written here, and shown to fail a test that ours passes."""

import torch
from comparison import attend, rows_of
from variants import padding, random_ids, randomize, tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SinkhornModel
from synkhorn.modeling.modeling_sinkhorn import BlockSort, SinkhornAttention
from synkhorn.modeling.rows import Rows
from synkhorn.modeling.sinkhorn_attention import Options, sinkhorn_attention, to_blocks
from synkhorn.modeling.sinkhorn_choice import Choice
from synkhorn.modeling.sinkhorn_sort import Blocks, pool_blocks

FORMS = ("eager", "sdpa")


def outputs_of(attention: SinkhornAttention, form: str, x: torch.Tensor, mask: torch.Tensor | None = None):
    attention.config._attn_implementation = form
    return attend(attention, x, mask)


def test_sorted_values_are_values():
    """lucidrains: the sorted keys are used as the sorted values, so that a moved value never arrives."""
    queries, keys, values = torch.randn(3, 1, 1, 12, 6).unbind()
    # block 0 is sent block 2, and every value of block 2 is 100 higher
    choice = Choice.of(torch.eye(3)[[2, 0, 1]][None, None], None, 1)
    raised = values.clone()
    raised[:, :, 8:] += 100.0

    def faulty(values):
        moved = choice.sorted_blocks(to_blocks(keys, 4, -2))
        both = torch.cat((moved, to_blocks(keys, 4, -2)), dim=-2)
        weights = (to_blocks(queries, 4, -2) @ both.transpose(-1, -2)).softmax(-1)
        return (weights @ torch.cat((moved, to_blocks(values, 4, -2)), dim=-2))[:, :, 0]

    def ours(values):
        rows = rows_of(values[:, 0])
        blocks = Blocks.of(rows, 4, is_causal=False)
        return sinkhorn_attention(queries, keys, values, choice, rows, blocks, Options(4, False))[:, :4]

    assert (faulty(raised) - faulty(values)).abs().max() < 1e-4
    assert (ours(raised) - ours(values)).min() > 1.0
    for form in FORMS:
        attention = randomize(SinkhornAttention(tiny_sinkhorn_config(), 0)).eval()
        before = outputs_of(attention, form, torch.ones(1, 12, 18))
        attention.value.bias.data += 1.0
        # all values 1 higher: so is each head's output, whatever the weights
        expected = before + attention.output.weight.sum(-1)
        torch.testing.assert_close(outputs_of(attention, form, torch.ones(1, 12, 18)), expected, atol=1e-5, rtol=1e-5)


def test_evaluation_draws_no_noise():
    """lucidrains: Gumbel noise in evaluation too, so that the same input gives other outputs."""
    ids = random_ids(2, 13)
    for is_causal in (False, True):
        model = randomize(SinkhornModel(tiny_sinkhorn_config(is_causal=is_causal))).eval()
        for form in FORMS:
            model.set_attn_implementation(form)
            outputs = model(ids).last_hidden_state
            assert torch.equal(model(ids).last_hidden_state, outputs)
            for module in model.modules():
                if isinstance(module, BlockSort):
                    module.training = True  # the faulty form
            assert (model(ids).last_hidden_state - outputs).abs().max() > 1e-3
            model.eval()


def test_padding_does_not_reach_the_sort_net():
    """lucidrains: blocks are pooled with their padding, so that its content moves the blocks."""
    sort = randomize(BlockSort(tiny_sinkhorn_config())).eval()
    x = torch.randn(2, 13, 18)
    mask = padding(2, 13, "right").bool()
    other = x + 10.0 * ~mask[..., None]

    def matrices(states, mask=None):
        rows = rows_of(states, mask)
        return rows.in_order(sort(rows.gather(states), Blocks.of(rows, 4, is_causal=False))[0])

    whole = Blocks.of(rows_of(x), 4, is_causal=False)
    faulty = [pool_blocks(whole.fill(states.flatten(0, 1)[None]), whole, "sum") for states in (x, other)]
    assert (faulty[1] - faulty[0]).abs().max() > 1.0
    assert torch.equal(matrices(other, mask), matrices(x, mask))
    torch.testing.assert_close(matrices(x, mask)[1:, :, :3, :3], matrices(x[1:, :10]), atol=1e-5, rtol=1e-5)


def test_left_padded_generation_equals_the_full_forward():
    """lucidrains: blocks are cut from the padded row, so that a left-padded prompt has others than itself alone."""
    config = tiny_sinkhorn_config(eos_token_id=None, max_position_embeddings=21)
    model = randomize(SinkhornForCausalLM(config)).eval()
    ids, mask = random_ids(3, 15), padding(3, 15, "left")

    def step(logits_of, ids, mask):
        return logits_of(ids, mask)[:, -1]

    def alone(ids, mask):
        return torch.stack([model(row[valid.bool()][None]).logits[0, -1] for row, valid in zip(ids, mask, strict=True)])

    def faulty(ids, mask):
        # the layers get the padded row as it stands, with the right positions and a mask of keys
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        rows = Rows.whole(ids.shape, ids.device)._replace(positions=positions.view(1, -1), mask=mask.bool())
        outputs = model.model.encode(ids, positions, None, None, None, rows, return_dict=True)
        return model.lm_head(rows.scatter(outputs.last_hidden_state))

    difference = (step(faulty, ids, mask) - alone(ids, mask)).abs().amax(-1)
    assert difference[0] < 1e-4 and difference[1:].max() > 1e-2
    for form in FORMS:
        model.set_attn_implementation(form)
        tokens, valid = ids, mask
        for _ in range(6):
            logits = step(lambda ids, mask: model(ids, attention_mask=mask).logits, tokens, valid)
            torch.testing.assert_close(logits, alone(tokens, valid), atol=1e-4, rtol=1e-4)
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=-1)
            valid = torch.cat((valid, torch.ones(3, 1, dtype=torch.long)), dim=-1)
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), tokens)


def test_a_causal_language_model_uses_the_sort():
    """lucidrains: the causal model only ever attends within its block; so does ours, but by `sort_net="none"` only."""
    for sort_net, is_used in (("linear", True), ("mlp", True), ("bilinear", True), ("none", False)):
        config = tiny_sinkhorn_config(sort_net=sort_net, num_hidden_layers=1)
        model = randomize(SinkhornForCausalLM(config)).eval()
        for form in FORMS:
            model.set_attn_implementation(form)
            embeds = torch.randn(1, 13, 18, requires_grad=True)
            model.zero_grad()
            model(inputs_embeds=embeds).logits[:, 9].square().sum().backward()
            assert (embeds.grad[:, :8].abs().sum() > 0) == is_used
            assert embeds.grad[:, 8:10].abs().sum() > 0
            nets = [p.grad for name, p in model.named_parameters() if ".sort." in name]
            assert len(nets) > 0 or not is_used
            assert all(grad.abs().max() > 0 for grad in nets)


def test_a_sorted_block_is_one_choice_of_blocks():
    """Long Range Arena: every "sorted" block is the plain sum of all blocks, whatever the sort matrix says."""
    blocks = torch.randn(1, 1, 4, 3, 5)
    order = [2, 0, 3, 1]
    matrices = torch.eye(4)[order][None, None]
    # its einsum sums over the blocks and the matrix apart
    faulty = torch.einsum("bhij,bhktd->bhitd", matrices, blocks)
    torch.testing.assert_close(faulty[:, :, 0], blocks.sum(2))
    torch.testing.assert_close(faulty[:, :, 0], faulty[:, :, 3])
    ours = Choice.of(matrices, None, 1).sorted_blocks(blocks)
    torch.testing.assert_close(ours, blocks[:, :, order])
    torch.testing.assert_close(ours, torch.einsum("bhij,bhjtd->bhitd", matrices, blocks))


def test_blocks_and_masks_are_contiguous():
    """Long Range Arena: blocks of strided tokens under masks of contiguous blocks, so that padding is attended to."""
    x = torch.arange(12.0)[None, :, None]
    mask = torch.arange(12)[None] < 10
    faulty = x.view(1, 4, 3, 1).transpose(1, 2)  # block i holds the tokens i, i + 3, ...
    contiguous = to_blocks(mask, 4, -1)
    assert set(faulty[contiguous].flatten().tolist()) != set(range(10))
    ours = to_blocks(x, 4, -2)
    assert ours[contiguous].flatten().tolist() == list(range(10))
    assert ours[0, 1].flatten().tolist() == [4, 5, 6, 7]
    for form in FORMS:
        attention = randomize(SinkhornAttention(tiny_sinkhorn_config(sort_net="none"), 0)).eval()
        states = torch.randn(1, 12, 18)
        changed = states.clone()
        changed[:, 5] += 1.0
        difference = (outputs_of(attention, form, changed) - outputs_of(attention, form, states)).abs().sum(-1)[0]
        assert (difference > 1e-4).nonzero()[:, 0].tolist() == [4, 5, 6, 7]
