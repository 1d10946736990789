"""The base classes of the tasks, and helpers for labels."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, Dataset
from datasets.fingerprint import Hasher
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainingArguments

from ..measuring.metrics import Scores
from .trainer import FinetuneTrainer

Row = dict[str, Any]
# classes that a message names
MOST_LISTED = 20


class Task(ABC):
    """
    How examples become inputs of a model, and its outputs predictions and metrics.

    Args:
        arguments: an `arguments_class`.
        tokenizer: a fast tokenizer.
        max_length: tokens that the model takes.
        labels: the classes, in the order of their ids, where the task has any.
    """

    arguments_class: ClassVar[type]
    # an Auto class
    auto_class: ClassVar[Any]
    # what predicts, and its arguments, of which some have other defaults
    trainer_class: ClassVar[Any] = FinetuneTrainer
    training_class: ClassVar[Any] = TrainingArguments
    defaults: ClassVar[dict[str, Any]] = {}
    # draws of the bootstrap that do not take too long
    most_resamples: ClassVar[int] = 10**9
    cut_notice: ClassVar[str] = (
        "documents have more than the {0.max_length:,} tokens that the model reads; the rest of each is cut off "
        "(--max_length)"
    )

    def __init__(
        self, arguments: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: list[str] | None = None
    ):
        self.arguments = arguments
        # predictions for tokens are read by position, counted from the row's first token
        tokenizer.padding_side = "right"
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.labels = labels

    @classmethod
    @abstractmethod
    def columns(cls, arguments: Any) -> list[str]:
        """The columns that the data must have."""

    @classmethod
    @abstractmethod
    def texts(cls, arguments: Any, examples: Dataset) -> Iterator[str]:
        """All texts of the data."""

    @classmethod
    def check_texts(cls, arguments: Any, splits: Mapping[str, Dataset]) -> None:
        """Raise a `ValueError` if anything but a text stands where a text must."""
        for split, examples in splits.items():
            wrong = [text for text in cls.texts(arguments, examples) if not isinstance(text, str)]
            if wrong:
                raise ValueError(
                    f"the split {split} has {wrong[0]!r} where there must be a text, {len(wrong):,} times (None: the "
                    f"field is empty): name other columns than {cls.columns(arguments)}, or remove these rows"
                )

    @abstractmethod
    def encode(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """
        A batch of examples as inputs: the model's, `length` in tokens, and `example`, the index of the row that each
        came from. `cut` tells which inputs lost text to the maximal length.
        """

    @abstractmethod
    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        """For each example a JSON row of what the model says and what is right."""

    @abstractmethod
    def measure(self, rows: Sequence[Row]) -> Scores:
        """The metrics of rows of `predict`."""

    def collator(self) -> Any:
        """Makes a batch of inputs."""
        return DataCollatorWithPadding(self.tokenizer)

    def reduce(self, logits: Any, labels: Any) -> Any:
        """The part of a batch's logits that is kept."""
        return logits

    def prepare(self, examples: Dataset, split: str, num_proc: int | None = None) -> Dataset:
        """
        All inputs of a split, from the cache of datasets where they were made before. Prints how many of its documents
        do not fit into the model.
        """
        # the same whether a tokenizer was just trained or read from a checkpoint
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        state = {name: value for name, value in vars(self).items() if name != "tokenizer"}
        inputs = examples.map(
            self.encode,
            batched=True,
            with_indices=True,
            remove_columns=examples.column_names,
            num_proc=num_proc,
            new_fingerprint=Hasher.hash((type(self), state, tokenizer, examples._fingerprint)),
            desc=f"Tokenizing {split}",
        )
        cut = len({example for example, was_cut in zip(inputs["example"], inputs["cut"], strict=True) if was_cut})
        if cut:
            share = f"{cut:,} of {len(examples):,} ({cut / len(examples):.0%})"
            print(f"{split}: {share} {self.cut_notice.format(self)}", flush=True)
        return inputs.remove_columns("cut")


