"""The tasks of `compare`: which rows a model learns from, and how what it says of others is measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from sklearn.model_selection import StratifiedKFold
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    EvalPrediction,
    Trainer,
)

from synkhorn import token_fields

from ..data.associative_recall import multi_query_recall
from ..data.brown import load_brown
from ..data.chinese_reviews import load_chinese_reviews
from ..data.kernel_docs import load_kernel_docs
from ..data.listops import TOKENS, nested_list
from ..data.reviews import SPLIT_SEED, load_reviews
from ..data.synthetic_tasks import IGNORED, chance_of_copy, chance_of_sort, copy_across_blocks, sort_sequence
from ..measuring.metrics import Scores, classification_scores
from ..tasks.classification import Classification, ClassificationArguments
from ..tasks.trainer import FinetuneTrainer
from .language_modeling import LanguageModelTrainer, as_rows, measures

SOURCES: dict[str, Callable[[str | None], Dataset | DatasetDict]] = {
    "reviews": lambda data_dir: load_reviews(),
    "brown": load_brown,
    "kernel_docs": load_kernel_docs,
    "chinese_reviews": load_chinese_reviews,
}
FOLDS = 5
# sequences of a split, and of a seed of the training split, of which there are up to 256: a generator of PyTorch reads
# no more than 32 bits of its seed
OF_A_SPLIT, OF_A_SEED = 2**30, 2**22


class Experiment(ABC):
    """What a task of a comparison is."""

    auto_class: ClassVar[Any]
    # what a learning rate is chosen by
    metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True
    length_unit: ClassVar[str] = "tokens"
    # what a guess without reading earns, where that is known
    chance: float | None = None

    def part(self, seed: int) -> int:
        """Which of several splits of the data a seed has."""
        return 0

    def examples(self, part: int) -> dict[str, Dataset]:
        """The documents of the three splits, with their labels."""
        raise ValueError("baseline=tfidf classifies texts: leave it out, since the sequences of this task have none")

    def texts(self, part: int) -> Iterator[str]:
        """What a tokenizer is trained on; nothing where a task has ids of its own."""
        return iter(())

    @abstractmethod
    def fields(self, part: int, tokenizer: Any) -> dict[str, Any]:
        """The fields of a configuration that follow from the task."""

    @abstractmethod
    def rows(self, split: str, part: int, tokenizer: Any, max_length: int, count: int, seed: int) -> Any:
        """The inputs of `train` (`count` of them, where they are drawn), `validation` or `test`."""

    @abstractmethod
    def lengths(self, rows: Any, part: int) -> list[int]:
        """How long each row of the test split is, before it is cut, in `length_unit`."""

    @abstractmethod
    def measure(self, said: Any, right: Any) -> Scores:
        """The metrics of what models said of some rows, as `kept` of their logits."""

    def trainer(self, model: Any, training: Any, train: Any, validation: Any, tokenizer: Any) -> Trainer:
        """What trains a model."""
        return FinetuneTrainer(
            model,
            training,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            data_collator=None if tokenizer else collated,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            compute_metrics=lambda outputs: self.measure(outputs.predictions, outputs.label_ids),
        )


class TextTask(Experiment):
    """
    A task on the texts of a source. Documents without a test split of their own are dealt into five folds, one a seed.

    Args:
        source: one of `SOURCES`.
        validation_size: rows, or share, of the rest that learning rates are chosen on.
        train_size: rows to train on; all if not given.
        data_dir: folder of unpacked packages.
    """

    def __init__(
        self, source: str, validation_size: float = 0.1, train_size: int | None = None, data_dir: str | None = None
    ):
        if source not in SOURCES:
            raise ValueError(f"task.source={source!r} is unknown: choose one of {', '.join(SOURCES)}")
        self.source, self.validation_size, self.train_size = source, validation_size, train_size
        self.loaded = SOURCES[source](data_dir)
        self.examples = cache(self.examples)  # type: ignore[method-assign]

    def part(self, seed):
        return 0 if isinstance(self.loaded, DatasetDict) else seed % FOLDS

    def examples(self, part):
        if isinstance(self.loaded, DatasetDict):
            rest, test = self.loaded["train"], self.loaded["test"]
        else:
            folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SPLIT_SEED)
            chosen = list(folds.split(self.loaded["label"], self.loaded["label"]))[part]
            rest, test = (self.loaded.select(indices) for indices in chosen)
        held_out = rest.train_test_split(self.validation_size, seed=SPLIT_SEED, stratify_by_column="label")
        train = held_out["train"]
        if self.train_size is not None:
            train = train.shuffle(seed=SPLIT_SEED).select(range(min(self.train_size, len(train))))
        return {"train": train, "validation": held_out["test"], "test": test}

    def texts(self, part):
        return iter(self.examples(part)["train"]["text"])


class TextClassification(TextTask):
    """The class of a document: all of it, or as many tokens of it as an entrant reads."""

    auto_class = AutoModelForSequenceClassification
    length_unit = "characters"
    arguments = ClassificationArguments()

    def fields(self, part, tokenizer):
        return token_fields(tokenizer) | Classification.config_fields(self.arguments, self.examples(part)["train"])

    def rows(self, split, part, tokenizer, max_length, count, seed):
        examples = self.examples(part)[split]
        task = Classification(self.arguments, tokenizer, max_length, examples.features["label"].names)
        return task.prepare(examples, split)

    def lengths(self, rows, part):
        return list(map(len, self.examples(part)["test"]["text"]))

    def measure(self, said, right):
        return classification_scores(said, right)


class LanguageModeling(TextTask):
    """
    The masked tokens of texts (`objective: mlm`), or the next ones (`clm`). Texts longer than a row become several.
    """

    metric, greater_is_better = "perplexity", False

    def __init__(self, objective: str = "mlm", **options: Any):
        if objective not in ("mlm", "clm"):
            raise ValueError(f"task.objective={objective!r} is unknown: choose mlm or clm")
        super().__init__(**options)
        self.mlm_probability = 0.15 if objective == "mlm" else None
        self.auto_class = AutoModelForMaskedLM if objective == "mlm" else AutoModelForCausalLM  # type: ignore[misc]

    def fields(self, part, tokenizer):
        return token_fields(tokenizer)

    def rows(self, split, part, tokenizer, max_length, count, seed):
        return as_rows(self.examples(part)[split].select_columns("text"), "text", tokenizer, max_length, False, None)

    def lengths(self, rows, part):
        # what of a text is in a row says nothing of the text
        return [max(map(len, rows["input_ids"]))] * len(rows)

    def measure(self, said, right):
        return measures(EvalPrediction(said, right), of_bytes=False)

    def trainer(self, model, training, train, validation, tokenizer):
        training.remove_unused_columns = False
        return LanguageModelTrainer(
            model,
            training,
            tokenizer,
            self.mlm_probability,
            train_dataset=train,
            eval_dataset=validation,
        )


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


EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    "classification": TextClassification,
    "language_modeling": LanguageModeling,
    "copy": Copying,
    "sort": Sorting,
    "associative_recall": AssociativeRecall,
    "listops": ListOps,
}


def collated(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of sequences that have been drawn, with a mask where their lengths differ."""
    ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
    batch = {"input_ids": pad_sequence(ids, batch_first=True)}
    batch["labels"] = (
        pad_sequence(labels, batch_first=True, padding_value=IGNORED) if labels[0].ndim else torch.stack(labels)
    )
    if len({len(row) for row in ids}) > 1:
        batch["attention_mask"] = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return batch
