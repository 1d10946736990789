"""A tag for every word, such as the names of people and places, or parts of speech."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from datasets import Dataset, List
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from ..measuring.metrics import Scores, entity_scores
from .task import FinetuneTask, Row, label_fields, label_ids, label_names
from .windows import window_stride


@dataclass
class TokenClassificationArguments:
    """The columns of the data."""

    _argument_group_name = "token classification"

    words_column: str = field(default="tokens", metadata={"help": "Column of the list of words."})
    tags_column: str = field(default="ner_tags", metadata={"help": "Column of the list of tags, one a word."})
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the windows over a document longer than the model share; a quarter of its length "
            "if not given."
        },
    )


class TokenClassification(FinetuneTask):
    """
    A tag for every word. Words are joined by spaces and tokenized as running text, as the model reads it elsewhere; a
    word's tag is that of its first token. A document longer than the model is read in windows that overlap, and a word
    counts in the first window that it begins in.
    """

    arguments_class = TokenClassificationArguments
    auto_class = AutoModelForTokenClassification
    pipeline_tag = "token-classification"
    best_metric = "f1"
    cuts_documents = False

    @classmethod
    def columns(cls, arguments: TokenClassificationArguments) -> list[str]:
        return [arguments.words_column, arguments.tags_column]

    @classmethod
    def texts(cls, arguments: TokenClassificationArguments, examples: Dataset) -> Iterator[str]:
        return (" ".join(words) for words in examples[arguments.words_column])

    @classmethod
    def config_fields(cls, arguments: TokenClassificationArguments, train: Dataset) -> dict[str, Any]:
        column = arguments.tags_column
        return label_fields(label_names(column, tag_feature(train, column), chain.from_iterable(train[column])))

    def collator(self) -> Any:
        return DataCollatorForTokenClassification(self.tokenizer)

    def reduce(self, logits, labels):
        return logits.argmax(-1)

    def prepare(self, examples: Dataset, split: str, num_proc: int | None = None) -> Dataset:
        self.tag_feature = tag_feature(examples, self.arguments.tags_column)
        return super().prepare(examples, split, num_proc)

    def encode(self, batch, indices):
        documents, tags = batch[self.arguments.words_column], batch[self.arguments.tags_column]
        column = self.arguments.tags_column
        for index, words, word_tags in zip(indices, documents, tags, strict=True):
            if len(words) != len(word_tags):
                raise ValueError(
                    f"row {index} has {len(words)} words in column {self.arguments.words_column!r} but "
                    f"{len(word_tags)} tags in column {column!r}: it must have one a word"
                )
        ids = [label_ids(column, self.tag_feature, word_tags, self.labels) for word_tags in tags]
        special = self.tokenizer.num_special_tokens_to_add()
        encoded = self.tokenizer(
            [" ".join(words) for words in documents],
            truncation=True,
            max_length=self.max_length,
            stride=window_stride(self.arguments.stride, self.max_length, special),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        samples, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        next_word = [0] * len(documents)
        tagged = []
        for sample, spans in zip(samples, offsets, strict=True):
            # a byte-level token may bring along the space before its word
            word_at = [word for word, text in enumerate(documents[sample]) for word in [word] * len(text) + [-1]]
            row = []
            for start, end in spans:
                word = next((word for word in word_at[start:end] if word >= 0), -1)
                row.append(word if word >= next_word[sample] else -1)
                next_word[sample] = max(next_word[sample], word + 1)
            tagged.append(row)
        return {
            **encoded,
            "labels": [
                [-100 if word < 0 else ids[sample][word] for word in row]
                for sample, row in zip(samples, tagged, strict=True)
            ],
            # the word whose tag is read at a token, or -1
            "tagged": tagged,
            "length": [len(row) for row in tagged],
            "example": [indices[sample] for sample in samples],
            "cut": [False] * len(tagged),
        }

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        # a word of which the tokenizer leaves nothing has no token to be tagged at
        outside = "O" if "O" in self.labels else self.labels[0]
        predictions = [[outside] * len(words) for words in examples[self.arguments.words_column]]
        for example, words, tags in zip(inputs["example"], inputs["tagged"], outputs, strict=True):
            for word, tag in zip(words, tags, strict=False):
                if word >= 0:
                    predictions[example][word] = self.labels[tag]
        column = self.arguments.tags_column
        feature = tag_feature(examples, column)
        return [
            {
                "words": example[self.arguments.words_column],
                "prediction": prediction,
                "tags": [self.labels[label] for label in label_ids(column, feature, example[column], self.labels)],
            }
            for example, prediction in zip(examples, predictions, strict=True)
        ]

    def measure(self, rows: Sequence[Row]) -> Scores:
        return entity_scores([row["prediction"] for row in rows], [row["tags"] for row in rows])


def tag_feature(examples: Dataset, column: str) -> Any:
    """
    The kind of the tags in a column.

    Raises:
        ValueError: if the column holds no lists.
    """
    feature = examples.features[column]
    if not isinstance(feature, List):
        raise ValueError(f"column {column!r} must hold a list of tags, one a word, in every row; it holds {feature}")
    return feature.feature
