"""Classifies documents or pairs of texts: one class, any number of classes, or a number (regression)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, List
from transformers import AutoModelForSequenceClassification

from ..measuring.metrics import Scores, classification_scores, multi_label_scores, regression_scores
from .task import FinetuneTask, Row, label_fields, label_ids, label_names, likeliest, pipeline_use

# characters of a text in the file of predictions
SHOWN = 200
# as in a configuration's `problem_type`
ONE_CLASS, CLASSES, NUMBER = "single_label_classification", "multi_label_classification", "regression"


@dataclass
class ClassificationArguments:
    """The columns of the data."""

    _argument_group_name = "classification"

    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column of a second text, where pairs are classified."}
    )
    label_column: str = field(
        default="label",
        metadata={"help": "Column of the class (a name or an integer), of a list of classes, or of a float."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "One class for each text, any number of classes, or a number to predict. If not given, it follows "
            "from a checkpoint that is evaluated, or from the label column: lists are several classes, floats are "
            "regression, anything else is one class.",
            "choices": [ONE_CLASS, CLASSES, NUMBER],
        },
    )


class Classification(FinetuneTask):
    """Classify documents or pairs of texts: one class, any number of classes, or a number such as a grade."""

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
    def config_fields(cls, arguments: ClassificationArguments, train: Dataset) -> dict[str, Any]:
        column = arguments.label_column
        problem, feature = problem_of(arguments, train), train.features[column]
        if problem == NUMBER:
            labels = [column]
        elif problem == CLASSES:
            labels = label_names(column, feature.feature, chain.from_iterable(train[column]))
        else:
            labels = label_names(column, feature, train[column])
            check_classes(column, labels, len(train))
        return label_fields(labels) | {"problem_type": problem}

    def prepare(self, examples: Dataset, split: str, num_proc: int | None = None) -> Dataset:
        self.problem = problem_of(self.arguments, examples)
        self.best_metric = {ONE_CLASS: "accuracy", CLASSES: "micro_f1", NUMBER: "r2"}[self.problem]
        self.guess = {ONE_CLASS: "majority class", CLASSES: "most frequent classes", NUMBER: "mean"}[self.problem]
        self.label_feature = examples.features[self.arguments.label_column]
        return super().prepare(examples, split, num_proc)

    def encode(self, batch, indices):
        texts = [batch[column] for column in self.columns(self.arguments)[:-1]]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return {
            **encoded,
            "labels": self.targets(batch[self.arguments.label_column]),
            "length": [len(ids) for ids in encoded["input_ids"]],
            "example": indices,
            "cut": [bool(encoding.overflowing) for encoding in encoded.encodings],
        }

    def targets(self, values: Sequence) -> list:
        """
        The labels that the model learns: ids of classes, 1.0 or 0.0 for each class, or numbers.

        Raises:
            ValueError: for a value that is not a class or not a number, or a class that is listed twice.
        """
        column = self.arguments.label_column
        if self.problem == ONE_CLASS:
            return label_ids(column, self.label_feature, values, self.labels)
        if self.problem == NUMBER:
            return [number(column, value) for value in values]
        for value in values:
            if value is None or len(set(value)) < len(value):
                raise ValueError(f"column {column!r} has {value}: it must list each class that the text has, once")
        found = [set(label_ids(column, self.label_feature.feature, value, self.labels)) for value in values]
        return [[float(label in row) for label in range(len(self.labels))] for row in found]

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        row = {ONE_CLASS: self.class_row, CLASSES: self.classes_row, NUMBER: number_row}[self.problem]
        texts = (text[:SHOWN] for text in examples[self.arguments.text_column])
        rows = (row(logits, label) for logits, label in zip(outputs, inputs["labels"], strict=True))
        return [{"text": text} | own for text, own in zip(texts, rows, strict=True)]

    def class_row(self, logits: np.ndarray, label: int) -> Row:
        prediction, probability = likeliest(logits)
        return {"prediction": self.labels[prediction], "probability": probability, "label": self.labels[label]}

    def classes_row(self, logits: np.ndarray, targets: Sequence[float]) -> Row:
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
        named = list(zip(self.labels, probabilities.tolist(), targets, strict=True))
        return {
            "prediction": [name for name, probability, _ in named if probability > 0.5],
            "probabilities": {name: probability for name, probability, _ in named},
            "label": [name for name, _, target in named if target],
        }

    def classes(self, inputs: Dataset) -> list[str]:
        return [self.labels[label] for label in inputs["labels"]] if self.problem == ONE_CLASS else []

    def baseline(self, train: Dataset, inputs: Dataset) -> Scores:
        """The metrics of the most frequent class; of all classes that most texts have; or of the mean."""
        known, right = np.array(train["labels"]), inputs["labels"]
        guess: Any
        if self.problem == ONE_CLASS:
            guess, named = self.labels[np.bincount(known).argmax()], self.classes(inputs)
        elif self.problem == NUMBER:
            guess, named = float(known.mean()), right
        else:
            names = np.array(self.labels)
            guess = names[known.mean(0) > 0.5].tolist()
            named = [names[np.array(row) > 0].tolist() for row in right]
        return self.measure([{"prediction": guess, "label": label} for label in named])

    def use(self, model_name: str) -> str:
        return pipeline_use(self.pipeline_tag, model_name, '"A text.", truncation=True')

    def measure(self, rows: Sequence[Row]) -> Scores:
        predictions, references = [row["prediction"] for row in rows], [row["label"] for row in rows]
        if isinstance(references[0], list):
            return multi_label_scores(predictions, references)
        if isinstance(references[0], float):
            return regression_scores(predictions, references)
        return classification_scores(predictions, references)


def check_classes(column: str, labels: Sequence[str], rows: int) -> None:
    """Raise a `ValueError` unless there are classes to tell apart, and rows to learn them from."""
    if len(labels) < 2:
        raise ValueError(
            f"column {column!r} has the class {', '.join(labels)} only: a classifier needs two. Give rows of another "
            "class, or another --label_column"
        )
    if len(labels) == rows > 2:
        raise ValueError(
            f"column {column!r} has another label in each of {rows:,} training rows: is --label_column the right one?"
        )


def number_row(logits: np.ndarray, target: float) -> Row:
    """The predicted and the right number."""
    return {"prediction": float(logits[0]), "label": target}


def number(column: str, value: Any) -> float:
    """
    The number in a row's label column.

    Raises:
        ValueError: if it is not a finite number.
    """
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"the label {value!r} in column {column!r} is not a number: remove the rows without one")
    return float(value)


def problem_of(arguments: ClassificationArguments, examples: Dataset) -> str:
    """
    The `problem_type` of the arguments, or else of the kind of their label column.

    Raises:
        ValueError: if the problem does not fit the column.
    """
    feature = examples.features[arguments.label_column]
    is_list, is_float = isinstance(feature, List), getattr(feature, "dtype", "").startswith("float")
    problem = arguments.problem_type or (CLASSES if is_list else NUMBER if is_float else ONE_CLASS)
    if is_list != (problem == CLASSES):
        raise ValueError(
            f"problem_type={problem!r} does not fit column {arguments.label_column!r}, which holds {feature}: "
            f"{CLASSES} takes a list of classes in each row, and the others do not"
        )
    return problem
