"""A masked token is not there: the same texts padded anywhere, packed in any way, and one by one are equal."""

from contextlib import ExitStack
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from comparison import assert_same
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import VOCABULARY, configs, implementations, normal, seeds
from variants import model_of

from synkhorn.modeling import (
    input_checks,
    modeling_backbone,
    modeling_synthesizer,
    rows,
    sinkhorn_kernels,
    synthesizer_kernels,
)

pytestmark = pytest.mark.usefixtures("small_tiles")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
precisions = st.sampled_from(list(TOLERANCE))
STATIC = (rows, input_checks, modeling_backbone, modeling_synthesizer, sinkhorn_kernels, synthesizer_kernels)


class Layout(NamedTuple):
    """How texts are given: `mask`, (batch, columns), is true where their tokens stand, one text after the other."""

    mask: torch.Tensor
    arguments: dict

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T, ...) -> (batch, columns, ...), other tokens between and beside them."""
        other = torch.randint(0, 2, (*self.mask.shape, *tokens.shape[1:])).to(tokens)
        return other.index_put((self.mask,), tokens)


@st.composite
def layouts(draw, lengths: list[int], longest: int, kinds: tuple[str, ...]) -> Layout:
    """Of texts of these lengths, in at most `longest` columns where they are not packed."""
    kind, count = draw(st.sampled_from(kinds)), sum(lengths)
    if kind == "positions":
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        return Layout(torch.ones(1, count, dtype=torch.bool), {"position_ids": positions})
    if kind == "cu_seq_lens":
        edges = torch.tensor([0, *lengths]).cumsum(0).int()
        named = dict.fromkeys(draw(st.sampled_from([("cu_seq_lens_q",), ("cu_seq_lens_q", "cu_seq_lens_k")])), edges)
        lengths_too = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        return Layout(torch.ones(1, count, dtype=torch.bool), named | (lengths_too if draw(st.booleans()) else {}))
    if kind == "seq_idx":
        index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        return Layout(torch.ones(1, count, dtype=torch.bool), {"seq_idx": index})
    columns = draw(st.integers(max(lengths), longest))
    mask = torch.zeros(len(lengths), columns, dtype=torch.bool)
    for row, n in enumerate(lengths):
        if kind == "holes":
            places = draw(st.permutations(range(columns)))[:n]
        else:
            start = {"left": columns - n, "right": 0, "both": draw(st.integers(0, columns - n))}[kind]
            places = list(range(start, start + n))
        mask[row, places] = True
    return Layout(mask, {"attention_mask": mask.long()})


PADDED = ("left", "right", "both", "holes")
PACKED = ("positions", "cu_seq_lens", "seq_idx")


def lengths_of_texts(config, most: int = 4) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, config.max_position_embeddings), min_size=1, max_size=most)


def static_graph() -> ExitStack:
    """As in a traced graph, no shape depends on data: every token is kept, and no kernel is run by Python."""
    stack = ExitStack()
    for module in STATIC:
        stack.enter_context(patch.object(module, "is_static", lambda: True))
    return stack


def with_gradients(model, tokens, outputs_of) -> tuple:
    """What `outputs_of` gives for the tokens, and the gradients of a fixed random sum of it: see `assert_same`."""
    model.zero_grad()
    tokens = tokens.clone().requires_grad_()
    outputs = outputs_of(tokens)
    (outputs * normal(*outputs.shape, seed=1, dtype=outputs.dtype)).sum().backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return outputs.detach(), tokens.grad, grads


@given(st.data(), configs(), seeds, implementations, precisions, st.booleans())
def test_every_layout_is_the_texts_one_by_one(data, config, seed, implementation, dtype, is_static):
    """Outputs, 0 at masked tokens, and all gradients; in the form of traced graphs too."""
    lengths, longest = data.draw(lengths_of_texts(config)), config.max_position_embeddings
    kinds = PADDED if is_static else PADDED + PACKED
    # a graph counts what is masked
    layout = data.draw(layouts(lengths, longest if is_static else longest + 3, kinds))
    model = model_of(config, seed=seed).to(dtype)
    model.set_attn_implementation(implementation)

    def together(tokens):
        with static_graph() if is_static else ExitStack():
            states = model(inputs_embeds=layout.of(tokens), **layout.arguments).last_hidden_state
        assert states.shape[:2] == layout.mask.shape and not states[~layout.mask].any()
        return states[layout.mask]

    def one_by_one(tokens):
        return torch.cat([model(inputs_embeds=x[None]).last_hidden_state[0] for x in tokens.split(lengths)])

    tokens = normal(sum(lengths), config.hidden_size, seed=seed, dtype=dtype)
    expected = with_gradients(model, tokens, one_by_one)
    assert_same(with_gradients(model, tokens, together), expected, TOLERANCE[dtype])


@given(st.data(), configs(), seeds)
def test_attentions_are_those_of_the_texts_alone(data, config, seed):
    """In the places of the input, and 0 between texts; sort matrices by text."""
    lengths = data.draw(lengths_of_texts(config))
    layout = data.draw(layouts(lengths, config.max_position_embeddings + 3, PADDED + PACKED))
    model = model_of(config, seed=seed).double()
    model.set_attn_implementation("eager")
    tokens = normal(sum(lengths), config.hidden_size, seed=seed, dtype=torch.float64)
    together = model(inputs_embeds=layout.of(tokens), **layout.arguments, output_attentions=True)
    places = layout.mask.nonzero().split(lengths)
    for text, x in enumerate(tokens.split(lengths)):
        alone = model(inputs_embeds=x[None], output_attentions=True)
        row, columns = places[text][0, 0], places[text][:, 1]
        for weights, own in zip(together.attentions, alone.attentions, strict=True):
            of_text = weights[row, :, columns]
            torch.testing.assert_close(of_text[..., columns], own[0], atol=1e-9, rtol=1e-9)
            others = torch.ones(weights.shape[-1], dtype=torch.bool).index_fill(0, columns, False)
            assert not of_text[..., others].any()
            assert not weights[row].mT[:, ~layout.mask[row]].any() and not weights[row][:, ~layout.mask[row]].any()
        for matrices, own in zip(together.get("sort_matrices", ()), alone.get("sort_matrices", ()), strict=True):
            n = own.shape[-1]
            torch.testing.assert_close(matrices[text, :, :n, :n], own[0], atol=1e-9, rtol=1e-9)


HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForCausalLM")


def labels_of(head: str, lengths: list[int], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Of a text each (sequence classification), of a token each, or the first and last tokens of answers."""

    def draw(below: int, count: int) -> torch.Tensor:
        return torch.randint(0, below, (count,), generator=generator)

    if head == "ForSequenceClassification":
        return (draw(2, len(lengths)),)
    if head == "ForQuestionAnswering":
        return tuple(torch.cat([draw(n, 1) for n in lengths]) for _ in range(2))
    labels = draw(2 if head == "ForTokenClassification" else VOCABULARY, sum(lengths))
    return (labels.masked_fill(draw(3, sum(lengths)) == 0, -100),)


