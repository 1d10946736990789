"""One class for a document, or for a pair of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from ..metrics import Scores, classification_scores
from .task import FinetuneTask, Row, label_ids, label_names, likeliest


@dataclass
class ClassificationArguments:
    """The columns of the data."""

    _argument_group_name = "classification"

    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column of a second text, where pairs are classified."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of the class: a name or a number."})


class Classification(FinetuneTask):
    """One class for a document, or for a pair of texts."""

    arguments_class = ClassificationArguments
    auto_class = AutoModelForSequenceClassification
    pipeline_tag = "text-classification"
    best_metric = "accuracy"

    @classmethod
    def columns(cls, arguments: ClassificationArguments) -> list[str]:
        pair = [] if arguments.text_pair_column is None else [arguments.text_pair_column]
        return [arguments.text_column, *pair, arguments.label_column]

    @classmethod
    def texts(cls, arguments: ClassificationArguments, examples: Dataset) -> Iterator[str]:
        return chain.from_iterable(examples[column] for column in cls.columns(arguments)[:-1])

    @classmethod
    def find_labels(cls, arguments: ClassificationArguments, train: Dataset) -> list[str]:
        column = arguments.label_column
        return label_names(column, train.features[column], train[column])

    def prepare(self, examples: Dataset, split: str, num_proc: int | None = None) -> Dataset:
        self.label_feature = examples.features[self.arguments.label_column]
        return super().prepare(examples, split, num_proc)

    def encode(self, batch, indices):
        texts = [batch[column] for column in self.columns(self.arguments)[:-1]]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        labels = batch[self.arguments.label_column]
        return {
            **encoded,
            "labels": label_ids(self.arguments.label_column, self.label_feature, labels, self.labels),
            "length": [len(ids) for ids in encoded["input_ids"]],
            "example": indices,
            "cut": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        rows = []
        for logits, label in zip(outputs, inputs["labels"], strict=True):
            prediction, probability = likeliest(logits)
            rows.append(
                {"prediction": self.labels[prediction], "probability": probability, "label": self.labels[label]}
            )
        return rows

    def measure(self, rows: Sequence[Row]) -> Scores:
        return classification_scores([row["prediction"] for row in rows], [row["label"] for row in rows])
