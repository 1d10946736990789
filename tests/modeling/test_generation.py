"""`generate()`: every strategy of Transformers gives with a cache what it gives without one."""

import copy
import warnings

import pytest
import torch
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from variants import CAUSAL_VARIANTS, SOME_CAUSAL, causal_model, padding, random_ids

# a prompt of 9 tokens and 15 more: across four edges of blocks in every row
PROMPT, NEW = 9, 15


def generate(model, ids, mask=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(
        ids, attention_mask=mask, pad_token_id=0, **{"max_new_tokens": NEW, "do_sample": False} | kwargs
    )


@pytest.mark.parametrize("name", CAUSAL_VARIANTS)
def test_greedy_search_is_the_argmax_of_each_row_alone(name):
    model = causal_model(name)
    ids, mask = random_ids(3, PROMPT), padding(3, PROMPT, "left")
    generated = generate(model, ids, mask)
    for row in range(3):
        tokens = ids[row][mask[row].bool()]
        for _ in range(NEW):
            tokens = torch.cat((tokens, model(tokens[None], use_cache=False).logits[0, -1:].argmax(-1)))
        assert generated[row, -NEW:].tolist() == tokens[-NEW:].tolist()


STRATEGIES = {
    "static": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "chunked prefill, static": {"prefill_chunk_size": 4, "cache_implementation": "static"},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 7, "temperature": 1.3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beams, static": {"num_beams": 3, "cache_implementation": "static"},
    "beam sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("name", SOME_CAUSAL)
def test_a_cache_changes_no_strategy(name):
    model, ids, mask = causal_model(name), random_ids(3, PROMPT), padding(3, PROMPT, "left")
    for strategy, arguments in STRATEGIES.items():
        recomputed = {
            key: arguments[key] for key in arguments if key not in ("cache_implementation", "prefill_chunk_size")
        }
        expected = generate(model, ids, mask, use_cache=False, **recomputed)
        assert torch.equal(generate(model, ids, mask, **arguments), expected), strategy


@pytest.mark.parametrize("name", SOME_CAUSAL)
def test_assisted_generation_is_greedy_search(name):
    model, ids = causal_model(name), random_ids(1, PROMPT)
    expected = generate(model, ids, use_cache=False)
    # a draft that is mostly right, and one that is mostly wrong
    draft = copy.deepcopy(model)
    with torch.no_grad():
        draft.model.layers[1].feed_forward.output.weight.mul_(0.9)
    drafts = {
        "itself": {"assistant_model": copy.deepcopy(model)},
        "a similar model": {"assistant_model": draft},
        "another family": {"assistant_model": causal_model("sinkhorn-default")},
        "its first layer": {"assistant_early_exit": 1},
        "the prompt": {"prompt_lookup_num_tokens": 5},
    }
    for assistant, arguments in drafts.items():
        assert torch.equal(generate(model, ids, **arguments), expected), assistant


@pytest.mark.parametrize("name", SOME_CAUSAL)
def test_goes_on_from_a_returned_cache_and_from_embeddings(name):
    model, ids, mask = causal_model(name), random_ids(3, PROMPT), padding(3, PROMPT, "left")
    expected = generate(model, ids, mask, use_cache=False)
    first = generate(model, ids, mask, return_dict_in_generate=True, max_new_tokens=6)
    seen = torch.cat((mask, mask.new_ones(3, 6)), dim=1)
    rest = generate(model, first.sequences, seen, past_key_values=first.past_key_values, max_new_tokens=NEW - 6)
    assert torch.equal(rest, expected)
    embedded = model.get_input_embeddings()(ids)
    torch.manual_seed(0)
    outputs = model.generate(
        inputs_embeds=embedded, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    assert torch.equal(outputs, expected[:, PROMPT:])


class Ban(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores[:, 5:20] = -torch.inf
        return scores


class StopAt(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 17)


@pytest.mark.parametrize("name", SOME_CAUSAL[1:4:2])
def test_processors_and_criteria_are_heard(name):
    model, ids = causal_model(name), random_ids(2, PROMPT)
    arguments = {
        "logits_processor": LogitsProcessorList([Ban()]),
        "stopping_criteria": StoppingCriteriaList([StopAt()]),
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
    }
    generated = generate(model, ids, **arguments)
    assert generated.shape == (2, 17) and not ((generated[:, PROMPT:] >= 5) & (generated[:, PROMPT:] < 20)).any()
    assert torch.equal(generated, generate(model, ids, use_cache=False, **arguments))


@pytest.mark.parametrize(("name", "side"), [(SOME_CAUSAL[1], "none"), (SOME_CAUSAL[3], "left")])
def test_compiles_decoding_as_one_graph(name, side):
    model, ids, mask = causal_model(name), random_ids(3, PROMPT), padding(3, PROMPT, side)
    expected = generate(model, ids, mask, use_cache=False)
    torch._dynamo.reset()
    compile_config = CompileConfig(fullgraph=True, dynamic=False, mode="default", backend="aot_eager")
    compile_config._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    generated = generate(model, ids, mask, cache_implementation="static", compile_config=compile_config)
    assert torch.equal(generated, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("side", "gradients"), [("none", True), ("left", False)])
def test_compiled_steps_with_a_dynamic_cache(side, gradients):
    model = causal_model("sinkhorn-default", num_hidden_layers=1)
    ids, mask = random_ids(3, PROMPT + 3), padding(3, PROMPT + 3, side)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(gradients):
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        cache = model(ids[:, :PROMPT], attention_mask=None if mask is None else mask[:, :PROMPT]).past_key_values
        # to the end of a block and over it
        for i in range(PROMPT, PROMPT + 3):
            seen = None if mask is None else mask[:, : i + 1]
            logits = compiled(ids[:, i : i + 1], attention_mask=seen, past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SOME_CAUSAL[1:4:2])
@torch.no_grad()
def test_half_precision_and_autocast(name):
    dtype = torch.bfloat16
    ids, mask = random_ids(3, PROMPT + NEW), padding(3, PROMPT + NEW, "left")
    exact = causal_model(name)(ids, attention_mask=mask, use_cache=False).logits
    half = causal_model(name).to(dtype)
    for model, autocast in ((causal_model(name), True), (half, False)):
        with torch.autocast("cpu", dtype, enabled=autocast):
            cache, logits = None, []
            for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, PROMPT + NEW))]:
                outputs = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
                cache = outputs.past_key_values
                logits.append(outputs.logits)
            assert generate(model, ids[:, :PROMPT], mask[:, :PROMPT]).shape == (3, PROMPT + NEW)
            whole = model(ids, attention_mask=mask, use_cache=False).logits
        logits, valid = torch.cat(logits, dim=1).float(), mask.bool()
        # as far from the exact logits as the full forward is, give or take
        error, allowed = (logits - exact)[valid].std(), (whole.float() - exact)[valid].std()
        assert error < 2 * allowed < 0.2 * exact[valid].std()


def test_too_many_tokens_are_refused_before_any_work():
    for name in ("synthesizer-dense", "sinkhorn-default"):
        model = causal_model(name)
        model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
        for arguments in ({"max_new_tokens": 21}, {"max_new_tokens": None, "max_length": 30}):
            with pytest.raises(
                ValueError, match=r"prompt of 9 tokens and max_new_tokens=21 .*max_position_embeddings=29.*20"
            ):
                generate(model, random_ids(2, 9), **arguments)
    model = causal_model("sinkhorn-default")
    assert generate(model, random_ids(2, 9), max_new_tokens=20).shape == (2, 29)
    with warnings.catch_warnings():
        # without a length Transformers generates 20 tokens, or what the model can hold
        warnings.simplefilter("ignore")
        assert model.generate(random_ids(2, 12), pad_token_id=0).shape == (2, 29)
