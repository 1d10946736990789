"""Training choices, one at a time against a base, on a fixed budget."""

import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from transformers.trainer import TRAINER_STATE_NAME

from synkhorn.hub_export import write_whole

from ..common.arguments import as_command_line, parse, read_fields
from ..common.precision import AUTO
from . import finetuning, pretraining
from .model_card import command_line

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

NAME = "base"
TASK = "classification"
# arguments of both commands
BASE: dict[str, Any] = {
    "dataset": "reviews",
    "family": "sinkhorn",
    "max_length": 256,
    "model_config": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_dropout": 0.1,
    },
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "bf16": AUTO,
}
# factor -> setting -> what it changes
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "schedule": {
        "constant": {"lr_scheduler_type": "constant", "warmup_steps": 0},
        "no warm-up": {"warmup_steps": 0},
        "cosine": {"lr_scheduler_type": "cosine"},
    },
    "clipping": {"off": {"max_grad_norm": 0.0}},
    "weight decay": {"off": {"weight_decay": 0.0}, "strong": {"weight_decay": 0.1}},
    "dropout": {"off": {"model_config": {"hidden_dropout": 0.0}}},
    "pre-training": {"masked": {"objective": "mlm"}, "causal": {"objective": "clm"}},
}
# of pre-training only
PRETRAINING = ("objective", "mlm_probability", "packing")
CALIBRATION = (10, 30)


