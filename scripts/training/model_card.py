"""Model cards from what a training run measured, written by a callback of the `Trainer`."""

import re
import shlex
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    SchedulerType,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from synkhorn import FAMILIES
from synkhorn.hub_export import write_whole

BF16 = "bfloat16 autocast (slow on many CPUs: `--bf16 auto` times a product)"
# the Trainer's own measurements, and the loss, which says less than any metric
UNREPORTED = re.compile(r"loss|runtime|.*_per_second|model_preparation_time")
# fields of a configuration that do not describe how the model was made
UNSAID = re.compile(r"transformers_version|architectures|dtype|model_type|auto_map|.*_token_id|id2label|label2id|_.*")


class CardTexts(NamedTuple):
    """
    The texts of a card, which a run cannot measure.

    pipeline_tag: the task, such as `text-classification`.
    dataset_name, dataset_id: what it was trained on; its name on the Hub, or `None`.
    language: of the data, or `None` where it is not known.
    splits: prefix of a Trainer's metrics, `eval` or `test` -> the split, such as `5,000 held-out reviews`.
    summary, training, limits: paragraphs.
    use: Python code of about three lines.
    command: the command line.
    license: that of the weights, where their author has chosen one.
    classes: the classes of the training data with their counts.
    baseline: split -> metric -> value of always giving one answer.
    guess: which answer that is, such as the majority class.
    """

    pipeline_tag: str
    dataset_name: str
    dataset_id: str | None
    language: str | None
    splits: Mapping[str, str]
    summary: str
    use: str
    training: str
    command: str
    limits: str
    license: str | None = None
    classes: str = ""
    baseline: Mapping[str, Mapping[str, float]] = {}
    guess: str = "guess"


def command_line(command: str, arguments: list[str]) -> str:
    """The command as one types it."""
    return f"synkhorn {command} {shlex.join(arguments)}"


