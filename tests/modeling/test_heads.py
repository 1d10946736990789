"""The heads: losses, pooling, inputs, training under `Trainer`, and the errors of bad input."""

import copy
import logging
import math

import pytest
import torch
import transformers
from comparison import rows_of
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from variants import model_of, padding, random_ids, randomize, tiny_config, tiny_sinkhorn_config

import synkhorn

HEADS = {
    "ForMaskedLM": {"labels": lambda: random_ids(1, 9)[0].tolist()},
    "ForCausalLM": {"labels": lambda: random_ids(1, 9)[0].tolist()},
    "ForSequenceClassification": {"labels": lambda: 1},
    "ForTokenClassification": {"labels": lambda: [0, 1] * 4 + [-100]},
    "ForQuestionAnswering": {"start_positions": lambda: 2, "end_positions": lambda: 5},
    "ForMultipleChoice": {"labels": lambda: 1},
}


SINKHORN = tiny_sinkhorn_config(sort_net="mlp", gumbel_noise=False)


def head_class(head: str, family: str = "Synthesizer"):
    return getattr(synkhorn, f"{family}{head}")


def family_of(config) -> str:
    return config.model_type


def example(head: str, seed: int) -> dict:
    shape = (2, 9) if head == "ForMultipleChoice" else (1, 9)
    ids = random_ids(*shape, seed=seed)
    ids = ids if head == "ForMultipleChoice" else ids[0]
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    return columns | {name: value() for name, value in HEADS[head].items()}


@pytest.mark.parametrize("head", HEADS)
def test_accumulation_does_not_inflate_the_loss(head, tmp_path):
    """One step on 8 examples logs the same loss and takes the same step as 4 accumulated micro-batches of 2."""
    data = Dataset.from_list([example(head, seed) for seed in range(8)])
    start = model_of(SINKHORN, head)
    losses, weights = [], []
    for size, steps in ((8, 1), (2, 4)):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            tmp_path / f"{steps}",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=0.01,
            optim="sgd",
            max_grad_norm=0,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.train()
        losses.append(float(trainer.state.log_history[0]["loss"]))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights[0], torch.cat([p.detach().flatten() for p in start.parameters()]))


@pytest.mark.parametrize(
    ("head", "is_causal"),
    [(head, is_causal) for head in HEADS for is_causal in (False, True) if (head, is_causal) != ("ForMaskedLM", True)],
)
def test_loss_equals_its_definition(head, is_causal):
    model = randomize(head_class(head)(tiny_config(["dense", "dot_product"], is_causal=is_causal))).eval()
    batch = {name: torch.tensor([example(head, s)[name] for s in range(3)]) for name in example(head, 0)}
    outputs = model(**batch)
    if head == "ForQuestionAnswering":
        start = F.cross_entropy(outputs.start_logits, batch["start_positions"])
        expected = (start + F.cross_entropy(outputs.end_logits, batch["end_positions"])) / 2
    elif head == "ForCausalLM":
        expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    else:
        logits = outputs.logits.flatten(0, -2)
        expected = F.cross_entropy(logits, batch["labels"].flatten())
    torch.testing.assert_close(outputs.loss, expected)
    assert model(**batch, return_dict=False)[0] == outputs.loss


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", 3, torch.tensor([0, 2]), F.cross_entropy),
        ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), F.binary_cross_entropy_with_logits),
        ("regression", 1, torch.tensor([0.5, -1.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
        ("regression", 2, torch.tensor([[0.5, -1.0], [0.1, 0.2]]), F.mse_loss),
    ],
)
def test_sequence_classification_problems(problem, num_labels, labels, loss):
    config = tiny_config(num_labels=num_labels, problem_type=problem)
    model = randomize(synkhorn.SynthesizerForSequenceClassification(config)).eval()
    outputs = model(random_ids(2, 9), labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))
    if problem == "regression" and num_labels > 1:
        return  # Transformers takes float targets of several labels for a multi-label problem
    config = tiny_config(num_labels=num_labels)
    inferred = randomize(synkhorn.SynthesizerForSequenceClassification(config)).eval()
    torch.testing.assert_close(inferred(random_ids(2, 9), labels=labels).loss, outputs.loss)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_equals_its_definition(pooling):
    model = randomize(synkhorn.SynthesizerForSequenceClassification(tiny_config(classifier_pooling=pooling))).eval()
    ids = random_ids(1, 11)
    states = model.model(ids).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    torch.testing.assert_close(model.classifier(pooled), model(ids).logits[0])


