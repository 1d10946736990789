"""Faults that were found by trying to break the models: each was silent, or an error that said nothing."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface
from variants import SOME_CAUSAL, causal_model, config_of, model_of, random_ids

from synkhorn.modeling import sinkhorn_choice


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("member", ["random", "factorized_random"])
@pytest.mark.parametrize("spread", [5.0, 12.0, 30.0])
def test_float16_rows_that_see_little_of_a_longer_ones_softmax(member, spread):
    """All rows share a softmax, and are divided by what they see of it: that has to be large enough for float16."""
    model = model_of(config_of([member], num_hidden_layers=1))
    own = model.layers[0].attention.members[member]
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.add_(1.0 if "norm.weight" in name else 0.0)
        # later keys get nearly all of the weight
        if member == "random":
            own.weight[:, :, 5:] += spread
        else:
            own.query_weight[:, :, 0], own.key_weight[:, :, 0], own.key_weight[:, 5:, 0] = 1.0, 0.0, spread
    expected = model_of(config_of([member], num_hidden_layers=1)).double()
    expected.load_state_dict(model.state_dict())
    expected.set_attn_implementation("eager")
    ids, mask = random_ids(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[1, 5:] = 0
    outputs = []
    for one in (model.half(), expected):
        hidden = one(ids, attention_mask=mask).last_hidden_state.double()
        (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view_as(hidden)).sum().backward()
        outputs.append(hidden.detach())
    torch.testing.assert_close(*outputs, atol=0.03, rtol=0.03)
    exact = gradients(expected)
    for name, grad in gradients(model).items():
        scale = exact[name].abs().max().clamp(min=0.1)
        assert ((grad.double() - exact[name]).abs().max() / scale) < 0.05, name


@pytest.mark.parametrize("variant", [pytest.param(["random", "dot_product"], marks=pytest.mark.slow), {}], ids=str)
def test_packed_input_that_cannot_be_told_in_a_graph_is_an_error_there(variant):
    model = model_of(config_of(variant))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    positions = torch.arange(11)[None]
    torch.testing.assert_close(*(m(random_ids(1, 11), position_ids=positions)[0] for m in (compiled, model)))
    with pytest.raises(ValueError, match="position_ids restart"):
        torch.func.vmap(lambda ids: model(ids, position_ids=positions % 6)[0])(random_ids(2, 11)[:, None])
    with pytest.raises(RuntimeError, match="position_ids restart: packed input cannot be traced or compiled"):
        compiled(random_ids(1, 11), position_ids=positions % 6)


@pytest.mark.parametrize("variant", [{}, {"sort_net": "pooled", "sort_top_k": 2}, ["random", "dot_product"]], ids=str)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_computes_the_same_dropout_again(variant, use_reentrant):
    """Forward without gradients and the recomputation with them draw alike."""
    model = model_of(config_of(variant, attention_dropout=0.3, hidden_dropout=0.1), "ForMaskedLM").double().train()
    ids, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    found = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(0)
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


@pytest.mark.parametrize("name", [name for name in SOME_CAUSAL if "dense" not in name.split("-")[1].split("+")])
def test_a_cache_lets_queries_alone_be_trained(name):
    model = causal_model(name).double()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)).double()
    ids, found = random_ids(2, 12), []
    for sizes in ([12], [5, 1, 1, 3, 2]):
        model.zero_grad()
        cache, logits = None, []
        for part in ids.split(sizes, dim=1):
            outputs = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            logits.append(outputs.logits)
        torch.cat(logits, 1).sin().sum().backward()
        found.append(gradients(model))
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad)


@pytest.mark.parametrize("variant", [["random"], ["fixed_random"], ["factorized_random"], ["dense"], {}], ids=str)
def test_a_batch_of_nothing_but_padding_is_nothing(variant):
    model = model_of(config_of(variant))
    outputs = model(random_ids(2, 5), attention_mask=torch.zeros(2, 5, dtype=torch.long))
    assert torch.equal(outputs.last_hidden_state, torch.zeros(2, 5, 18))


TIED = [
    {"sort_top_k": 2, "causal_balancing": "sinkhorn", "is_causal": True},
    {"sort_top_k": 2, "causal_balancing": "sinkhorn", "is_causal": True, "sorted_blocks": 2},
    {"sort_top_k": 1, "sinkhorn_temperature": 0.02},
    {"sort_top_k": 2, "sort_net": "bilinear", "sinkhorn_temperature": 0.02},
]


@pytest.mark.parametrize("variant", TIED, ids=str)
def test_equal_entries_are_chosen_alike_whatever_stands_beside_them(variant):
    """The largest entries of a saturated sort are equal: a row alone, in a batch, and before later tokens."""
    for seed in range(10):
        model = model_of(config_of(variant, max_position_embeddings=40), seed=seed).double()
        with torch.no_grad():
            for layer in model.layers:
                for x in layer.attention.sort.parameters():
                    x.mul_(1e3 if model.config.is_causal else 1.0)
        ids = random_ids(2, 40, seed)
        mask = torch.ones_like(ids)
        mask[0, 22:] = 0
        alone = model(ids[:1, :22]).last_hidden_state[0]
        assert_near(model(ids, attention_mask=mask).last_hidden_state[0, :22], alone)
        if model.config.is_causal:
            assert_near(model(ids).last_hidden_state[0, :22], alone)


def test_entries_found_one_by_one_are_those_of_a_sort(monkeypatch):
    rows = torch.randint(0, 4, (50, 30)).double()
    # blocks that a row does not have, and a row that has none
    rows[:, 20:] = rows[0] = -torch.inf
    for k in (1, 3, sinkhorn_choice.FEW):
        found = sinkhorn_choice.first_largest(rows, k)
        with monkeypatch.context() as patched:
            patched.setattr(sinkhorn_choice, "FEW", 0)
            for one, other in zip(found, sinkhorn_choice.first_largest(rows, k), strict=True):
                assert torch.equal(one, other)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "variant",
    [
        {"sort_net": "pooled", "sinkhorn_temperature": 0.1},
        {"sort_net": "bilinear", "block_pooling": "sum"},
        {"sort_net": "bilinear", "block_pooling": "sum", "sinkhorn_temperature": 0.2},
        {"block_pooling": "sum", "sinkhorn_temperature": 0.1},
    ],
    ids=str,
)
def test_slots_of_little_mass_under_float16_autocast(variant):
    for seed in range(5):
        model = model_of(config_of(variant, num_hidden_layers=1, max_position_embeddings=40), seed=seed)
        with torch.autocast("cpu", torch.float16):
            states = model(random_ids(1, 17, seed)).last_hidden_state
        states.float().square().mean().backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize("name", ["ForMaskedLM", "ForTokenClassification", "ForCausalLM"])
@pytest.mark.parametrize("shape", [(2, 9), (1, 7), (14,)], ids=str)
def test_labels_of_another_shape_are_refused(name, shape):
    model = model_of(config_of({}, is_causal=name == "ForCausalLM"), name)
    ids = random_ids(2, 7)
    for mask in (None, torch.ones_like(ids).index_fill(1, torch.tensor([6]), 0)):
        with pytest.raises(ValueError, match=r"labels has shape .*, but must be \(2, 7\)"):
            model(ids, attention_mask=mask, labels=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("variant", [["dot_product"], {}], ids=str)
def test_an_implementation_that_there_is_not_is_no_silent_other_one(variant):
    AttentionInterface.register("of_somebody", lambda *arguments, **options: None)
    model = model_of(config_of(variant))
    model.set_attn_implementation("of_somebody")
    with pytest.raises(ValueError, match="attn_implementation='of_somebody' is not one .*: choose one of eager, sdpa"):
        model(random_ids(1, 5))


@pytest.mark.parametrize("variant", [["dot_product"], {}], ids=str)
def test_noise_on_embeddings_is_that_of_each_row(variant):
    """NEFTune divides its noise by the length that the word embeddings show it: a batch's, not that of all tokens."""
    model, shapes = model_of(config_of(variant)), []
    embeddings = model.embeddings.word_embeddings
    ids, mask = random_ids(4, 12), torch.ones(4, 12, dtype=torch.long)
    mask[1, 9:] = 0
    expected = model(ids, attention_mask=mask).last_hidden_state
    hook = embeddings.register_forward_hook(lambda module, given, found: shapes.append(found.shape))
    assert_near(model(ids, attention_mask=mask).last_hidden_state, expected)
    hook.remove()
    assert shapes == [(4, 12, 18)]


