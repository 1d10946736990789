"""A cache changes nothing, whatever is added to it, cut off, copied or reordered, for any configuration and padding."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import VOCABULARY, configs, implementations, mask_of, optional, padded_rows, seeds
from transformers import DynamicCache, StaticCache
from variants import model_of

# what is done to a cache, and an amount or a choice
STEPS = st.tuples(st.sampled_from(["add", "add", "add", "crop", "copy", "choose", "reset"]), st.integers(0, 2**10))


pytestmark = pytest.mark.usefixtures("small_tiles")


class Text:
    """What a batch consists of so far: its tokens, their mask, and a cache that holds the first `length` of them."""

    def __init__(self, model, mask: torch.Tensor, is_static: bool, seed: int):
        self.model, self.mask, self.length = model, mask, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.ids = self.draw_ids(mask.shape)
        size = model.config.max_position_embeddings
        self.cache = StaticCache(model.config, size) if is_static else DynamicCache(config=model.config)

    def draw_ids(self, shape) -> torch.Tensor:
        return torch.randint(0, VOCABULARY, shape, generator=self.generator)

    def add(self, amount: int) -> None:
        """Give the model the next tokens, and compare what it says with what it says of the whole text at once."""
        left = self.mask.shape[1] - self.length
        if not left:
            return
        start, self.length = self.length, self.length + 1 + amount % left
        ids, mask = self.ids[:, : self.length], self.mask[:, : self.length]
        logits = self.model(ids[:, start:], attention_mask=optional(mask), past_key_values=self.cache).logits
        expected = self.model(ids, attention_mask=optional(mask), use_cache=False).logits[:, start:]
        valid = mask[:, start:]
        torch.testing.assert_close(logits[valid], expected[valid], atol=1e-9, rtol=1e-9)
        assert int(self.cache.get_seq_length()) == self.length

    def crop(self, amount: int) -> None:
        """Cut off the last tokens: the text goes on with others."""
        if self.length:
            removed = amount % (self.length + 1)
            self.cache.crop(-removed)
            self.length -= removed
            self.ids[:, self.length :] = self.draw_ids(self.ids[:, self.length :].shape)

    def copy(self, amount: int) -> None:
        """Go on with a copy, after something was added to the original."""
        twin = copy.deepcopy(self)
        self.add(amount)
        self.__dict__ = twin.__dict__

    def choose(self, amount: int) -> None:
        """Keep some of the rows, in another order and more than once, as beams are."""
        if self.length and isinstance(self.cache, DynamicCache):
            rows = torch.tensor([amount >> shift for shift in range(len(self.ids))]) % len(self.ids)
            if amount % 3:
                getattr(self.cache, "reorder_cache" if amount % 3 == 1 else "batch_select_indices")(rows)
            else:
                rows = torch.arange(len(self.ids)).repeat_interleave(2)
                self.cache.batch_repeat_interleave(2)
            self.ids, self.mask = self.ids[rows], self.mask[rows]

    def reset(self, amount: int) -> None:
        """Start another text with the same cache."""
        self.cache.reset()
        self.length = 0
        self.ids = self.draw_ids(self.ids.shape)


@given(st.data(), configs(is_causal=True, longest=16), seeds, implementations, st.booleans())
@torch.no_grad()
def test_a_cache_says_what_the_whole_text_says(data, config, seed, implementation, is_static):
    rows = data.draw(padded_rows(config.max_position_embeddings))
    model = model_of(config, "ForCausalLM", seed).double()
    model.set_attn_implementation(implementation)
    text = Text(model, mask_of(rows, config.max_position_embeddings), is_static, seed)
    for step, amount in data.draw(st.lists(STEPS, min_size=1, max_size=9)):
        getattr(text, step)(amount)
