"""Another text for a text: translation, summaries, headlines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from synkhorn import FAMILIES

from ..measuring.metrics import Scores, generation_scores
from .task import FinetuneTask, Row, auto_use
from .trainer import FinetuneTrainer


@dataclass
class Seq2SeqArguments:
    """The columns of the data, and the decoder."""

    _argument_group_name = "sequence to sequence"

    text_column: str = field(default="text", metadata={"help": "Column of the text that is read."})
    target_column: str = field(default="target", metadata={"help": "Column of the text that is to be written."})
    max_target_length: int = field(default=128, metadata={"help": "Tokens of a target that are learned, and written."})
    decoder_family: str | None = field(
        default=None,
        metadata={"help": "Family of a new model's decoder; that of its encoder if not given.", "choices": FAMILIES},
    )
    decoder_config: str | None = field(
        default=None,
        metadata={
            "help": "Fields of the new decoder's configuration, as --model_config, which is for the encoder and, where "
            "both are of one family, for the decoder too."
        },
    )

    def __post_init__(self):
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length={self.max_target_length} must be at least 1")


class Collator(DataCollatorForSeq2Seq):
    """Makes a batch whose decoder has a mask too, so that nothing is computed for the padding of targets."""

    def __call__(self, features, return_tensors=None):
        batch = super().__call__(features, return_tensors)
        if "labels" in batch:
            batch["decoder_attention_mask"] = (batch["labels"] != self.label_pad_token_id).long()
        return batch


class Seq2SeqFinetuneTrainer(Seq2SeqTrainer, FinetuneTrainer):
    """A `Seq2SeqTrainer` that keeps the order of what it predicts."""

    def __init__(self, model: Any, *arguments: Any, **options: Any):
        # it shifts the targets, where labels are smoothed
        options["data_collator"].model = model
        super().__init__(model, *arguments, **options)


class Seq2Seq(FinetuneTask):
    """
    Another text for a text, such as its translation or its headline, by an encoder and a decoder. A new model has one
    of each; a checkpoint is one that this task or `EncoderDecoderModel` made. Predictions are generated: greedily, or
    with `--generation_num_beams` beams.
    """

    arguments_class = Seq2SeqArguments
    auto_class = AutoModelForSeq2SeqLM
    training_class = Seq2SeqTrainingArguments
    trainer_class = Seq2SeqFinetuneTrainer
    defaults = {"predict_with_generate": True}
    most_resamples = 100
    pipeline_tag = "text2text-generation"
    best_metric = "chrf"

    @classmethod
    def columns(cls, arguments: Seq2SeqArguments) -> list[str]:
        return [arguments.text_column, arguments.target_column]

    @classmethod
    def texts(cls, arguments: Seq2SeqArguments, examples: Dataset) -> Iterator[str]:
        return chain(examples[arguments.text_column], examples[arguments.target_column])

    def encode(self, batch, indices):
        sources, targets = batch[self.arguments.text_column], batch[self.arguments.target_column]
        encoded = self.tokenizer(sources, truncation=True, max_length=self.max_length, return_token_type_ids=False)
        labels = self.tokenizer(text_target=targets, return_token_type_ids=False)["input_ids"]
        # the decoder starts with the token before a text
        first = self.tokenizer.cls_token_id
        labels = [ids[ids[:1] == [first] :] for ids in labels]
        limit = self.arguments.max_target_length
        was_cut = [len(ids) > limit for ids in labels]
        return {
            **encoded,
            "labels": [ids[: limit - 1] + ids[-1:] if cut else ids for ids, cut in zip(labels, was_cut, strict=True)],
            "length": [len(ids) for ids in encoded["input_ids"]],
            "example": indices,
            "cut": [
                cut or len(ids) == self.max_length and len(self.tokenizer(source)["input_ids"]) > self.max_length
                for source, ids, cut in zip(sources, encoded["input_ids"], was_cut, strict=True)
            ],
        }

    def collator(self) -> Any:
        return Collator(self.tokenizer)

    def written(self, ids: np.ndarray) -> list[str]:
        """The texts of ids, (N, L), of which those below 0 are none."""
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        sources, targets = examples[self.arguments.text_column], examples[self.arguments.target_column]
        return [
            {"text": source, "prediction": text, "target": target}
            for source, text, target in zip(sources, self.written(outputs), targets, strict=True)
        ]

    def measure(self, rows: Sequence[Row]) -> Scores:
        return generation_scores([row["prediction"] for row in rows], [row["target"] for row in rows])

    def use(self, model_name: str) -> str:
        call = (
            'inputs = tokenizer("A text.", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"
        )
        return auto_use(self.auto_class, model_name, call)
