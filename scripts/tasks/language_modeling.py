"""How well a causal model predicts documents: perplexity, and bits per byte, which compares any two tokenizers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForTokenClassification

from ..measuring.metrics import Scores, nats_and_counts
from .task import Row, Task
from .windows import window_stride


@dataclass
class LanguageModelingArguments:
    """The columns of the data."""

    _argument_group_name = "language modeling"

    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    sample_by: str = field(
        default="line",
        metadata={
            "help": "What is a document in local .txt files: each `line`, each `paragraph`, or the whole `document`.",
            "choices": ["line", "paragraph", "document"],
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of context, at least, for what is predicted in a document longer than the model; a quarter "
            "of its length if not given."
        },
    )


class LanguageModeling(Task):
    """
    The perplexity of a causal model, and its bits per byte. Each token of a document is predicted once, from those
    before it; a document longer than the model is read in windows that overlap by `stride` tokens of context. Where the
    tokenizer puts no token before a text, its first token is not predicted, and its bytes not counted.
    """

    arguments_class = LanguageModelingArguments
    auto_class = AutoModelForCausalLM

    @classmethod
    def columns(cls, arguments: LanguageModelingArguments) -> list[str]:
        return [arguments.text_column]

    @classmethod
    def texts(cls, arguments: LanguageModelingArguments, examples: Dataset) -> Iterator[str]:
        return iter(examples[arguments.text_column])

    def collator(self) -> Any:
        return DataCollatorForTokenClassification(self.tokenizer)

    def reduce(self, logits, labels):
        return nats_and_counts(logits, labels, is_causal=True, special_ids=())

    def encode(self, batch, indices):
        texts = batch[self.arguments.text_column]
        special = self.tokenizer.num_special_tokens_to_add()
        # without a token before a text, the first of a window is predicted by the window before it only
        stride = max(window_stride(self.arguments.stride, self.max_length, special), 0 if special else 1)
        encoded = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        samples, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        is_special = encoded.pop("special_tokens_mask")
        labels, sizes = [], []
        for window, ids in enumerate(encoded["input_ids"]):
            own = [position for position, special in enumerate(is_special[window]) if not special]
            is_first = not window or samples[window] != samples[window - 1]
            # the first of a row is predicted by nothing
            predicted = {position for position in (own if is_first else own[stride:]) if position}
            labels.append([token if position in predicted else -100 for position, token in enumerate(ids)])
            is_predicted = is_first and predicted
            text = texts[samples[window]][offsets[window][min(predicted)][0] :] if is_predicted else ""
            sizes.append(len(text.encode()))
        return {
            **encoded,
            "labels": labels,
            # of a document, with its first window
            "bytes": sizes,
            "length": [len(ids) for ids in labels],
            "example": [indices[sample] for sample in samples],
            "cut": [False] * len(labels),
        }

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        rows: list[Row] = [{"nats": 0.0, "tokens": 0, "bytes": 0} for _ in range(len(examples))]
        for example, size, (nats, tokens, _) in zip(inputs["example"], inputs["bytes"], outputs, strict=True):
            rows[example]["nats"] += float(nats)
            rows[example]["tokens"] += int(tokens)
            rows[example]["bytes"] += size
        return rows

    def measure(self, rows: Sequence[Row]) -> Scores:
        nats, tokens, size = (sum(row[name] for row in rows) for name in ("nats", "tokens", "bytes"))
        if not tokens:
            raise ValueError("the texts have no token to predict: give longer ones")
        return {"perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size}
