"""What a task of `compare` is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from ..data.synthetic_tasks import (
    IGNORED,
)
from ..measuring.metrics import Scores
from ..tasks.trainer import FinetuneTrainer


class Experiment(ABC):
    """What a task of a comparison is."""

    auto_class: ClassVar[Any]
    # what a learning rate is chosen by
    metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True
    length_unit: ClassVar[str] = "tokens"
    training_class: ClassVar[Any] = TrainingArguments
    # what a guess without reading earns, where that is known
    chance: float | None = None

    def part(self, seed: int) -> int:
        """Which of several splits of the data a seed has."""
        return 0

    def examples(self, part: int) -> dict[str, Dataset]:
        """The documents of the three splits, with their labels."""
        raise ValueError(
            "baseline and frozen classify texts: leave them out, since the sequences of this task have none"
        )

    def texts(self, part: int) -> Iterator[str]:
        """What a tokenizer is trained on; nothing where a task has ids of its own."""
        return iter(())

    @abstractmethod
    def fields(self, part: int, tokenizer: Any) -> dict[str, Any]:
        """The fields of a configuration that follow from the task."""

    def new_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model from scratch."""
        return self.auto_class.from_config(config)

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