@given(st.data(), st.sampled_from(HEADS), seeds, implementations, st.booleans(), st.booleans())
def test_heads_and_their_losses(data, head, seed, implementation, is_sparse, is_static):
    """A loss is the mean over all texts, or all labelled tokens; labels of masked tokens take none."""
    config = data.draw(configs(is_causal={"ForMaskedLM": False, "ForCausalLM": True}.get(head)))
    config.sparse_prediction, config.gumbel_noise = is_sparse, False
    if head == "ForSequenceClassification":
        config.classifier_pooling = data.draw(st.sampled_from(["mean", "last"] + ["cls"] * (not config.is_causal)))
    lengths = data.draw(lengths_of_texts(config))
    layout = data.draw(layouts(lengths, config.max_position_embeddings, PADDED if is_static else PADDED + PACKED))
    model = model_of(config, head, seed).double()
    model.set_attn_implementation(implementation)
    # in training mode, for sparse predictions
    model.train(is_sparse)
    names = ("start_positions", "end_positions") if head == "ForQuestionAnswering" else ("labels",)
    labels = labels_of(head, lengths, torch.Generator().manual_seed(seed))
    of_tokens = head in ("ForTokenClassification", "ForMaskedLM", "ForCausalLM")
    kept = labels[0] != -100
    counts = [1] * len(lengths)
    if of_tokens:
        # a causal model has none for a first token
        shifted = [x[1:] if head == "ForCausalLM" else x for x in kept.split(lengths)]
        counts = [int(x.sum()) for x in shifted]
        # no logits at all, where they are sparse
        assume(sum(counts) or head != "ForMaskedLM")

    def logits_of(outputs, mask):
        if head == "ForQuestionAnswering":
            both = torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
            assert (both[~mask] == torch.finfo(both.dtype).min).all()
            return both[mask]
        if head == "ForSequenceClassification" or outputs.logits.dim() == 2:
            return outputs.logits
        assert not outputs.logits[~mask].any()
        return outputs.logits[mask]

    def together(tokens):
        given = dict(zip(names, labels, strict=True))
        if of_tokens:
            given = {"labels": layout.of(labels[0])}
        elif head == "ForQuestionAnswering" and len(layout.mask) == len(lengths):
            # columns of the input
            columns = [x[:, 1] for x in layout.mask.nonzero().split(lengths)]
            given = {
                name: torch.stack([c[i] for c, i in zip(columns, x, strict=True)])
                for name, x in zip(names, labels, strict=True)
            }
        with static_graph() if is_static else ExitStack():
            outputs = model(inputs_embeds=layout.of(tokens), **layout.arguments, **given, use_cache=False)
        return outputs.loss * max(1, sum(counts)), logits_of(outputs, layout.mask)

    def one_by_one(tokens):
        loss, logits = 0.0, []
        of_texts = zip(*(x.split(lengths if of_tokens else 1) for x in labels), strict=True)
        for x, count, own in zip(tokens.split(lengths), counts, of_texts, strict=True):
            given = {name: y[None] if of_tokens else y for name, y in zip(names, own, strict=True)}
            outputs = model(inputs_embeds=x[None], **given, use_cache=False)
            loss = loss + outputs.loss * count if count else loss
            logits.append(logits_of(outputs, torch.ones(1, len(x), dtype=torch.bool)))
        return loss, torch.cat(logits)

    tokens = normal(sum(lengths), config.hidden_size, seed=seed, dtype=torch.float64)
    # Transformers takes losses in float32; the mean of no label is no number
    for index, tolerance in ((0, 1e-5), (1, 1e-9))[0 if sum(counts) else 1 :]:
        actual, expected = (
            with_gradients(model, tokens, lambda tokens, form=form, index=index: form(tokens)[index])
            for form in (together, one_by_one)
        )
        assert_same(actual, expected, tolerance)


@given(st.data(), configs(), seeds, implementations)
def test_rows_of_nothing_but_padding_are_finite_and_change_nothing(data, config, seed, implementation):
    lengths, longest = data.draw(lengths_of_texts(config)), config.max_position_embeddings
    layout = data.draw(layouts(lengths, longest, PADDED))
    model = model_of(config, seed=seed).double()
    model.set_attn_implementation(implementation)
    empty = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    mask = layout.mask & ~torch.tensor(empty)[:, None]
    embeds = layout.of(normal(sum(lengths), config.hidden_size, seed=seed, dtype=torch.float64)).requires_grad_()
    outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    expected = model(inputs_embeds=embeds, attention_mask=layout.mask).last_hidden_state
    torch.testing.assert_close(outputs[mask], expected[mask], atol=1e-9, rtol=1e-9)
    assert not outputs[~mask].any()
    outputs.sum().backward()
    assert embeds.grad.isfinite().all() and not embeds.grad[~mask].any()
    with static_graph():
        assert model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state.isfinite().all()
