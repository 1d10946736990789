"""
Fine-tune a checkpoint, or train from scratch, on a task: classification, token-classification, question-answering or
multiple-choice.

    synkhorn finetune classification --model_name_or_path my-model --dataset reviews --output_dir my-classifier
    synkhorn finetune question-answering --model_name_or_path my-model --train_files squad.jsonl --output_dir my-reader

The checkpoint that does best on the validation split is kept. The output folder gets the model with its code and
tokenizer, its card, and what it does on the test split, or on the validation split where there is none: its metrics, and
predictions.jsonl with one row for each example.

Long documents: --train_sampling_strategy group_by_length puts documents of like length into one batch, which saves
padding. It is off because batches are then less mixed: in short runs that can cost accuracy.

LoRA: with --lora_r only small matrices beside the layers, and the head, are trained. They are merged into the weights
that are saved, so that the result loads like any other checkpoint, without PEFT.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import synkhorn
from synkhorn.hub_export import write_whole

from .arguments import DataArguments, ModelArguments, parse, read_fields
from .metrics import Scores
from .tasks import TASKS, Task
from .tasks.task import Row
from .text_data import load_splits

DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "logging_steps": 0.05,
    "report_to": "none",
}


@dataclass
class FinetuneArguments:
    """What is particular to fine-tuning."""

    _argument_group_name = "fine-tuning"

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a document, or a window; as many as the model takes if not given."}
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Train a checkpoint by LoRA of this rank, with PEFT; all weights if not given."}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "LoRA's matrices are scaled by alpha / rank; twice the rank if not given."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before LoRA's matrices."})


class FinetuneTrainer(Trainer):
    """A `Trainer` that groups by the lengths that the data has, and keeps the order of what it predicts."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        # what the Trainer would hand over has lost its column of lengths
        return super()._get_train_sampler(self.train_dataset)

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        # grouped by length, predictions would not be in the order of their rows
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def load_tokenizer(
    arguments: ModelArguments, texts: Callable[[], Iterable[str]], max_length: int
) -> PreTrainedTokenizerBase:
    """The tokenizer that the arguments name: the checkpoint's, one of bytes, one trained on `texts()`, or another."""
    name = arguments.tokenizer_name or arguments.model_name_or_path or "train"
    if name == "bytes":
        return synkhorn.byte_tokenizer(max_length)
    if name == "train":
        return synkhorn.train_tokenizer(texts(), arguments.vocab_size, max_length)
    revision = arguments.revision if name == arguments.model_name_or_path else "main"
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=arguments.trust_remote_code)


def load_config(
    arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
) -> PreTrainedConfig:
    """The checkpoint's configuration, or one from scratch, with the fields asked for and the classes."""
    fields = read_fields("model_config", arguments.model_config) if arguments.model_config else {}
    if labels is not None:
        fields |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if arguments.model_name_or_path is None:
        return AutoConfig.for_model(arguments.family, **synkhorn.token_fields(tokenizer) | fields)
    return AutoConfig.from_pretrained(
        arguments.model_name_or_path,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        **fields,
    )


def load_model(arguments: ModelArguments, auto_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """The checkpoint with a head for the task, or a model from scratch."""
    options = {"trust_remote_code": arguments.trust_remote_code, "attn_implementation": arguments.attn_implementation}
    if arguments.model_name_or_path is None:
        return auto_class.from_config(config, **options)
    return auto_class.from_pretrained(
        arguments.model_name_or_path, config=config, revision=arguments.revision, **options
    )


def with_lora(model: PreTrainedModel, arguments: FinetuneArguments) -> nn.Module:
    """The model with LoRA beside every linear map of its layers; its head is trained in full."""
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rsplit(".")[-1]
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear) and "layers." in name
    }
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha or 2 * arguments.lora_r,
        lora_dropout=arguments.lora_dropout,
        target_modules=sorted(linear),
        modules_to_save=heads,
    )
    return get_peft_model(model, config)


def resumed_from(training: TrainingArguments) -> str | None:
    """
    The checkpoint to go on from, or `None` for a new run.

    Raises:
        ValueError: if the output folder holds something that a new run would mix with, or nothing to go on from.
    """
    folder, wanted = Path(training.output_dir), training.resume_from_checkpoint
    if wanted is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} exists and is not empty: choose another, remove it, or go on with the run "
                "in it by --resume_from_checkpoint last"
            )
        return None
    found = get_last_checkpoint(folder) if wanted == "last" and folder.is_dir() else wanted
    if found is None or not Path(found).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={wanted!r}: there is no such checkpoint in output_dir={str(folder)!r}; leave it "
            "out to begin anew"
        )
    return found