class FinetuneTask(Task):
    """A task that a model is trained on."""

    # the Hub's name of the task
    pipeline_tag: ClassVar[str]
    # the metric that chooses the best checkpoint; more is better
    best_metric: str
    # the one answer of `baseline`
    guess: str = "majority class"
    # whether a document's tokens beyond the maximal length are lost
    cuts_documents: ClassVar[bool] = True

    @classmethod
    def config_fields(cls, arguments: Any, train: Dataset) -> dict[str, Any]:
        """The fields of a model's configuration that follow from the training data, such as the names of classes."""
        return {}

    def classes(self, inputs: Dataset) -> list[str]:
        """The name of each input's class, where it has one."""
        return []

    def baseline(self, train: Dataset, inputs: Dataset) -> Scores:
        """
        The metrics of always giving one answer, the likeliest in the training data; none where that says nothing.

        Args:
            train: the inputs that the model is trained on.
            inputs: those that it is measured on.
        """
        return {}

    def use(self, model_name: str) -> str:
        """Three lines of Python that use the model, for its card."""
        return pipeline_use(self.pipeline_tag, model_name, '"A text."')


def label_fields(labels: Sequence[str]) -> dict[str, dict]:
    """The fields of a configuration that name the classes."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def label_names(column: str, feature: Any, values: Iterable) -> list[str]:
    """
    The names of the classes of a column: those of its `ClassLabel`, or all values that occur, in order.

    Raises:
        ValueError: if a value is neither text nor a whole number.
    """
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    found = set(values)
    for value in found:
        if not isinstance(value, (str, int)):
            raise ValueError(
                f"the label {value!r} in column {column!r} must be text or a whole number (None: the field is empty): "
                "remove the rows without one"
            )
    return [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))]


def label_ids(column: str, feature: Any, values: Sequence, labels: Sequence[str]) -> list[int]:
    """
    The ids of labels, where `labels` has the names of the classes.

    Raises:
        ValueError: for a value that is out of range, or no class.
    """
    if isinstance(feature, ClassLabel):
        for value in values:
            if value is None or not 0 <= value < feature.num_classes:
                raise ValueError(
                    f"the label {value} in column {column!r} is out of range: it must be 0 to "
                    f"{feature.num_classes - 1}. Remove the rows without a label"
                )
        values = [feature.names[value] for value in values]
    ids = {name: index for index, name in enumerate(labels)}
    for value in values:
        if str(value) not in ids:
            listed = f"{', '.join(labels[:MOST_LISTED])}{', ...' if len(labels) > MOST_LISTED else ''}"
            raise ValueError(
                f"the label {shorten(repr(value), 60)} in column {column!r} is unknown: the classes of the training "
                f"rows are {listed}. Is it the right column (--label_column)?"
            )
    return [ids[str(value)] for value in values]


def likeliest(logits: np.ndarray) -> tuple[int, float]:
    """The likeliest class of (classes,) logits, and its probability."""
    weights = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return best, float(weights[best] / weights.sum())


def pipeline_use(pipeline_tag: str, model_name: str, call: str) -> str:
    """Three lines that use a model through a pipeline; `call` is what its parentheses hold."""
    return (
        "from transformers import pipeline\n\n# model: this folder, or its name on the Hub\n"
        f'model = pipeline("{pipeline_tag}", model="{model_name}", trust_remote_code=True)\nmodel({call})'
    )


def auto_use(auto_class: type, model_name: str, call: str) -> str:
    """Python code that loads a model for which Transformers has no pipeline, and then does `call`."""
    return (
        f"from transformers import {auto_class.__name__}, AutoTokenizer\n\n"
        "# this folder, or its name on the Hub\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{model_name}", trust_remote_code=True)\n'
        f'model = {auto_class.__name__}.from_pretrained("{model_name}", trust_remote_code=True)\n{call}'
    )