def test_multiple_choice_reads_each_choice_by_itself():
    model = randomize(synkhorn.SynthesizerForMultipleChoice(tiny_config())).eval()
    ids, mask = random_ids(4, 11).view(2, 2, 11), padding(4, 11, "hole").view(2, 2, 11)
    logits = model(ids, attention_mask=mask).logits
    for row, choice in ((0, 1), (1, 0), (1, 1)):
        alone = model(ids[row, choice, mask[row, choice].bool()][None, None]).logits
        torch.testing.assert_close(logits[row, choice], alone[0, 0], atol=1e-5, rtol=1e-5)


def test_position_ids_are_read_where_they_are_given():
    model = randomize(synkhorn.SynthesizerModel(tiny_config())).eval()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    counted = (mask.cumsum(-1) - 1).clamp(min=0)
    given = model(ids, attention_mask=mask, position_ids=counted).last_hidden_state
    default = model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(given[mask.bool()], default[mask.bool()])
    reversed_ids = torch.arange(10, -1, -1)[None]
    moved = model(ids, position_ids=reversed_ids).last_hidden_state
    assert (moved - model(ids).last_hidden_state).abs().max() > 0.01


def test_token_types_are_added():
    model = randomize(synkhorn.SynthesizerModel(tiny_config(type_vocab_size=2))).eval()
    ids = random_ids(2, 7)
    zeros = model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state
    torch.testing.assert_close(model(ids).last_hidden_state, zeros)
    ones = model(ids, token_type_ids=torch.ones_like(ids)).last_hidden_state
    assert (ones - zeros).abs().max() > 0.01
    # tokenizers of BERT give zeros
    model = randomize(synkhorn.SynthesizerModel(tiny_config())).eval()
    zeros = model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state
    assert torch.equal(zeros, model(ids).last_hidden_state)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", [tiny_config(["factorized_dense", "random"]), tiny_sinkhorn_config()], ids=family_of)
def test_activation_checkpointing_changes_no_gradient(config):
    """Noise in training too: the layer that is computed again draws it again."""
    model = randomize(head_class("ForCausalLM", config.model_type.title())(config)).train()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_positions_are_those_of_the_papers():
    model = synkhorn.SynthesizerModel(tiny_config(position_embedding_type="sinusoidal"))
    zeros = torch.zeros(1, 13, 18)
    embedded = model.embeddings(None, zeros, torch.arange(13)[None], None)[0]
    for position, feature in [(0, 0), (0, 1), (5, 0), (5, 7), (12, 16)]:
        angle = position / 10000 ** (feature // 2 * 2 / 18)
        expected = math.cos(angle) if feature % 2 else math.sin(angle)
        assert embedded[position, feature].item() == pytest.approx(expected, abs=1e-6)


def test_rotary_positions_are_relative_and_read_from_the_caller():
    config = tiny_config(["dot_product"], position_embedding_type="rope")
    model = randomize(synkhorn.SynthesizerModel(config)).eval()
    ids = random_ids(2, 11)
    default = model(ids).last_hidden_state
    shifted = model(ids, position_ids=torch.arange(40, 51)[None]).last_hidden_state
    torch.testing.assert_close(shifted, default, atol=1e-4, rtol=1e-4)
    stretched = model(ids, position_ids=3 * torch.arange(11)[None]).last_hidden_state
    assert (stretched - default).abs().max() > 0.01


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 5])], ids=str)
def test_logits_to_keep(keep):
    model = randomize(synkhorn.SynthesizerForCausalLM(tiny_config())).eval()
    ids = random_ids(2, 9)
    logits = model(ids).logits
    expected = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, expected)


def test_hidden_dropout_drops_each_residual_branch_and_the_embeddings():
    config = tiny_config(hidden_dropout=0.5, num_hidden_layers=1)
    for silenced in ("attention", "feed_forward"):
        layer = randomize(synkhorn.SynthesizerModel(config)).train().layers[0]
        for parameter in getattr(layer, silenced).output.parameters():
            torch.nn.init.zeros_(parameter)
        x = torch.randn(1, 9, 18)
        # what is left is the other branch, about half of it dropped
        assert 0.3 < (layer(x, rows_of(x)) == x).float().mean() < 0.7
    embeddings = synkhorn.SynthesizerModel(config).train().embeddings
    dropped = embeddings(random_ids(1, 9), None, torch.arange(9)[None], None)
    assert 0.3 < (dropped == 0).float().mean() < 0.7


