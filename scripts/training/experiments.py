"""The tasks of `compare`: which rows a model learns from, and how what it says of others is measured."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sklearn.model_selection import StratifiedKFold
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    EvalPrediction,
    Seq2SeqTrainingArguments,
)

from synkhorn import token_fields

from ..data.brown import load_brown
from ..data.chinese_reviews import load_chinese_reviews
from ..data.kernel_docs import load_kernel_docs
from ..data.libreoffice_help import load_libreoffice_help
from ..data.news_headlines import load_news_headlines
from ..data.reviews import SPLIT_SEED, load_reviews
from ..data.synthetic_tasks import (
    letters_to_sort,
)
from ..measuring.metrics import classification_scores
from ..tasks.classification import Classification, ClassificationArguments
from ..tasks.seq2seq import Seq2Seq, Seq2SeqArguments
from .experiment import Experiment
from .language_modeling import LanguageModelTrainer, as_rows, measures
from .models import encoder_decoder
from .synthetic_experiments import AssociativeRecall, Copying, ListOps, Sorting

SOURCES: dict[str, Callable[[str | None], Dataset | DatasetDict]] = {
    "reviews": lambda data_dir: load_reviews(),
    "brown": load_brown,
    "kernel_docs": load_kernel_docs,
    "chinese_reviews": load_chinese_reviews,
    "libreoffice_help": load_libreoffice_help,
    "news_headlines": load_news_headlines,
    "letters_to_sort": lambda data_dir: DatasetDict(
        {
            split: letters_to_sort(rows, 32, 16, torch.Generator().manual_seed(seed))
            for seed, (split, rows) in enumerate({"train": 20_000, "test": 1000}.items())
        }
    ),
}
FOLDS = 5


def some_of(rows: Dataset, count: int | None) -> Dataset:
    """As many rows, drawn with a seed; all of them if not given."""
    return rows if count is None else rows.shuffle(seed=SPLIT_SEED).select(range(min(count, len(rows))))


class TextTask(Experiment):
    """
    A task on the texts of a source. Documents without a test split of their own are dealt into five folds, one a seed.

    Args:
        source: one of `SOURCES`.
        validation_size: rows, or share, of the rest that learning rates are chosen on.
        train_size, test_size: rows to train and to test on; all if not given.
        data_dir: folder of unpacked packages.
    """

    def __init__(
        self,
        source: str,
        validation_size: float = 0.1,
        train_size: int | None = None,
        test_size: int | None = None,
        data_dir: str | None = None,
    ):
        if source not in SOURCES:
            raise ValueError(f"task.source={source!r} is unknown: choose one of {', '.join(SOURCES)}")
        self.source, self.validation_size = source, validation_size
        self.train_size, self.test_size = train_size, test_size
        self.loaded = SOURCES[source](data_dir)
        self.examples = cache(self.examples)  # type: ignore[method-assign]
        self.prepared: dict[tuple[str, int, int], Dataset] = {}

    def part(self, seed):
        return 0 if isinstance(self.loaded, DatasetDict) else seed % FOLDS

    def examples(self, part):
        if isinstance(self.loaded, DatasetDict):
            rest, test = self.loaded["train"], self.loaded["test"]
        else:
            folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SPLIT_SEED)
            chosen = list(folds.split(self.loaded["label"], self.loaded["label"]))[part]
            rest, test = (self.loaded.select(indices) for indices in chosen)
        label = "label" if "label" in rest.features else None
        held_out = rest.train_test_split(self.validation_size, seed=SPLIT_SEED, stratify_by_column=label)
        train, test = some_of(held_out["train"], self.train_size), some_of(test, self.test_size)
        return {"train": train, "validation": held_out["test"], "test": test}

    def texts(self, part):
        return iter(self.examples(part)["train"]["text"])

    @abstractmethod
    def prepare(self, split: str, part: int, tokenizer: Any, max_length: int) -> Dataset:
        """As `rows`."""

    def rows(self, split, part, tokenizer, max_length, count, seed):
        key = split, part, max_length
        if key not in self.prepared:
            self.prepared[key] = self.prepare(*key[:2], tokenizer, max_length)
        return self.prepared[key]


class TextClassification(TextTask):
    """The class of a document: all of it, or as many tokens of it as an entrant reads."""

    auto_class = AutoModelForSequenceClassification
    length_unit = "characters"
    arguments = ClassificationArguments()

    def fields(self, part, tokenizer):
        return token_fields(tokenizer) | Classification.config_fields(self.arguments, self.examples(part)["train"])

    def prepare(self, split, part, tokenizer, max_length):
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

    def prepare(self, split, part, tokenizer, max_length):
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


class Translation(TextTask):
    """
    Another text for a text, by an encoder and a decoder of the same fields.

    Args:
        max_target_length: tokens of a target.
        max_characters: of a text; pairs with a longer one are left out, of the test split too.
        options: as those of `TextTask`.
    """

    auto_class, training_class = AutoModelForSeq2SeqLM, Seq2SeqTrainingArguments
    metric = "chrf"
    length_unit = "characters"

    def __init__(self, max_target_length: int = 128, max_characters: int | None = None, **options: Any):
        super().__init__(**options)
        if max_characters is not None:
            self.loaded = self.loaded.filter(lambda row: len(row["text"]) <= max_characters)
        self.arguments = Seq2SeqArguments(max_target_length=max_target_length)

    def texts(self, part):
        return Seq2Seq.texts(self.arguments, self.examples(part)["train"])

    def fields(self, part, tokenizer):
        return token_fields(tokenizer)

    def new_model(self, config):
        decoder = type(config).from_dict(config.to_dict() | {"is_causal": True})
        return encoder_decoder(config, decoder, self.arguments.max_target_length)

    def prepare(self, split, part, tokenizer, max_length):
        self.task = Seq2Seq(self.arguments, tokenizer, max_length)
        return self.task.prepare(self.examples(part)[split], split)

    def lengths(self, rows, part):
        return list(map(len, self.examples(part)["test"]["text"]))

    def measure(self, said, right):
        said, right = self.task.written(said), self.task.written(right)
        rows = [{"prediction": x, "target": y} for x, y in zip(said, right, strict=True)]
        return self.task.measure(rows)

    def trainer(self, model, training, train, validation, tokenizer):
        training.predict_with_generate = True
        return Seq2Seq.trainer_class(
            model,
            training,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            data_collator=self.task.collator(),
            compute_metrics=lambda outputs: self.measure(outputs.predictions, outputs.label_ids),
        )


EXPERIMENTS: dict[str, Callable[..., Experiment]] = {
    "classification": TextClassification,
    "language_modeling": LanguageModeling,
    "translation": Translation,
    "copy": Copying,
    "sort": Sorting,
    "associative_recall": AssociativeRecall,
    "listops": ListOps,
}
