"""Fine-tuning on a task, from a checkpoint or from scratch."""

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import quantiles
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from synkhorn.hub_export import write_whole
from synkhorn_console.parser import Chosen

from ..common.checkpoints import reading
from ..data.text_data import SPLITS, DataArguments, described, load_splits
from ..measuring.metrics import Scores
from ..tasks import TASKS
from ..tasks.seq2seq import Seq2SeqArguments
from ..tasks.task import FinetuneTask, Row, Task
from .messages import ExpectedTime, choose, describe_labels, describe_model, rare_classes, say, summary
from .model_card import CardTexts, ModelCardCallback
from .models import TRAIN, ModelArguments, load_model, load_tokenizer, new_encoder_decoder, own_fields
from .runs import (
    checkpoint_to_resume,
    explained_when_the_disk_is_full,
    finish,
    results_of,
    settings_of,
    train_to_the_end,
)

# `metric_for_best_model` where none is asked for
OF_THE_TASK = "the task's own"
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/finetune",
    # five times, so that one long epoch has checkpoints too
    "eval_strategy": "steps",
    "eval_steps": 0.2,
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": OF_THE_TASK,
    "logging_steps": 0.05,
    "report_to": "none",
    "learning_rate": Chosen(5e-5),
    "num_train_epochs": Chosen(3.0),
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "warmup_steps": 0.1,
}
# of a new model: it reads all of nine documents in ten if that takes no more than the longest of these
LENGTHS = (128, 256, 512, 1024, 2048)
# documents from which that is judged, and characters of all that a tokenizer is trained on
SAMPLE, MOST_CHARACTERS = 300, 50_000_000


