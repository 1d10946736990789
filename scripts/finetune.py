"""
Fine-tune a checkpoint, or train from scratch, on a task: classification, token-classification, question-answering or
multiple-choice.

    synkhorn finetune classification --model_name_or_path my-model --dataset reviews --output_dir my-classifier
    synkhorn finetune question-answering --model_name_or_path my-model --train_files squad.jsonl --output_dir my-reader

The checkpoint that does best on the validation split is kept. The output folder gets the model with its code and
tokenizer, its card, and what it does on the test split, or on the validation split where there is none: metrics, and
predictions.jsonl with one row for each example. The same command again goes on with a run that was interrupted.

Long documents: --train_sampling_strategy group_by_length puts documents of like length into one batch, which saves
padding. It is off because batches are then less mixed: in short runs that can cost accuracy.

LoRA: with --lora_r only small matrices beside the layers, and the head, are trained. They are merged into the weights
that are saved, so that the result loads like any other checkpoint, without PEFT.
"""

import inspect
import sys

from .common.arguments import parse
from .measuring.metrics import Scores
from .tasks import TASKS
from .training.finetuning import DEFAULTS, dataclasses_of, finetune
from .training.model_card import command_line
from .training.runs import leave_process_group


def usage() -> str:
    """What there is to fine-tune on."""
    lines = [f"  {name:<24}{(task.__doc__ or '').strip().split('. ')[0].rstrip('.')}" for name, task in TASKS.items()]
    return "\n".join(["usage: synkhorn finetune TASK ARGUMENTS", __doc__ or "", *lines, "", "TASK --help says more."])


def main(arguments: list[str] | None = None) -> Scores | None:
    """Fine-tune, and return what was measured on the test split, or the validation split where there is none."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return None
    if name not in TASKS:
        print(f"{usage()}\n\nsynkhorn finetune: {name!r} is no task", file=sys.stderr)
        sys.exit(2)
    description = f"{inspect.getdoc(TASKS[name])}\n{__doc__}"
    asked = parse(dataclasses_of(name), rest, description, task=name, **DEFAULTS)
    return finetune(name, command_line("finetune", [name, *rest]), *asked)


if __name__ == "__main__":
    main()
    leave_process_group()
