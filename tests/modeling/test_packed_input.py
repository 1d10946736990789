"""Input that is packed: how it is told from other input, and errors of what does not add up."""

import pytest
import torch
from transformers import DataCollatorWithFlattening
from variants import causal_model, random_ids, randomize, tiny_config, tiny_sinkhorn_config

import synkhorn
from synkhorn.modeling.input_checks import starts_of_restarting

MODELS = {"synthesizer": tiny_config(["random", "dot_product"]), "sinkhorn": tiny_sinkhorn_config()}


@pytest.mark.parametrize(
    ("positions", "starts"),
    [
        ([0, 1, 2, 3], [0]),
        ([0, 1, 2, 0, 1], [0, 3]),
        ([5, 6, 5, 5, 6], [0, 2, 3]),
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 2, 1, 2], [0]),
        ([3, 2, 1, 0], [0]),
        ([0, 2, 4], [0]),
    ],
)
def test_positions_restart_at_the_first_of_them(positions, starts):
    assert starts_of_restarting(torch.tensor([positions])) == [starts]


def test_rows_of_a_batch_restart_each_at_its_own_first_position():
    assert starts_of_restarting(torch.tensor([[0, 1, 0, 1], [5, 6, 7, 8]])) == [[0, 2], [0]]
    assert starts_of_restarting(torch.tensor([[0, 1, 0, 1], [5, 6, 4, 5]])) == [[0], [0]]


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("family", MODELS)
def test_a_batch_of_packed_rows_is_its_rows_one_by_one(family, head):
    """As in a Trainer with packed rows, whose last batch may be of one."""
    model = randomize(getattr(synkhorn, f"{family.title()}{head}")(MODELS[family])).eval()
    ids, positions = random_ids(2, 12), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], [*range(8), 0, 1, 2, 3]])
    outputs = model(ids, position_ids=positions, output_hidden_states=True)
    alone = [
        model(x[None], position_ids=p[None], output_hidden_states=True) for x, p in zip(ids, positions, strict=True)
    ]
    for one, others in ((outputs.logits, [x.logits for x in alone]),
                        (outputs.hidden_states[-1], [x.hidden_states[-1] for x in alone])):  # fmt: skip
        torch.testing.assert_close(one, torch.cat(others), atol=1e-5, rtol=1e-5)
    shared = model(ids, position_ids=positions[:1]).logits
    torch.testing.assert_close(shared, model(ids, position_ids=positions[:1].repeat(2, 1)).logits)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM"])
@pytest.mark.parametrize("family", MODELS)
def test_what_the_collator_gives_is_the_texts_one_by_one(family, head):
    model = randomize(getattr(synkhorn, f"{family.title()}{head}")(MODELS[family])).eval()
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (5, 1, 13, 4)]
    examples = [{"input_ids": text, "labels": text} for text in texts]
    expected = [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    for arguments in ({}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}):
        batch = DataCollatorWithFlattening(return_tensors="pt", **arguments)(examples)
        outputs = model(**batch)
        torch.testing.assert_close(outputs.logits[0], torch.cat(expected), atol=1e-5, rtol=1e-5)
        assert outputs.loss.isfinite() and "past_key_values" not in outputs


def test_positions_say_where_embeddings_are_read_in_any_other_input():
    """With a mask or a cache, restarting positions are positions."""
    model = randomize(synkhorn.SynthesizerModel(tiny_config(is_causal=True))).eval()
    ids, positions = random_ids(1, 6), torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = model(ids, position_ids=positions).last_hidden_state
    one_row = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert (packed - one_row)[:, 3:].abs().max() > 0.01
    first = model(ids[:, :1], use_cache=True)
    rest = model(ids[:, 1:], position_ids=positions[:, 1:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.last_hidden_state, one_row[:, 1:], atol=1e-5, rtol=1e-5)


EDGES = torch.tensor([0, 4, 9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seq_lens_q": EDGES, "input_ids": random_ids(2, 9)}, "cu_seq_lens_q was given with a batch of 2"),
        ({"cu_seq_lens_q": torch.tensor([0, 4])}, r"cu_seq_lens_q=\[0, 4\] must rise from 0 to .* 9"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 4, 9])}, r"cu_seq_lens_q=\[0, 4, 4, 9\] must rise"),
        ({"cu_seq_lens_k": torch.tensor([1, 9])}, r"cu_seq_lens_k=\[1, 9\] must rise"),
        (
            {"cu_seq_lens_q": EDGES, "cu_seq_lens_k": torch.tensor([0, 5, 9])},
            r"cu_seq_lens_k gives .*\[5, 4\].*\[4, 5\]",
        ),
        ({"cu_seq_lens_q": EDGES, "seq_idx": torch.tensor([[0] * 5 + [1] * 4])}, r"seq_idx gives .*\[5, 4\]"),
        ({"seq_idx": torch.zeros(1, 8)}, r"seq_idx has shape \(1, 8\), but must be \(1, 9\)"),
        ({"cu_seq_lens_q": EDGES, "max_length_q": 4}, "max_length_q=4, but the longest document has 5"),
        ({"seq_idx": torch.tensor([[0] * 4 + [1] * 5]), "max_length_k": 9}, "max_length_k=9, but"),
        ({"cu_seq_lens_q": EDGES, "attention_mask": torch.tensor([[0] + [1] * 8])}, "attention_mask that hides tokens"),
        ({"seq_idx": torch.zeros(1, 9), "past_key_values": "cache"}, "seq_idx was given with past_key_values"),
        (
            {"input_ids": random_ids(1, 40), "cu_seq_lens_q": torch.tensor([0, 30, 40])},
            "30 tokens.*max_position_embeddings=29",
        ),
    ],
)
def test_packed_input_that_does_not_add_up_is_refused(arguments, message):
    model = causal_model("sinkhorn-default")
    if "past_key_values" in arguments:
        arguments = arguments | {"past_key_values": model(random_ids(1, 3)).past_key_values}
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": random_ids(1, 9)} | arguments)


def test_packed_input_is_not_traced():
    torch._dynamo.reset()
    model = torch.compile(synkhorn.SynthesizerModel(tiny_config()), backend="eager")
    with pytest.raises(Exception, match="packed input cannot be traced or compiled"):
        model(random_ids(1, 9), cu_seq_lens_q=EDGES)