def test_the_trainer_smooths_shifted_labels(tmp_path):
    model = randomize(synkhorn.SynthesizerForCausalLM(tiny_config())).eval()
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=1e-6, use_cpu=True, report_to=[])
    ids = random_ids(4, 9)
    smoothed = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(smoothed, model(ids, labels=ids).loss, atol=1e-4, rtol=1e-4)


def test_bad_input_is_named():
    model = synkhorn.SynthesizerModel(tiny_config())
    ids = random_ids(2, 5)
    for arguments, message in [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ids, "inputs_embeds": torch.randn(2, 5, 18)}, "exactly one"),
        ({"input_ids": ids, "attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask has shape"),
        ({"input_ids": ids, "token_type_ids": ids}, r"token_type_ids holds \d+, but type_vocab_size=0"),
        ({"input_ids": ids, "position_ids": torch.arange(5)}, r"shape \(5,\), but must be \(2, 5\) or \(1, 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**arguments)
    for head in ("ForSequenceClassification", "ForMultipleChoice"):
        with pytest.raises(ValueError, match="classifier_pooling='cls' with is_causal=True"):
            head_class(head)(tiny_config(classifier_pooling="cls", is_causal=True))


@torch.no_grad()
def test_types_that_are_all_zero_carry_nothing():
    model, ids = randomize(synkhorn.SinkhornModel(tiny_sinkhorn_config())).eval(), random_ids(2, 5)
    expected, types = model(ids).last_hidden_state, torch.zeros_like(ids)
    one = types.clone()
    one[1, 3] = 1
    assert torch.equal(model(ids, token_type_ids=types).last_hidden_state, expected)
    with pytest.raises(ValueError, match="holds 1, but type_vocab_size=0"):
        model(ids, token_type_ids=one)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, token_type_ids=types).last_hidden_state, expected)
    with pytest.raises(RuntimeError, match="holds types other than 0"):
        compiled(ids, token_type_ids=one)
    with_types = synkhorn.SinkhornModel(tiny_sinkhorn_config(type_vocab_size=2))
    with pytest.raises(ValueError, match="token_type_ids holds 2, but type_vocab_size=2"):
        with_types(ids, token_type_ids=one * 2)


def test_sdpa_says_that_it_returns_no_weights(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # another test of the process may have been told already
    logging.Logger.warning_once.cache_clear()
    model = synkhorn.SynthesizerModel(tiny_config(["random"]))
    with caplog.at_level("WARNING"):
        assert model(random_ids(1, 5), output_attentions=True).attentions == ()
    assert "attn_implementation='sdpa'" in caplog.text


def test_sparse_predictions_are_those_of_the_labelled_tokens_in_order():
    ids, mask = random_ids(3, 11), padding(3, 11, "right").flip(0)
    labels = torch.where(torch.rand(3, 11, generator=torch.Generator().manual_seed(0)) < 0.3, ids, -100)
    sparse, dense = (
        randomize(synkhorn.SynthesizerForMaskedLM(tiny_config(sparse_prediction=x))).train() for x in (True, False)
    )
    outputs, expected = (model(ids, attention_mask=mask, labels=labels) for model in (sparse, dense))
    torch.testing.assert_close(outputs.logits, expected.logits[(labels != -100) & mask.bool()])
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert sparse(ids, attention_mask=mask).logits.shape == (3, 11, 40)
    assert sparse(ids, labels=torch.full_like(ids, -100)).logits.shape == (0, 40)
    assert sparse.eval()(ids, attention_mask=mask, labels=labels).logits.shape == (3, 11, 40)


def test_gradients_of_recorded_states_and_weights_where_nothing_is_padded():
    for config in (tiny_config(["dense"]), tiny_sinkhorn_config()):
        config._attn_implementation = "eager"
        model = transformers.AutoModel.from_config(config)
        outputs = model(random_ids(2, 9), output_hidden_states=True, output_attentions=True)
        recorded = [outputs.hidden_states[0], outputs.hidden_states[1], outputs.attentions[0]]
        for tensor in recorded:
            tensor.retain_grad()
        outputs.last_hidden_state.square().sum().backward()
        assert all(tensor.grad.abs().max() > 0 for tensor in recorded)