def check_length(max_length: int | None, config: PreTrainedConfig) -> int:
    """Tokens of a document: as asked for, or as many as the model takes; a `ValueError` if it takes fewer."""
    longest = config.max_position_embeddings
    if max_length is not None and not 1 <= max_length <= longest:
        raise ValueError(
            f"max_length={max_length} must be 1 to {longest}, the max_position_embeddings of the model: longer "
            "documents need a model with more"
        )
    return max_length or longest


def measuring(task: Task, examples: Dataset, inputs: Dataset) -> Callable[[EvalPrediction], Scores]:
    """What the `Trainer` computes metrics with, on the outputs for `inputs`."""
    return lambda outputs: task.measure(task.predict(examples, inputs, outputs.predictions))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as lines of JSON, all or none."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def usage() -> str:
    """What there is to fine-tune on."""
    lines = [f"  {name:<24}{(task.__doc__ or '').strip().split('. ')[0].rstrip('.')}" for name, task in TASKS.items()]
    return "\n".join([f"usage: synkhorn finetune TASK ARGUMENTS\n{__doc__}", *lines, "", "TASK --help says more."])


def main(arguments: list[str] | None = None) -> Scores | None:
    """Fine-tune, and return what was measured on the test split, or the validation split where there is none."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return None
    if name not in TASKS:
        print(f"{usage()}\n\nsynkhorn finetune: {name!r} is no task", file=sys.stderr)
        sys.exit(2)
    kind = TASKS[name]
    model_arguments, data, task_arguments, finetuning, training = parse(
        (ModelArguments, DataArguments, kind.arguments_class, FinetuneArguments, TrainingArguments),
        rest,
        __doc__,
        metric_for_best_model=kind.best_metric,
        **DEFAULTS,
    )
    if data.streaming:
        raise ValueError("streaming=True: fine-tuning reads its data several times; leave --streaming out")
    if finetuning.lora_r is not None and model_arguments.model_name_or_path is None:
        raise ValueError(f"lora_r={finetuning.lora_r} trains a checkpoint: name it by --model_name_or_path")
    checkpoint = resumed_from(training)
    set_seed(training.seed)
    splits = load_splits(data, kind.columns(task_arguments))
    labels = kind.find_labels(task_arguments, splits["train"])

    fields = read_fields("model_config", model_arguments.model_config) if model_arguments.model_config else {}
    tokenizer = load_tokenizer(
        model_arguments,
        lambda: kind.texts(task_arguments, splits["train"]),
        fields.get("max_position_embeddings", 512),
    )
    config = load_config(model_arguments, tokenizer, labels)
    max_length = check_length(finetuning.max_length, config)
    tokenizer.model_max_length = max_length
    task = kind(task_arguments, tokenizer, max_length, labels)
    with training.main_process_first(desc="tokenizing"):
        inputs = {split: task.prepare(examples, split, data.num_workers) for split, examples in splits.items()}

    model = load_model(model_arguments, kind.auto_class, config)
    trainer = FinetuneTrainer(
        with_lora(model, finetuning) if finetuning.lora_r is not None else model,
        training,
        data_collator=task.collator(),
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        processing_class=tokenizer,
        compute_metrics=measuring(task, splits["validation"], inputs["validation"]),
        preprocess_logits_for_metrics=task.reduce,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return finish(trainer, task, splits, inputs)


def finish(trainer: Trainer, task: Task, splits: dict[str, Any], inputs: dict[str, Dataset]) -> Scores:
    """Save the model, and measure it on the test split, or the validation split where there is none."""
    if hasattr(trainer.model, "merge_and_unload"):
        trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    split = "test" if "test" in splits else "validation"
    trainer.compute_metrics = None
    outputs = trainer.predict(inputs[split], metric_key_prefix=split)
    rows = task.predict(splits[split], inputs[split], outputs.predictions)
    scores = task.measure(rows)
    if trainer.is_world_process_zero():
        write_rows(Path(trainer.args.output_dir) / "predictions.jsonl", rows)
    metrics = outputs.metrics | {f"{split}_{name}": value for name, value in scores.items()}
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return scores


if __name__ == "__main__":
    main()
