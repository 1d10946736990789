"""Decoders that attend to an encoder: alone, cached, in `EncoderDecoderModel`, and beside models of Transformers."""

import copy

import pytest
import torch
from processes import run
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from variants import SOME_CAUSAL, causal_model, config_of, model_of, padding, random_ids, randomize

from synkhorn import SynkhornEncoderDecoderModel

CROSS = {"add_cross_attention": True, "cross_attention_hidden_size": 10}
SIDES = ("none", "left", "right", "hole")


def decoder_of(name: str, **fields) -> torch.nn.Module:
    return causal_model(name, **CROSS | fields).double()


def states_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 10, dtype=torch.float64, generator=generator)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("name", SOME_CAUSAL)
@pytest.mark.parametrize("side", SIDES)
def test_rows_are_those_alone_whatever_their_padding_in_both_forms(name, side):
    """Values and all gradients, those of the encoder's states too; nothing is seen of the encoder's padding."""
    model = decoder_of(name)
    ids, mask = random_ids(4, 9), padding(4, 9, side)
    encoder_mask = padding(4, 7, side).flip(0) if side != "none" else None
    found = []
    for form in ("sdpa", "eager", "alone"):
        model.set_attn_implementation("sdpa" if form == "alone" else form)
        states = states_of(4, 7).requires_grad_()
        model.zero_grad()
        rows = []
        if form == "alone":
            for row in range(4):
                own = slice(None) if mask is None else mask[row].bool()
                seen = slice(None) if encoder_mask is None else encoder_mask[row].bool()
                rows.append(model(ids[row : row + 1, own], encoder_hidden_states=states[row : row + 1, seen]).logits[0])
        else:
            # what stands at masked places is not there
            given = states if encoder_mask is None else states + 1e3 * (1 - encoder_mask)[..., None]
            outputs = model(ids, attention_mask=mask, encoder_hidden_states=given, encoder_attention_mask=encoder_mask)
            real = [slice(None)] * 4 if mask is None else list(mask.bool())
            rows = [x[places] for x, places in zip(outputs.logits, real, strict=True)]
        torch.cat(rows).sin().sum().backward()
        found.append((torch.cat(rows), states.grad, gradients(model)))
    for values, grad, grads in found[:2]:
        assert_near(values, found[2][0])
        assert_near(grad, found[2][1])
        for key, expected in found[2][2].items():
            torch.testing.assert_close(grads[key], expected, atol=1e-9, rtol=1e-9, msg=key)


def test_the_literal_form_is_the_formula():
    model = decoder_of("synthesizer-dense")
    attention = model.model.layers[0].cross_attention
    states, tokens = states_of(1, 5), torch.randn(1, 4, 18, dtype=torch.float64)
    caught = []
    hook = attention.register_forward_hook(lambda module, given, result: caught.append((given[0], result[0])))
    model(random_ids(1, 4), encoder_hidden_states=states)
    hook.remove()
    tokens, found = caught[0]
    q, k, v = (f(x)[0].unflatten(-1, (3, 6)) for f, x in (
        (attention.query, tokens), (attention.key, states), (attention.value, states)))  # fmt: skip
    expected = []
    for head in range(3):
        weights = (q[:, head] @ k[:, head].T / 6**0.5).softmax(-1)
        expected.append(weights @ v[:, head])
    assert_near(found[0], attention.output(torch.stack(expected, dim=1).flatten(1)))