def test_an_answer_at_no_token_takes_no_loss():
    model = model_of(config_of({}), "ForQuestionAnswering")
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    right = {"start_positions": torch.tensor([6, 2]), "end_positions": torch.tensor([6, 3])}
    alone = model(ids[1:], **{name: x[1:] for name, x in right.items()}).loss
    assert_near(model(ids, attention_mask=mask, **right).loss, alone)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [*range(9)]])
    three = {"start_positions": torch.tensor([5, 1, 2]), "end_positions": torch.tensor([3, 1, 3])}
    documents = [model(x[None], **{name: y[i : i + 1] for name, y in three.items()})
                 for i, x in enumerate((ids[0, :4], ids[0, 4:], ids[1]))]  # fmt: skip
    logits = torch.cat(
        [torch.cat((documents[0].start_logits, documents[1].start_logits), 1), documents[2].start_logits]
    )
    outputs = model(ids, position_ids=packed, **three)
    torch.testing.assert_close(outputs.start_logits, logits)
    assert outputs.loss.isfinite() and outputs.loss < 100


def test_choices_are_not_packed():
    model = model_of(config_of({}), "ForMultipleChoice")
    ids, positions = random_ids(4, 8).view(2, 2, 8), torch.tensor([0, 1, 2, 3] * 2).expand(2, 2, 8)
    with pytest.raises(ValueError, match="a choice is one text"):
        model(ids, position_ids=positions)
