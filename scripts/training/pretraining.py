"""Pre-training of a masked or causal language model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..data.text_data import DataArguments, Examples, described, load_splits
from ..tasks.task import pipeline_use
from .language_modeling import LanguageModelTrainer, as_rows, end_of_document, endless, with_places
from .messages import ExpectedTime, describe_model, say, summary
from .model_card import CardTexts, ModelCardCallback
from .models import ModelArguments, load_model, load_tokenizer
from .runs import (
    checkpoint_to_resume,
    explained_when_the_disk_is_full,
    finish,
    results_of,
    settings_of,
    train_to_the_end,
)

OBJECTIVES = {"mlm": AutoModelForMaskedLM, "clm": AutoModelForCausalLM}
# the metrics in the summary
REPORTED = ("eval_perplexity", "eval_bits_per_byte")
# texts that a tokenizer is trained on at most
TOKENIZER_TEXTS = 100_000
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/pretrain",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "logging_steps": 0.02,
    # rows hold what the collator needs
    "remove_unused_columns": False,
    # over all tokens of the split; the loss is a mean of the means of its batches
    "metric_for_best_model": "perplexity",
    "greater_is_better": False,
    # so that a resumed run is as patient as one that was never interrupted
    "restore_callback_states_from_checkpoint": True,
}


@dataclass
class PretrainingArguments:
    """The objective, and how texts become rows."""

    _argument_group_name = "language modelling"

    objective: str = field(
        default="mlm",
        metadata={
            "help": "`mlm`: predict masked tokens from both sides; `clm`: the next token.",
            "choices": ["mlm", "clm"],
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the texts."})
    sample_by: str = field(
        default="line",
        metadata={"help": "What a document is in a txt file.", "choices": ["line", "paragraph", "document"]},
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of a row."})
    packing: bool = field(
        default=True,
        metadata={
            "help": "Put documents, each ended by an end-of-sequence token, one after the other into rows of "
            "--max_length tokens, so that batches have like numbers of tokens. Each document only sees itself. "
            "`--no_packing` gives each document a row of its own. Long ones are cut either way, and padding is never "
            "computed."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens that `mlm` masks."})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better one. Needs --load_best_model_at_end."},
    )


def check(own: PretrainingArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Raise a `ValueError` for values that cannot be, or not together."""
    if own.max_length < 2:
        raise ValueError(f"max_length={own.max_length} must be at least 2: one token is predicted from another")
    if not 0 < own.mlm_probability < 1:
        raise ValueError(f"mlm_probability={own.mlm_probability} must lie between 0 and 1")
    if own.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise ValueError(
            f"early_stopping_patience={own.early_stopping_patience} needs --load_best_model_at_end, so that the best "
            "model is kept and not the last"
        )
    if data.streaming and training.max_steps <= 0:
        raise ValueError("streaming=True needs --max_steps: the length of a stream is not known")
    if training.fsdp and training.device.type == "cpu":
        raise ValueError(
            f"fsdp={training.fsdp!r} needs accelerators: on CPUs accelerate falls back to DDP, and is silent"
        )


def texts_of(examples: Examples, column: str) -> Iterator[str]:
    """Texts to train a tokenizer on."""
    return (row[column] for row in islice(examples.select_columns(column), TOKENIZER_TEXTS) if row[column])


def check_texts(splits: dict[str, Examples], column: str) -> None:
    """Raise a `ValueError` unless the column holds texts."""
    first = next(iter(splits["train"]))[column]
    if first is not None and not isinstance(first, str):
        raise ValueError(f"text_column={column!r} holds {type(first).__name__}, such as {first!r}, and not texts")


def how_rows_are_made(own: PretrainingArguments, tokenizer: PreTrainedTokenizerBase) -> str:
    """How documents become rows, for log and card."""
    end = tokenizer.convert_ids_to_tokens(end_of_document(tokenizer))
    if own.packing:
        return (
            f"Documents, each ended by `{end}` and cut into parts of at most {own.max_length} tokens, are packed into "
            "rows of that length. Attention stays inside a document or part."
        )
    return f"Each document, ended by `{end}`, is cut into rows of at most {own.max_length} tokens of its own."


def share_of_tokens(rows: Examples, max_length: int) -> str:
    """How full the rows are, for the log."""
    if isinstance(rows, IterableDataset):
        return "All computed positions hold a token; how full the rows of a stream are is not known beforehand."
    tokens = sum(map(len, rows["input_ids"]))
    return (
        f"{len(rows):,} rows hold {tokens:,} tokens, {tokens / (len(rows) * max_length):.0%} of their "
        f"{max_length} places; only tokens are computed, so that 100% of the computed positions are real."
    )