@dataclass
class AblationArguments:
    """What is compared, on which budget."""

    output_dir: str = field(default="runs/ablation", metadata={"help": "Folder of the runs, the table and the plot."})
    grid: str | None = field(
        default=None,
        metadata={
            "help": "A JSON object, or a JSON or YAML file, with `base`, arguments of finetune that differ from the "
            "packaged base, and `factors`, in place of the packaged ones: factor -> setting -> arguments."
        },
    )
    factors: list[str] | None = field(
        default=None, metadata={"help": "Factors to compare; all of the grid if not given."}
    )
    steps: int = field(default=300, metadata={"help": "Budget: training steps of each run."})
    minutes: float | None = field(
        default=None, metadata={"help": "Budget: in place of --steps, as many as the base trains in so many minutes."}
    )
    pretraining_steps: int | None = field(
        default=None, metadata={"help": "Further steps of pre-training, where there is any; as --steps if not given."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Each setting is run with each of them."})
    metric: str = field(default="accuracy", metadata={"help": "What is compared, on the test split."})


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change`, and fields of `model_config` merged one by one."""
    result = {**base, **change}
    if "model_config" in base and "model_config" in change:
        result["model_config"] = {**base["model_config"], **change["model_config"]}
    return result


def grid_of(arguments: AblationArguments) -> tuple[dict[str, Any], dict[str, dict[str, dict[str, Any]]]]:
    """
    The base, and the factors that are compared.

    Raises:
        ValueError: if the grid has other parts than `base` and `factors`, or lacks a factor.
    """
    grid = {} if arguments.grid is None else read_fields("grid", arguments.grid)
    if unknown := sorted(set(grid) - {"base", "factors"}):
        raise ValueError(f"--grid has {', '.join(unknown)}: it takes base and factors only")
    factors = grid.get("factors", FACTORS)
    names = list(factors) if arguments.factors is None else arguments.factors
    if unknown := [name for name in names if name not in factors]:
        raise ValueError(f"--factors {' '.join(unknown)} is not in the grid, which has {', '.join(factors)}")
    return merged(BASE, grid.get("base", {})), {name: factors[name] for name in names}


def run(folder: Path, settings: dict[str, Any], steps: int, pretraining_steps: int, seed: int) -> dict[str, float]:
    """Train as the settings say, in a folder of its own, and return what was measured."""
    once = {"max_steps": steps, "save_steps": steps, "eval_strategy": "no", "load_best_model_at_end": False}
    settings = settings | once | {"save_strategy": "steps", "logging_steps": max(1, steps // 20), "seed": seed}
    tuning = {name: value for name, value in settings.items() if name not in PRETRAINING}
    before: dict[str, float] = {}
    if "objective" in settings:
        start = folder / "pretrained"
        budget = {"max_steps": pretraining_steps, "save_steps": pretraining_steps, "output_dir": start}
        line = as_command_line(settings | budget)
        asked = parse(pretraining.DATACLASSES, line, "", **pretraining.DEFAULTS)
        measured = pretraining.pretrain(command_line("pretrain", line), *asked)
        before["pretraining_perplexity"] = measured["eval_perplexity"]
        tuning |= {"model_name_or_path": start}
    output = folder / "finetuned"
    line = as_command_line(tuning | {"output_dir": output})
    asked = parse(finetuning.dataclasses_of(TASK), line, "", **finetuning.DEFAULTS)
    results = finetuning.finetune(TASK, command_line("finetune", [TASK, *line]), *asked)
    history = json.loads((output / f"checkpoint-{steps}" / TRAINER_STATE_NAME).read_text())["log_history"]
    return {**results, **before, "training_loss": [entry["loss"] for entry in history if "loss" in entry][-1]}


def steps_in(minutes: float, base: dict[str, Any], folder: Path) -> int:
    """Training steps that the base makes in so many minutes, from what two short runs differ by."""
    seconds = []
    for steps in CALIBRATION:
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        run(folder, base, steps, 0, seed=0)
        seconds.append(time.perf_counter() - start)
    shutil.rmtree(folder)
    per_step = max((seconds[1] - seconds[0]) / (CALIBRATION[1] - CALIBRATION[0]), 1e-3)
    return max(1, round(60 * minutes / per_step))


def budget(asked: AblationArguments, base: dict[str, Any], output: Path) -> int:
    """The training steps of each run: those of an earlier call, where minutes became steps, so that it goes on."""
    if asked.minutes is None:
        return asked.steps
    record, question = output / "budget.json", {"minutes": asked.minutes, "base": base}
    if record.exists() and (earlier := json.loads(record.read_text(encoding="utf-8")))["question"] == question:
        return earlier["steps"]
    steps = steps_in(asked.minutes, base, output / "calibration")
    write_whole(record, json.dumps({"question": question, "steps": steps}, indent=2) + "\n")
    return steps


def table(results: list[dict[str, Any]], metric: str) -> list[str]:
    """The results as rows of Markdown: means over the seeds, and what each seed differs from the base by."""
    base = results[0][metric]
    lines = [f"| factor | setting | {metric} | against the base | training loss |", "|---|---|---:|---:|---:|"]
    for result in results:
        values = result[metric]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        differences = [value - reference for value, reference in zip(values, base, strict=True)]
        against = f"{statistics.mean(differences):+.4f}"
        if len(values) > 1:
            against += f" ({min(differences):+.4f} to {max(differences):+.4f})"
        lines.append(
            f"| {result['factor']} | {result['setting']} | {statistics.mean(values):.4f}{spread} "
            f"| {'' if result is results[0] else against} | {statistics.mean(result['training_loss']):.4f} |"
        )
    return lines


def reading(results: list[dict[str, Any]], metric: str) -> str:
    """What the table shows, and what it does not."""
    base = results[0][metric]
    signs: dict[str, list[str]] = {"above": [], "below": [], "on both sides of": []}
    for result in results[1:]:
        differences = [value - reference for value, reference in zip(result[metric], base, strict=True)]
        side = "above" if min(differences) > 0 else "below" if max(differences) < 0 else "on both sides of"
        signs[side].append(f"{result['factor']} {result['setting']}")
    perplexities = [
        f"{result['setting']} {statistics.mean(result['pretraining_perplexity']):.0f}"
        for result in results
        if "pretraining_perplexity" in result
    ]
    found = "; ".join(f"{side} the base: {', '.join(names)}" for side, names in signs.items() if names)
    return (
        f"What it shows, in all {len(base)} seeds: {found}. What it does not: a setting that does nothing lies on one "
        f"side of the base in {2 * 0.5 ** len(base):.0%} of such tables, so that only differences well beyond the "
        "spread of the seeds mean anything. Choices are changed one at a time, at one learning rate, size and budget: "
        "together, tuned anew or trained longer they may do otherwise. Pre-training has steps of its own, beyond the "
        "others' budget" + (f", and ended at perplexities of {', '.join(perplexities)}." if perplexities else ".")
    )


def draw(results: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Draw each seed's metric as a dot, and the base's mean as a line."""
    names = [result["factor"] + (f": {result['setting']}" if result["setting"] else "") for result in results]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.4 * len(results)), layout="constrained")
    for place, result in enumerate(results):
        axis.plot(result[metric], [place] * len(result[metric]), "o", color="tab:blue", alpha=0.6)
        axis.plot(statistics.mean(result[metric]), place, "|", color="black", markersize=14)
    axis.axvline(statistics.mean(results[0][metric]), color="gray", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel=f"{metric} on the test split; a dot a seed, a bar their mean")
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)
    plt.close(figure)
