"""A byte-level tokenizer without training, and byte-pair encoding trained from any texts."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, START, END, MASK = "<pad>", "<s>", "</s>", "<mask>"
SPECIAL_TOKENS = (PAD, START, END, MASK)


def byte_characters() -> list[str]:
    """The character that stands for each byte, 0 to 255, in GPT-2's byte-level alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def byte_tokenizer(model_max_length: int = 512, is_causal: bool = False) -> PreTrainedTokenizerFast:
    """
    A tokenizer whose ids 0 to 255 are the bytes of the text in UTF-8, followed by `<pad>`, `<s>`, `</s>` and `<mask>`.

    It needs no training, and decoding gives back exactly the text that was encoded.

    Args:
        model_max_length: tokens at which `truncation=True` cuts: no more than the model's `max_position_embeddings`.
        is_causal: `<s> text` for a language model to continue, in place of `<s> text </s>`.
    """
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return _finish(tokenizer, model_max_length, is_causal)


def train_tokenizer(
    texts: Iterable[str] | Iterable[list[str]],
    vocab_size: int = 8192,
    model_max_length: int = 512,
    is_causal: bool = False,
    min_frequency: int = 2,
    show_progress: bool = True,
) -> PreTrainedTokenizerFast:
    """
    Train byte-level byte-pair encoding, GPT-2's, which no text leaves without tokens.

    Args:
        texts: any iterable of texts, or of lists of texts, such as batches of a streamed dataset.
        vocab_size: number of tokens with the 256 bytes and the four special tokens, which come first.
        model_max_length: tokens at which `truncation=True` cuts: no more than the model's `max_position_embeddings`.
        is_causal: `<s> text` for a language model to continue, in place of `<s> text </s>`.
        min_frequency: how often a pair must occur to be merged.
        show_progress: whether to show progress bars.

    Raises:
        ValueError: if `vocab_size` has no room for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"need at least {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=byte_characters(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(_not_empty(texts), trainer)
    return _finish(tokenizer, model_max_length, is_causal)


def token_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a configuration that follow from a tokenizer: `vocab_size` and the special token ids."""
    names = ("pad", "bos", "eos", "cls", "sep", "mask")
    return {"vocab_size": len(tokenizer)} | {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names
    }


def _not_empty(texts: Iterable) -> Iterator:
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("texts is empty: a tokenizer is trained on at least one text")
    yield from chain([first], texts)


def _finish(tokenizer: Tokenizer, model_max_length: int, is_causal: bool) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    special = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    if is_causal:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", pair=f"{START} $A $B", special_tokens=special
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", pair=f"{START} $A {END} $B {END}", special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        cls_token=START,
        sep_token=END,
        mask_token=MASK,
        padding_side="left" if is_causal else "right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