def card_texts(
    own: PretrainingArguments,
    model_arguments: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    command: str,
) -> CardTexts:
    """The texts of a pre-trained model's card."""
    name = Path(training.output_dir).resolve().name
    masked = own.objective == "mlm"
    tag, text = ("fill-mask", f"A very good {tokenizer.mask_token}") if masked else ("text-generation", "A very good")
    start = model_arguments.model_name_or_path
    return CardTexts(
        pipeline_tag=tag,
        splits={"eval": "held-out texts"},
        summary=f"A {'masked' if masked else 'causal'} language model, trained "
        + ("from scratch." if start is None else f"from the checkpoint `{Path(start).name}`."),
        use=pipeline_use(tag, name, repr(text)),
        training=how_rows_are_made(own, tokenizer)
        + (f" {own.mlm_probability:.0%} of the tokens are masked, different ones in each epoch." if masked else ""),
        command=command,
        limits=f"It knows only its training texts, and reads at most {own.max_length} tokens; its output "
        "is likely, not necessarily true. Perplexity is per token and compares only models with one tokenizer"
        + (", and, because most of a text is visible, does not measure a whole text." if masked else "."),
        **described(data),
    )


DATACLASSES = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)


def pretrain(
    command: str,
    model_arguments: ModelArguments,
    data: DataArguments,
    own: PretrainingArguments,
    training: TrainingArguments,
) -> dict[str, float]:
    """
    Pre-train, and return what was measured on the held-out texts.

    Args:
        command: the command line, for the card.
        model_arguments, data, own, training: see `DATACLASSES`.
    """
    check(own, data, training)
    settings = settings_of(model_arguments, data, own, training)
    checkpoint = checkpoint_to_resume("pretrain", training, settings)
    if (results := results_of(training)) is not None:
        say(training, f"{training.output_dir} is finished: {results}. Choose another --output_dir to train again")
        return results
    set_seed(training.seed)

    splits = load_splits(data, [own.text_column], sample_by=own.sample_by)
    check_texts(splits, own.text_column)
    texts = texts_of(splits["train"], own.text_column)
    tokenizer = load_tokenizer(model_arguments, texts, own.max_length, own.objective == "clm", checkpoint)
    model = load_model(OBJECTIVES[own.objective], model_arguments, tokenizer, own.max_length)
    model.config.sparse_prediction = own.objective == "mlm"
    if isinstance(splits["train"], IterableDataset):
        # each process reads its own rows: a packed batch is a batch of one, which cannot be dealt out
        training.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        splits["train"] = endless(splits["train"], training.seed)
    # rows of their own can be counted one by one in an evaluation, and cost no more
    train, validation = (
        as_rows(splits[name], own.text_column, tokenizer, own.max_length, packing, data.num_workers)
        for name, packing in (("train", own.packing), ("validation", False))
    )
    if isinstance(train, IterableDataset):
        train = with_places(train)
    say(training, describe_model(model, model_arguments.model_name_or_path) + f", {len(tokenizer):,} in its vocabulary")
    say(training, how_rows_are_made(own, tokenizer))
    say(training, share_of_tokens(train, own.max_length))

    texts_of_card = card_texts(own, model_arguments, data, training, tokenizer, command)
    callbacks: list[TrainerCallback] = [ModelCardCallback(training.output_dir, texts_of_card, metric="perplexity")]
    callbacks.append(ExpectedTime())
    if own.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(own.early_stopping_patience))
    trainer = LanguageModelTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        mlm_probability=own.mlm_probability if own.objective == "mlm" else None,
        callbacks=callbacks,
    )
    with explained_when_the_disk_is_full(training.output_dir):
        train_to_the_end(trainer, checkpoint)
        trainer.save_model()
        results = trainer.evaluate()
        finish(trainer, results, DEFAULTS)
    measured = {name.removeprefix("eval_"): results[name] for name in results if name in REPORTED}
    following = f"Train it on a task: synkhorn finetune classification --model_name_or_path {training.output_dir} ..."
    if own.objective == "clm":
        following = f'Let it write: synkhorn generate {training.output_dir} --prompt "Once upon a time"'
    say(training, summary("the held-out texts", measured, training.output_dir, following))
    return results