def write_model_card(
    folder: str | Path,
    texts: CardTexts,
    config: PreTrainedConfig,
    metrics: Mapping[str, Mapping[str, float]],
    hyperparameters: Mapping[str, object],
) -> Path:
    """
    Write `README.md`, a card with a valid `model-index`, into the folder of a checkpoint.

    Args:
        folder: the checkpoint.
        texts: those of the card.
        config: the model's.
        metrics: split -> metric -> value.
        hyperparameters: name -> value, as a table.

    Returns:
        The card.
    """
    model_name = Path(folder).resolve().name
    results = [
        EvalResult(
            task_type=texts.pipeline_tag,
            dataset_type=texts.dataset_id or "local",
            dataset_name=texts.dataset_name,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for split, measured in metrics.items()
        for metric, value in measured.items()
    ]
    data = ModelCardData(
        language=texts.language,
        license=texts.license,
        library_name="transformers",
        pipeline_tag=texts.pipeline_tag,
        datasets=[texts.dataset_id] if texts.dataset_id else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=[config.model_type, "efficient-attention", "custom_code"],
        model_name=model_name,
        eval_results=results or None,
    )
    table = [f"| metric | model | {texts.guess} | measured on |", "|---|---:|---:|---|"]
    for result in results:
        baseline = texts.baseline.get(result.dataset_split, {}).get(result.metric_type)
        table.append(
            f"| {result.metric_type} | {result.metric_value:.4f} | {'–' if baseline is None else f'{baseline:.4f}'} "
            f"| {texts.dataset_name}, {result.dataset_split} |"
        )
    if texts.classes:
        table += ["", f"Classes in the training data: {texts.classes}."]
    card = ModelCard.from_template(
        data,
        template_str=files("synkhorn.model_cards").joinpath("template.md").read_text(encoding="utf-8"),
        results="\n".join(table),
        hyperparameters="\n".join(f"| {name} | {value} |" for name, value in hyperparameters.items()),
        paper=FAMILIES[config.model_type].paper
        if config.model_type in FAMILIES
        else f"Architecture: {config.model_type}.",
        **texts._asdict() | {"model_name": model_name},
    )
    path = Path(folder) / "README.md"
    write_whole(path, str(card))
    return path


def hyperparameters_of(training: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> dict[str, object]:
    """The settings of a run: the Trainer's main arguments, and the model's fields."""
    warmup, accumulation = training.warmup_steps, training.gradient_accumulation_steps
    fields = model.config.to_diff_dict()
    return {
        "steps, epochs": f"{state.global_step:,}, {state.epoch:.4g}",
        "batch size": f"{training.train_batch_size * training.world_size * accumulation}: {training.train_batch_size} "
        f"a process, processes {training.world_size}, accumulation {accumulation}",
        "learning rate": f"{training.learning_rate:g}, {SchedulerType(training.lr_scheduler_type).value}, warm-up over "
        + (f"{warmup:.0%} of the steps" if warmup < 1 else f"{warmup:g} steps"),
        "weight decay": training.weight_decay,
        "gradient norm": f"clipped at {training.max_grad_norm:g}" if training.max_grad_norm else "not clipped",
        "precision": BF16 if training.bf16 else "float16 autocast" if training.fp16 else "float32",
        "seed": training.seed,
        "parameters": f"{model.num_parameters():,}",
        **{f"`{name}`": value for name, value in fields.items() if not UNSAID.fullmatch(name)},
    }


def draw_curves(history: list[dict[str, Any]], path: Path, metric: str) -> None:
    """Draw training loss, validation loss and, where it was measured, a metric of a `Trainer`'s log over the epoch."""
    # Matplotlib, which nothing needs before
    from ..measuring.plots import curves, panels, save

    measured = [entry for entry in history if f"eval_{metric}" in entry]
    shown = [("loss", {"loss": "training", "eval_loss": "validation"})]
    shown += [(metric.replace("_", " "), {f"eval_{metric}": "validation"})] if measured else []
    finding = f"Last validation {shown[-1][0]}: {float(measured[-1][f'eval_{metric}']):.4g}." if measured else ""
    figure, (line,) = panels("How did the training go?", finding, columns=len(shown))
    for axis, (name, labels) in zip(line, shown, strict=True):
        points = {
            label: {entry["epoch"]: float(entry[key]) for entry in history if key in entry}
            for key, label in labels.items()
        }
        curves(axis, {label: curve for label, curve in points.items() if curve}, list(labels.values()), scale="linear")
        axis.set(xlabel="epoch", ylabel=name)
    save(figure, path)


class ModelCardCallback(TrainerCallback):
    """
    Writes `README.md` and `curves.png` when training ends, and again with what is measured after it.

    Args:
        folder: where the trained model is saved.
        texts: those of the card.
        metric: the validation metric that is drawn beside the losses.
    """

    def __init__(self, folder: str | Path, texts: CardTexts, metric: str):
        self.folder, self.texts, self.metric = Path(folder), texts, metric
        self.metrics: dict[str, dict[str, float]] = {}
        self.duration: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.goes_on = time.perf_counter(), state.global_step > 0

    def on_train_end(self, args, state, control, model, **kwargs):
        minutes = (time.perf_counter() - self.start) / 60
        self.duration = "in several runs" if self.goes_on else f"in {minutes:.1f} minutes on {args.device.type}"
        self._write(args, state, model)

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        self._measured(args, state, model, metrics)

    def on_predict(self, args, state, control, metrics, model, **kwargs):
        self._measured(args, state, model, metrics)

    def _measured(self, args, state, model, metrics: Mapping[str, float]) -> None:
        if self.duration is None:
            # while training: the measured model need not be the one that is kept
            return
        for name, value in metrics.items():
            prefix, _, metric = name.partition("_")
            if prefix in self.texts.splits and isinstance(value, float) and not UNREPORTED.fullmatch(metric):
                self.metrics.setdefault(self.texts.splits[prefix], {})[metric] = float(value)
        self._write(args, state, model)

    def _write(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> None:
        if not state.is_world_process_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draw_curves(state.log_history, self.folder / "curves.png", self.metric)
        texts = self.texts._replace(training=f"{self.texts.training} Trained {self.duration}.")
        write_model_card(self.folder, texts, model.config, self.metrics, hyperparameters_of(args, state, model))