@dataclass
class FinetuneArguments:
    """Fine-tuning."""

    _argument_group_name = "fine-tuning"

    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a document, or of a window over it, that the model reads. A checkpoint's own length if "
            f"not given; for a new model, enough for nine documents in ten, at most {LENGTHS[-1]:,}."
        },
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Train a checkpoint by LoRA of this rank, with PEFT; all weights if not given."}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "LoRA's matrices are scaled by alpha / rank; twice the rank if not given."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before LoRA's matrices."})

    def __post_init__(self):
        for name in ("max_length", "lora_r", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


class Measure:
    """Computes the task's metrics on a split for a `Trainer`, and keeps the rows of predictions."""

    def __init__(self, task: Task, examples: Dataset, inputs: Dataset):
        self.task, self.examples, self.inputs = task, examples, inputs
        self.rows: list[Row] = []

    def __call__(self, outputs: EvalPrediction) -> Scores:
        self.rows = self.task.predict(self.examples, self.inputs, outputs.predictions)
        return self.task.measure(self.rows)


def default_length(arguments: ModelArguments) -> int | None:
    """Tokens that the model of these arguments takes; `None` for a new model, where nothing says it."""
    if arguments.model_name_or_path is None:
        return own_fields(arguments.model_config, CONFIG_MAPPING[arguments.family]).get("max_position_embeddings")
    config = AutoConfig.from_pretrained(
        arguments.model_name_or_path, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code
    )
    own = own_fields(arguments.model_config, type(config))
    return own.get("max_position_embeddings", reading(config).max_position_embeddings)


def longest_of_most(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens that nine texts in ten do not exceed, judged from some of them."""
    some = texts[:: math.ceil(len(texts) / SAMPLE)]
    sizes = [len(ids) for ids in tokenizer(list(some), verbose=False).input_ids]
    return math.ceil(quantiles(sizes * 2, n=10)[-1])


def with_lora(model: PreTrainedModel, arguments: FinetuneArguments) -> PeftModel:
    """The model with LoRA beside every linear map of its layers; its head is trained in full."""
    linear = {
        name.split(".")[-1]
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear) and "layers." in name
    }
    heads = [
        name
        for name, child in model.named_children()
        if model.base_model not in (model, child) and any(True for _ in child.parameters())
    ]
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha or 2 * arguments.lora_r,
        lora_dropout=arguments.lora_dropout,
        target_modules=sorted(linear),
        modules_to_save=heads,
    )
    return get_peft_model(model, config)


def card_texts(
    task: FinetuneTask,
    model_arguments: ModelArguments,
    finetuning: FinetuneArguments,
    data: DataArguments,
    training: TrainingArguments,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """The texts of a fine-tuned model's card."""
    start = model_arguments.model_name_or_path
    kept = f" The checkpoint with the best {training.metric_for_best_model} on the validation split was kept."
    how = "all its weights" if finetuning.lora_r is None else f"its head, and LoRA of rank {finetuning.lora_r}, merged"
    origin = "from scratch" if start is None else f"from the checkpoint `{Path(start).name}` ({how} trained)"
    return {
        "pipeline_tag": task.pipeline_tag,
        "splits": {"eval": f"{sizes['validation']:,} rows for validation"}
        | ({"test": f"{sizes['test']:,} rows for test"} if "test" in sizes else {}),
        "summary": f"A model for {task.pipeline_tag.replace('-', ' ')}, trained {origin}.",
        "training": f"Trained on {sizes['train']:,} examples." + (kept if training.load_best_model_at_end else ""),
        "limits": f"It has seen {sizes['train']:,} training examples, and reads "
        + (
            f"the first {task.max_length:,} tokens of a document; the rest is cut off."
            if task.cuts_documents
            else f"{task.max_length:,} tokens at a time, in windows."
        ),
        **described(data),
    }


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as lines of JSON, all or none."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def dataclasses_of(name: str) -> tuple[type, ...]:
    """The arguments of a fine-tuning on a task, as dataclasses."""
    return ModelArguments, DataArguments, TASKS[name].arguments_class, FinetuneArguments, TASKS[name].training_class


def finetune(
    name: str,
    command: str,
    model_arguments: ModelArguments,
    data: DataArguments,
    task_arguments: Any,
    finetuning: FinetuneArguments,
    training: TrainingArguments,
) -> Scores:
    """
    Fine-tune on a task, and return what was measured on the test split, or the validation split where there is none.

    Args:
        name: the task.
        command: the command line, for the card.
        model_arguments, data, task_arguments, finetuning, training: see `dataclasses_of`.
    """
    kind = TASKS[name]
    if data.streaming:
        raise ValueError("streaming=True: fine-tuning reads its data several times; leave --streaming out")
    start = model_arguments.model_name_or_path
    if finetuning.lora_r is not None and start is None:
        raise ValueError(f"lora_r={finetuning.lora_r} trains a checkpoint: name it by --model_name_or_path")
    if start is not None and isinstance(task_arguments, Seq2SeqArguments):
        for option in ("decoder_family", "decoder_config"):
            if (value := getattr(task_arguments, option)) is not None:
                raise ValueError(f"{option}={value!r} is for a new model: {start} has a decoder; leave --{option} out")
    settings = settings_of(model_arguments, data, task_arguments, finetuning, training)
    checkpoint = checkpoint_to_resume(f"finetune {name}", training, settings)
    if (results := results_of(training)) is not None:
        say(training, f"{training.output_dir} is finished: {results}. Choose another --output_dir to train again")
        return results
    splits = load_splits(data, kind.columns(task_arguments))
    kind.check_texts(task_arguments, splits)
    config_fields = kind.config_fields(task_arguments, splits["train"])
    sizes = {split: len(splits[split]) for split in SPLITS if split in splits}
    say(training, "Data: " + ", ".join(f"{split} {size:,}" for split, size in sizes.items()) + " rows")
    set_seed(training.seed)
    texts = list(kind.texts(task_arguments, splits["train"]))
    max_length = finetuning.max_length or default_length(model_arguments)
    every = max(1, math.ceil(sum(map(len, texts)) / MOST_CHARACTERS))
    if every > 1 and checkpoint is None and (model_arguments.tokenizer_name or start or TRAIN) == TRAIN:
        say(training, f"{MOST_CHARACTERS:,} characters are enough for a tokenizer: it reads every {every}th text")
    tokenizer = load_tokenizer(model_arguments, texts[::every], max_length or LENGTHS[-1], checkpoint=checkpoint)
    needed = longest_of_most(texts, tokenizer)
    if max_length is None:
        max_length = next((length for length in LENGTHS if length >= needed), LENGTHS[-1])
    say(training, f"Length: nine texts in ten have at most {needed:,} tokens; {max_length:,} are read (--max_length)")
    if start is None and isinstance(task_arguments, Seq2SeqArguments):
        model = new_encoder_decoder(model_arguments, task_arguments, tokenizer, max_length)
    else:
        model = load_model(kind.auto_class, model_arguments, tokenizer, max_length, **config_fields)
    say(training, describe_model(model, checkpoint or start))
    task = kind(task_arguments, tokenizer, max_length, list(config_fields.get("id2label", {}).values()))
    with training.main_process_first(desc="tokenizing"):
        inputs = {split: task.prepare(examples, split, data.num_workers) for split, examples in splits.items()}
    classes = describe_labels(task.classes(inputs["train"]))
    if classes:
        say(training, f"Classes: {classes}")
        if rare := rare_classes(task.classes(inputs["train"])):
            say(training, rare)
    choose(training, len(inputs["train"]), start is None)
    if training.metric_for_best_model == OF_THE_TASK:
        training.metric_for_best_model = task.best_metric
    split = "test" if "test" in splits else "validation"
    baseline = task.baseline(inputs["train"], inputs[split])
    texts_of_card = card_texts(task, model_arguments, finetuning, data, training, sizes)
    card = CardTexts(
        use=task.use(Path(training.output_dir).resolve().name),
        command=command,
        classes=classes,
        baseline={texts_of_card["splits"]["test" if split == "test" else "eval"]: baseline},
        guess=task.guess,
        **texts_of_card,
    )
    trainer = kind.trainer_class(
        model if finetuning.lora_r is None else with_lora(model, finetuning),
        training,
        data_collator=task.collator(),
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        processing_class=tokenizer,
        compute_metrics=Measure(task, splits["validation"], inputs["validation"]),
        preprocess_logits_for_metrics=task.reduce,
        callbacks=[ModelCardCallback(training.output_dir, card, task.best_metric), ExpectedTime()],
    )
    with explained_when_the_disk_is_full(training.output_dir):
        train_to_the_end(trainer, checkpoint)
        if isinstance(trainer.model, PeftModel):
            trainer.model = trainer.callback_handler.model = trainer.model.merge_and_unload()
        trainer.save_model()
        trainer.compute_metrics = measure = Measure(task, splits[split], inputs[split])
        trainer.predict(inputs[split], metric_key_prefix="test" if split == "test" else "eval")
        if trainer.is_world_process_zero():
            write_rows(Path(training.output_dir) / "predictions.jsonl", measure.rows)
        results = task.measure(measure.rows)
        finish(trainer, results, DEFAULTS | kind.defaults)
    where = f"{sizes[split]:,} {'test' if split == 'test' else 'held-out'} rows"
    columns = "".join(
        f" --{entry.name} {shlex.quote(getattr(task_arguments, entry.name))}"
        for entry in fields(task_arguments)
        if entry.name.endswith("_column") and getattr(task_arguments, entry.name) not in (None, entry.default)
    )
    next_command = f"synkhorn evaluate {name} --model_name_or_path {training.output_dir} --test_files ...{columns}"
    following = f"Measure it on other rows: {next_command}"
    say(training, summary(where, results, training.output_dir, following, baseline, task.guess))
    if baseline and results[task.best_metric] <= baseline[task.best_metric]:
        say(
            training,
            f"By {task.best_metric} the model is no better than the {task.guess}: it has not learned the task. Train "
            "it longer (--num_train_epochs) or at another --learning_rate, start from a checkpoint "
            "(--model_name_or_path; `synkhorn convert` makes one), or look whether the labels fit the texts",
        )
    return results
