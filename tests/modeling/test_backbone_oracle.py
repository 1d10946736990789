"""With dot_product alone the model is BERT (post-norm) or GPT-2 (pre-norm, causal), weight for weight."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel
from variants import padding

from synkhorn import SynthesizerConfig, SynthesizerForCausalLM, SynthesizerForMaskedLM, SynthesizerModel

SIZES = {"vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT_NAMES = {
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer": "layers",
    "attention.self.query": "attention.members.dot_product.query",
    "attention.self.key": "attention.members.dot_product.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.input",
    "output.dense": "feed_forward.output",
    "output.LayerNorm": "feed_forward_norm",
    "bert.": "model.",
    "cls.predictions.transform.dense": "mlm_head.dense",
    "cls.predictions.transform.LayerNorm": "mlm_head.norm",
    "cls.predictions.decoder": "mlm_decoder",
    "cls.predictions.bias": "mlm_decoder.bias",
}


def bert_config() -> BertConfig:
    config = BertConfig(**SIZES, intermediate_size=50, max_position_embeddings=24)
    config.initializer_range = 0.2
    return config


def our_bert_config() -> SynthesizerConfig:
    return SynthesizerConfig(
        **SIZES,
        synthesizers=["dot_product"],
        intermediate_size=50,
        max_position_embeddings=24,
        norm_first=False,
        embedding_norm=True,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )


def copy_bert(source: torch.nn.Module, target: torch.nn.Module) -> None:
    weights = {}
    for name, tensor in source.state_dict().items():
        for theirs, ours in BERT_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = tensor
    missing, unexpected = target.load_state_dict(weights, strict=False)
    assert not missing and all("pooler" in name for name in unexpected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["none", "right"])
def test_equals_bert(implementation, side):
    bert = BertModel(bert_config()).eval()
    ours = SynthesizerModel(our_bert_config()).eval()
    copy_bert(bert, ours)
    ours.set_attn_implementation(implementation)
    ids, types, mask = torch.randint(0, 61, (3, 19)), torch.randint(0, 2, (3, 19)), padding(3, 19, side)
    theirs = bert(ids, token_type_ids=types, attention_mask=mask, output_hidden_states=True)
    outputs = ours(ids, token_type_ids=types, attention_mask=mask, output_hidden_states=True)
    valid = torch.ones(3, 19, dtype=torch.bool) if mask is None else mask.bool()
    for states, expected in zip(outputs.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_equals_bert_with_its_masked_lm_head():
    bert = BertForMaskedLM(bert_config()).eval()
    torch.nn.init.normal_(bert.cls.predictions.bias)
    ours = SynthesizerForMaskedLM(our_bert_config()).eval()
    copy_bert(bert, ours)
    ids, labels = torch.randint(0, 61, (3, 19)), torch.randint(0, 61, (3, 19))
    labels[:, ::3] = -100
    theirs, outputs = bert(ids, labels=labels), ours(ids, labels=labels)
    torch.testing.assert_close(outputs.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.loss, theirs.loss, atol=1e-5, rtol=1e-5)


def gpt2_and_ours(implementation: str = "sdpa"):
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61, n_embd=36, n_layer=3, n_head=4, n_positions=24, initializer_range=0.2, eos_token_id=None
        )
    ).eval()
    ours = SynthesizerForCausalLM(
        SynthesizerConfig(
            **SIZES,
            synthesizers=["dot_product"],
            intermediate_size=144,
            max_position_embeddings=24,
            hidden_act="gelu_new",
            attn_implementation=implementation,
        )
    ).eval()
    weights = {}
    for name, tensor in gpt2.state_dict().items():
        name = name.replace("transformer.h", "model.layers").replace("transformer.ln_f", "model.norm")
        name = name.replace("transformer.wte", "model.embeddings.word_embeddings")
        name = name.replace("transformer.wpe", "model.embeddings.position_embeddings")
        name = name.replace("ln_1", "attention_norm").replace("ln_2", "feed_forward_norm")
        name = name.replace("mlp.c_fc", "feed_forward.input").replace("mlp.c_proj", "feed_forward.output")
        name = name.replace("attn.c_proj", "attention.output")
        # GPT-2 keeps its matrices transposed, and queries, keys and values in one
        tensor = tensor.T if tensor.dim() == 2 and ".layers." in name else tensor
        if "attn.c_attn" in name:
            parts = ("attention.members.dot_product.query", "attention.members.dot_product.key", "attention.value")
            for part, chunk in zip(parts, tensor.chunk(3), strict=True):
                weights[name.replace("attn.c_attn", part)] = chunk
        else:
            weights[name] = tensor
    ours.load_state_dict(weights)
    return gpt2, ours


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["none", "right", "hole"])
def test_equals_gpt2(implementation, side):
    gpt2, ours = gpt2_and_ours(implementation)
    ids, mask = torch.randint(0, 61, (3, 19)), padding(3, 19, side)
    # where GPT-2 is told so, it counts valid tokens too
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    theirs = gpt2(ids, attention_mask=mask, position_ids=positions, labels=ids, output_hidden_states=True)
    outputs = ours(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    valid = torch.ones(3, 19, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(outputs.logits[valid], theirs.logits[valid], atol=1e-5, rtol=1e-5)
    for states, expected in zip(outputs.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)
    if side == "none":
        torch.testing.assert_close(outputs.loss, theirs.loss, atol=1e-5, rtol=1e-5)


def test_generates_as_gpt2_does_from_left_padded_prompts():
    gpt2, ours = gpt2_and_ours()
    ids, mask = torch.randint(0, 61, (3, 9)), padding(3, 9, "left")
    arguments = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert ours.generate(ids, **arguments).tolist() == gpt2.generate(ids, **arguments).tolist()
