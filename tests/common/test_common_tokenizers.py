"""Transformers' own tests of tokenizers, for the byte-level and the trained one."""

import shutil
import tempfile
import unittest

from library import TokenizerTesterMixin
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from synkhorn import byte_tokenizer, train_tokenizer

TEXTS = ["This is the first sentence.", "This is the second one, with numbers: 12 3.", "Hello, the world is fine."] * 9


# the bytes of a text, with a token in the place of each `<s>` that it spells
FIRST, *PARTS = TokenizerTesterMixin.integration_test_input_string.encode().split(b"<s>")
IDS = [*FIRST, *(index for part in PARTS for index in (257, *part))]


class CommonTests(TokenizerTesterMixin):
    """A subclass makes its `tokenizer`, which every test then loads from a folder."""

    tokenizer_class = rust_tokenizer_class = PreTrainedTokenizerFast
    test_tokenizer_from_extractor = False

    @classmethod
    def setUpClass(cls):
        folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, folder)
        cls.tokenizer().save_pretrained(folder)
        cls.from_pretrained_id = [folder]
        super().setUpClass()


class ByteTokenizerTest(CommonTests, unittest.TestCase):
    integration_expected_decoded_text = TokenizerTesterMixin.integration_test_input_string
    integration_expected_token_ids = IDS
    integration_expected_tokens = ["<s>" if index == 257 else bytes_to_unicode()[index] for index in IDS]

    @classmethod
    def tokenizer(cls):
        return byte_tokenizer()


class CausalByteTokenizerTest(CommonTests, unittest.TestCase):
    @classmethod
    def tokenizer(cls):
        return byte_tokenizer(is_causal=True)


class TrainedTokenizerTest(CommonTests, unittest.TestCase):
    @classmethod
    def tokenizer(cls):
        return train_tokenizer(TEXTS, vocab_size=320, show_progress=False)