@pytest.mark.parametrize("name", SOME_CAUSAL)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_cached_decoder_is_an_uncached_one(name, implementation):
    model = decoder_of(name)
    model.set_attn_implementation(implementation)
    ids, mask, encoder_mask = random_ids(3, 11), padding(3, 11, "left"), padding(3, 6, "right").flip(0)
    given = {"encoder_hidden_states": states_of(3, 6), "encoder_attention_mask": encoder_mask}
    eager = implementation == "eager"
    whole = model(ids, attention_mask=mask, use_cache=False, output_attentions=eager, **given)
    cache, logits, weights = None, [], []
    for start, stop in ((0, 4), (4, 5), (5, 9), (9, 11)):
        outputs = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache,
                        output_attentions=eager, **given)  # fmt: skip
        cache = outputs.past_key_values
        logits.append(outputs.logits)
        weights.append(outputs.cross_attentions)
    real = mask.bool()
    assert_near(torch.cat(logits, 1)[real], whole.logits[real])
    assert cache.get_seq_length() == 11 and set(cache.is_updated) == {0, 1}
    if eager:
        for layer, expected in enumerate(whole.cross_attentions):
            assert (
                expected.shape == (3, 3, 11, 6)
                and not expected[~encoder_mask.bool()[:, None, None].expand_as(expected)].any()
            )
            assert_near(torch.cat([part[layer] for part in weights], 2), expected)
            assert_near(expected.sum(-1)[:, 0][real], torch.ones(int(real.sum()), dtype=torch.float64))


