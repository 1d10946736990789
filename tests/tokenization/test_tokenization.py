"""Tokenizers give back what they were given, and reload without custom code."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from variants import tiny_config

from synkhorn import SynthesizerConfig, SynthesizerForSequenceClassification
from synkhorn.scripts.training.models import ModelArguments, load_model
from synkhorn.tokenization.tokenization_synkhorn import byte_tokenizer, token_fields, train_tokenizer

TEXTS = ["the cat sat on the mat", "der Hund saß auf der Matte", "猫坐在垫子上", "a\n\tb  c", "🙂🙃"] * 20
TOKENIZERS = {"bytes": byte_tokenizer(), "bpe": train_tokenizer(TEXTS, vocab_size=300, show_progress=False)}
SPECIAL = TOKENIZERS["bytes"].all_special_tokens


def spells_no_special_token(text: str) -> bool:
    return not any(token in text for token in SPECIAL)


# any text that UTF-8 can hold: no lone surrogates
UNICODE = st.text(st.characters(exclude_categories=["Cs"])).filter(spells_no_special_token)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=UNICODE)
@settings(max_examples=500, deadline=None)
def test_round_trip_on_random_unicode(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@given(text=UNICODE)
@settings(max_examples=500, deadline=None)
def test_byte_ids_are_the_bytes(text):
    assert TOKENIZERS["bytes"](text, add_special_tokens=False).input_ids == list(text.encode())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_that_spells_a_special_token(name):
    tokenizer, text = TOKENIZERS[name], "a <mask> or </s>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.mask_token_id in ids and tokenizer.decode(ids) == text
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("is_causal", [False, True])
def test_templates_and_padding(is_causal):
    tokenizer = byte_tokenizer(model_max_length=6, is_causal=is_causal)
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    batch = tokenizer(["ab", "abcdefgh"], padding=True, truncation=True)
    if is_causal:
        assert batch.input_ids == [[pad, pad, pad, start, 97, 98], [start, *range(97, 102)]]
    else:
        assert batch.input_ids == [[start, 97, 98, end, pad, pad], [start, *range(97, 101), end]]
        assert tokenizer("a", "b").input_ids == [start, 97, end, 98, end]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_special_tokens_are_those_the_models_expect():
    for tokenizer in TOKENIZERS.values():
        fields = token_fields(tokenizer)
        config = SynthesizerConfig(**fields)
        assert config.vocab_size == len(tokenizer)
        assert config.mask_token_id == tokenizer.mask_token_id is not None
        assert len({config.pad_token_id, config.bos_token_id, config.eos_token_id, config.mask_token_id}) == 4
        assert (config.cls_token_id, config.sep_token_id) == (config.bos_token_id, config.eos_token_id)


def test_training_merges_what_is_frequent():
    assert len(TOKENIZERS["bpe"]) == 300
    assert len(TOKENIZERS["bpe"].tokenize("the cat")) < len("the cat")


def test_trains_from_batches_and_generators():
    from_batches = train_tokenizer(iter([TEXTS[:50], TEXTS[50:]]), vocab_size=300, show_progress=False)
    assert from_batches.get_vocab() == TOKENIZERS["bpe"].get_vocab()


def test_bad_training_is_named():
    with pytest.raises(ValueError, match="vocab_size=100.*260"):
        train_tokenizer(TEXTS, vocab_size=100)
    with pytest.raises(ValueError, match="texts is empty"):
        train_tokenizer([])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reloads_without_custom_code(name, tmp_path):
    tokenizer = TOKENIZERS[name]
    tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast and loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("Grüße <mask>", "世界").input_ids == tokenizer("Grüße <mask>", "世界").input_ids
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    code = (
        "import sys; sys.modules['synkhorn'] = None; from transformers import AutoTokenizer; "
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); print(t('Grüße').input_ids)"
    )
    assert python("-c", code, tmp_path).strip() == str(tokenizer("Grüße").input_ids)


def test_the_tokenizer_of_a_training_cuts_where_the_model_does(tmp_path):
    SynthesizerForSequenceClassification(tiny_config(**token_fields(TOKENIZERS["bytes"]))).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer(model_max_length=9)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    load_model(AutoModelForSequenceClassification, arguments, tokenizer, max_length=9)
    assert len(tokenizer("a" * 99, truncation=True).input_ids) == tokenizer.model_max_length == 13
