"""The right one of several continuations or answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

from ..measuring.metrics import Scores, classification_scores
from .task import FinetuneTask, Row, auto_use, likeliest


@dataclass
class MultipleChoiceArguments:
    """The columns of the data, by default those of SWAG."""

    _argument_group_name = "multiple choice"

    context_column: str = field(default="sent1", metadata={"help": "Column of the text that each choice is read with."})
    question_column: str | None = field(
        default="sent2",
        metadata={"help": "Column of a question, or the beginning of each choice; `none` where there is none."},
    )
    choice_columns: list[str] = field(
        default_factory=lambda: ["ending0", "ending1", "ending2", "ending3"],
        metadata={"help": "Columns of the choices, or one column that holds a list of them."},
    )
    label_column: str = field(default="label", metadata={"help": "Column of the number of the right choice, from 0."})

    def __post_init__(self):
        if self.question_column == "none":
            self.question_column = None


class MultipleChoice(FinetuneTask):
    """The right one of several continuations or answers."""

    arguments_class = MultipleChoiceArguments
    auto_class = AutoModelForMultipleChoice
    pipeline_tag = "multiple-choice"
    best_metric = "accuracy"

    @classmethod
    def columns(cls, arguments: MultipleChoiceArguments) -> list[str]:
        question = [] if arguments.question_column is None else [arguments.question_column]
        return [arguments.context_column, *question, *arguments.choice_columns, arguments.label_column]

    @classmethod
    def texts(cls, arguments: MultipleChoiceArguments, examples: Dataset) -> Iterator[str]:
        for column in cls.columns(arguments)[:-1]:
            for value in examples[column]:
                yield from value if isinstance(value, list) else [value]

    def collator(self) -> Any:
        return DataCollatorForMultipleChoice(self.tokenizer)

    def choices(self, examples) -> list[list[str]]:
        """
        The choices of each example.

        Raises:
            ValueError: if two examples have different numbers of choices, or one fewer than two.
        """
        columns = [examples[column] for column in self.arguments.choice_columns]
        choices = list(columns[0]) if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
        counts = {len(row) if isinstance(row, list) else 1 for row in choices}
        if len(counts) > 1 or min(counts) < 2:
            raise ValueError(
                f"choice_columns={self.arguments.choice_columns} hold {sorted(counts)} choices: every row needs the "
                "same number, at least 2"
            )
        return choices

    def encode(self, batch, indices):
        choices = self.choices(batch)
        contexts = batch[self.arguments.context_column]
        if self.arguments.question_column is not None:
            questions = batch[self.arguments.question_column]
            seconds = [[f"{question} {text}" for text in row] for question, row in zip(questions, choices, strict=True)]
        else:
            seconds = choices
        count = len(choices[0])
        labels = [self.choice_number(value, count) for value in batch[self.arguments.label_column]]
        encoded = self.tokenizer(
            [context for context in contexts for _ in range(count)],
            list(chain.from_iterable(seconds)),
            truncation=True,
            max_length=self.max_length,
        )
        rows = [slice(start, start + count) for start in range(0, len(contexts) * count, count)]
        return {
            **{name: [values[row] for row in rows] for name, values in encoded.items()},
            "labels": labels,
            "length": [sum(map(len, encoded["input_ids"][row])) for row in rows],
            "example": indices,
            "cut": [any(encoding.overflowing for encoding in encoded.encodings[row]) for row in rows],
        }

    def choice_number(self, value: Any, count: int) -> int:
        """
        The number of the right choice.

        Raises:
            ValueError: if there is no such choice.
        """
        if str(value) not in map(str, range(count)):
            raise ValueError(
                f"the label {value!r} in column {self.arguments.label_column!r} is out of range: it must be 0 to "
                f"{count - 1}, as there are {count} choices"
            )
        return int(value)

    def use(self, model_name: str) -> str:
        return auto_use(
            self.auto_class,
            model_name,
            'inputs = tokenizer(["A text."] * 2, ["One end.", "Another."], padding=True, return_tensors="pt")\n'
            "outputs = model(**{name: tensor[None] for name, tensor in inputs.items()})\n"
            "print(outputs.logits.argmax(-1))  # the number of the choice",
        )

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        rows = []
        for logits, label, texts in zip(outputs, inputs["labels"], self.choices(examples), strict=True):
            prediction, probability = likeliest(logits)
            rows.append(
                {"prediction": prediction, "text": texts[prediction], "probability": probability, "label": label}
            )
        return rows

    def baseline(self, train: Dataset, inputs: Dataset) -> Scores:
        guess = np.bincount(train["labels"]).argmax()
        return self.measure([{"prediction": guess, "label": label} for label in inputs["labels"]])

    def measure(self, rows: Sequence[Row]) -> Scores:
        scores = classification_scores([row["prediction"] for row in rows], [row["label"] for row in rows])
        return {"accuracy": scores["accuracy"]}