def test_a_decoder_without_an_encoder_is_one_and_a_wrong_encoder_is_named():
    model, plain = decoder_of("sinkhorn-default"), causal_model("sinkhorn-default").double()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_near(model(random_ids(2, 7)).logits, plain(random_ids(2, 7)).logits)
    for arguments, message in (
        (
            {"encoder_hidden_states": states_of(3, 5)},
            r"has shape \(3, 5, 10\), but must be \(batch=2, length, width=10",
        ),
        ({"encoder_hidden_states": states_of(2, 5)[..., :4]}, r"has shape \(2, 5, 4\)"),
        (
            {"encoder_hidden_states": states_of(2, 5), "encoder_attention_mask": torch.ones(2, 4)},
            r"mask has shape \(2, 4",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(random_ids(2, 7), **arguments)
    with pytest.raises(ValueError, match="add_cross_attention=False"):
        plain(random_ids(2, 7), encoder_hidden_states=states_of(2, 5))
    with pytest.raises(ValueError, match="with packed input: give one text in each row"):
        model(
            random_ids(1, 7), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), encoder_hidden_states=states_of(1, 5)
        )


BERT = {"vocab_size": 40, "hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 29}
GPT2 = {"vocab_size": 40, "n_embd": 18, "n_layer": 2, "n_head": 3, "n_positions": 29, "add_cross_attention": True}
ENCODERS = {
    "synthesizer": lambda: model_of(config_of(["random", "dot_product"], max_position_embeddings=29)),
    "sinkhorn": lambda: model_of(config_of({}, max_position_embeddings=29)),
    "bert": lambda: randomize(BertModel(BertConfig(**BERT))).eval(),
}
DECODERS = {
    "synthesizer": lambda: causal_model("synthesizer-random+dot_product", add_cross_attention=True),
    "sinkhorn": lambda: causal_model("sinkhorn-default", add_cross_attention=True),
    "gpt2": lambda: randomize(GPT2LMHeadModel(GPT2Config(**GPT2))).eval(),
}
PAIRS = [("synthesizer", "sinkhorn"), ("sinkhorn", "synthesizer"), ("sinkhorn", "sinkhorn"), ("bert", "sinkhorn"),
         ("sinkhorn", "gpt2")]  # fmt: skip


def pair_of(encoder: str, decoder: str, kind: type[EncoderDecoderModel] = EncoderDecoderModel) -> EncoderDecoderModel:
    model = kind(encoder=ENCODERS[encoder](), decoder=DECODERS[decoder]()).eval()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, None
    return model


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_encoder_decoder_models_train_generate_and_load_again(encoder, decoder, tmp_path):
    model = pair_of(encoder, decoder)
    ids, mask, labels = random_ids(3, 12), padding(3, 12, "right"), random_ids(3, 8, seed=1)
    loss = model(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    without = [name for name, x in model.named_parameters() if x.grad is None or not x.grad.isfinite().all()]
    assert all("pooler" in name for name in without), without
    # greedy search, step by step, without a cache
    expected = torch.ones(3, 1, dtype=torch.long)
    for _ in range(10):
        logits = model(ids, attention_mask=mask, decoder_input_ids=expected, use_cache=False).logits
        expected = torch.cat((expected, logits[:, -1:].argmax(-1)), 1)
    for options in ({}, {"cache_implementation": "static"}):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=10, **options)
        assert torch.equal(found, expected), options
    for options in ({"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"do_sample": True, "top_k": 5}):
        with_cache, without = (
            (
                torch.manual_seed(0),
                model.generate(ids, attention_mask=mask, max_new_tokens=6, use_cache=use, **options),
            )[1]
            for use in (True, False)
        )
        assert torch.equal(with_cache, without), options
    model.save_pretrained(tmp_path)
    again = EncoderDecoderModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids, attention_mask=mask, labels=labels).loss, loss)


@pytest.mark.parametrize("encoder", ["sinkhorn", pytest.param("bert", marks=pytest.mark.slow)])
def test_one_folder_holds_both_parts_and_their_code(encoder, tmp_path):
    model = pair_of(encoder, "synthesizer", SynkhornEncoderDecoderModel)
    expected = model.generate(torch.arange(2, 20)[None], max_new_tokens=8).tolist()
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    for again in ("first", "second"):
        # what was loaded and saved again loads again
        printed = run("load_pair.py", folder, tmp_path / again, HF_HOME=str(tmp_path / "home"))
        assert printed == f"{expected}\n"
        folder = tmp_path / again
    assert isinstance(EncoderDecoderModel.from_pretrained(folder).encoder, type(model.encoder))
    assert isinstance(SynkhornEncoderDecoderModel.from_pretrained(folder).decoder, type(model.decoder))


def test_two_checkpoints_become_one_model(tmp_path):
    """`from_encoder_decoder_pretrained` gives a causal model the cross attention that it lacks."""
    ENCODERS["sinkhorn"]().save_pretrained(tmp_path / "encoder")
    causal_model("synthesizer-dense").save_pretrained(tmp_path / "decoder")
    model = SynkhornEncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    assert model.config.decoder.add_cross_attention and isinstance(model.config, EncoderDecoderConfig)
    assert model.decoder.model.layers[1].cross_attention.query.weight.std() > 0
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    assert model(random_ids(2, 9), labels=random_ids(2, 5)).loss.isfinite()


def test_activation_checkpointing_and_a_given_cache():
    model = pair_of("sinkhorn", "synthesizer").train()
    ids, labels, found = random_ids(2, 12), random_ids(2, 8), []
    for use_reentrant in (None, True, False):
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(0)
        model(ids, labels=labels, use_cache=False).loss.backward()
        found.append(gradients(model))
    for grads in found[1:]:
        assert grads.keys() == found[0].keys()
        for name, grad in found[0].items():
            torch.testing.assert_close(grads[name], grad, msg=name)
    decoder = decoder_of("sinkhorn-default")
    given = {"encoder_hidden_states": states_of(1, 5)}
    with torch.no_grad():
        outputs = decoder(random_ids(1, 6), past_key_values=DynamicCache(), **given)
    twin = copy.deepcopy(outputs.past_key_values)
    assert_near(
        *(decoder(random_ids(1, 1), past_key_values=x, **given).logits for x in (outputs.past_key_values, twin))
    )


@pytest.mark.parametrize("name", ["synthesizer-random+dot_product", "sinkhorn-default"])
def test_compiles_as_one_graph(name):
    model = decoder_of(name)
    given = {"attention_mask": padding(3, 9, "left"), "encoder_hidden_states": states_of(3, 7), "use_cache": False,
             "encoder_attention_mask": padding(3, 7, "hole").flip(0)}  # fmt: skip
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_near(compiled(random_ids(3, 9), **given).logits, model(random_ids(3, 9), **given).logits)
