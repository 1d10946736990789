"""The tasks of `compare` whose sequences are drawn."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ..data.associative_recall import multi_query_recall
from ..data.listops import TOKENS, nested_list
from ..data.synthetic_tasks import (
    IGNORED,
    chance_of_copy,
    chance_of_sort,
    copy_across_blocks,
    sort_sequence,
)
from ..measuring.metrics import classification_scores
from .experiment import Experiment

# sequences of a split, and of a seed of the training split, of which there are up to 256: a generator of PyTorch reads
# no more than 32 bits of its seed
OF_A_SPLIT, OF_A_SEED = 2**30, 2**22


class Drawn(torch.utils.data.Dataset):
    """Sequences that are drawn when they are read: the same one at an index, whoever asks."""

    def __init__(self, draw: Callable[..., tuple[torch.Tensor, torch.Tensor]], count: int, first: int):
        self.draw, self.count, self.first = draw, count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= self.count:
            raise IndexError(index)
        ids, labels = self.draw(generator=torch.Generator().manual_seed(self.first + index))
        return {"input_ids": ids, "labels": labels}


class SyntheticTask(Experiment):
    """
    Sequences that are drawn.

    Args:
        draw: (sizes, generator) -> ids (L,), and labels (L,) or a class.
        sizes: of the sequences; what begins with `test_` is that of the test split. A list of `segments`, each of which
            has sizes of its own, makes sequences of any of them.
        evaluation_size: sequences of the validation and of the test split.
    """

    draw: ClassVar[Callable[..., tuple[torch.Tensor, torch.Tensor]]]

    def __init__(self, data_dir: str | None = None, evaluation_size: int = 500, **sizes: Any):
        self.evaluation_size = evaluation_size
        self.sizes = {name: value for name, value in sizes.items() if not name.startswith("test_")}
        of_test = {name.removeprefix("test_"): value for name, value in sizes.items() if name.startswith("test_")}
        self.test_sizes = self.sizes | of_test
        self.fields(0, None)
        Drawn(partial(self.draw_one, self.test_sizes), 1, 0)[0]

    def draw_one(self, sizes: dict[str, Any], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence, of any of the segments."""
        own = {name: value for name, value in sizes.items() if name != "segments"}
        if segments := sizes.get("segments"):
            own |= segments[int(torch.randint(len(segments), (), generator=generator))]
        return type(self).draw(generator=generator, **own)

    def rows(self, split, part, tokenizer, max_length, count, seed):
        sizes = self.test_sizes if split == "test" else self.sizes
        place = ("train", "validation", "test").index(split)
        count = count if split == "train" else self.evaluation_size
        # each seed trains on other sequences, and all are tested on the same ones
        first = place * OF_A_SPLIT + (seed % 256 * OF_A_SEED if split == "train" else 0)
        if count > OF_A_SEED:
            raise ValueError(
                f"budget: {count:,} sequences are drawn, more than the {OF_A_SEED:,} of a seed: take fewer"
            )
        return Drawn(partial(self.draw_one, sizes), count, first)

    def lengths(self, rows, part):
        return [len(row["input_ids"]) for row in rows]


class TokenTask(SyntheticTask):
    """A label at some tokens: the accuracy of all of them, and the share of sequences without a wrong one."""

    # how many positions before its label a model answers
    shift: ClassVar[int] = 0

    def fields(self, part, tokenizer):
        vocab_size = self.sizes["vocab_size"]
        return {"vocab_size": vocab_size, "num_labels": vocab_size, "pad_token_id": None}

    def measure(self, said, right):
        said, right = said[:, : said.shape[1] - self.shift], right[:, self.shift :]
        counted = right != IGNORED
        hits = said == right
        return {
            "accuracy": float(hits[counted].mean()),
            "exact_match": float((hits | ~counted).all(-1).mean()),
        }


class Copying(TokenTask):
    """Causal: repeat the block some blocks before."""

    auto_class, shift = AutoModelForCausalLM, 1
    draw = staticmethod(lambda **sizes: tuple(x[0] for x in copy_across_blocks(batch_size=1, **sizes)))

    @property
    def chance(self):
        return chance_of_copy(self.sizes["vocab_size"])


class Sorting(TokenTask):
    """Bidirectional: emit the tokens in ascending order."""

    auto_class = AutoModelForTokenClassification
    draw = staticmethod(lambda **sizes: tuple(x[0] for x in sort_sequence(batch_size=1, **sizes)))

    @property
    def chance(self):
        return chance_of_sort(self.test_sizes["length"], self.sizes["vocab_size"])


class AssociativeRecall(TokenTask):
    """Causal: the value of a key that was seen before."""

    auto_class, shift = AutoModelForCausalLM, 1
    draw = staticmethod(multi_query_recall)


class ListOps(SyntheticTask):
    """The value of nested lists, one of ten classes."""

    auto_class = AutoModelForSequenceClassification
    draw = staticmethod(nested_list)

    def fields(self, part, tokenizer):
        return {"vocab_size": len(TOKENS), "num_labels": 10, "pad_token_id": None}

    def measure(self, said, right):
        return classification_scores(said, right)
