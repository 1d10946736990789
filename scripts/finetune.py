"""
Train on your labelled texts, from a checkpoint or from scratch: classification, tags, question answering, choices,
other texts (translations, summaries), embeddings.

    synkhorn finetune classification --train_files reviews.csv --output_dir my-classifier
    synkhorn finetune classification --model_name_or_path my-model --dataset reviews --output_dir my-classifier
    synkhorn finetune question-answering --model_name_or_path my-model --train_files squad.jsonl --output_dir my-reader

The checkpoint that does best on the validation split is kept. The output folder gets the model with its code and
tokenizer, its card, and, but for embeddings, predictions.jsonl with one row for each example of the test split, or of
the validation split where there is none. The same command resumes an interrupted run.

Long documents: --train_sampling_strategy group_by_length puts documents of similar length into one batch, which is
faster. It is off by default because less mixed batches can cost accuracy in short runs.

LoRA: with --lora_r only small matrices beside the layers, and the head, are trained. They are merged into the weights
that are saved, so that the result loads like any other checkpoint, without PEFT.
"""

import inspect
import sys

from .common.arguments import parse
from .measuring.metrics import Scores
from .tasks import TASKS
from .tasks.embeddings import Embeddings
from .training.embeddings import DATACLASSES, finetune_embeddings
from .training.finetuning import DEFAULTS, dataclasses_of, finetune
from .training.model_card import command_line
from .training.runs import leave_process_group


def usage() -> str:
    """The tasks."""
    known = {**TASKS, "embeddings": Embeddings}
    lines = [f"  {name:<24}{(task.__doc__ or '').strip().split('. ')[0].rstrip('.')}" for name, task in known.items()]
    return "\n".join(["usage: synkhorn finetune TASK ARGUMENTS", __doc__ or "", *lines, "", "TASK --help says more."])


def main(arguments: list[str] | None = None) -> Scores | None:
    """Fine-tune, and return what was measured on the test split, or the validation split where there is none."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return None
    if name == "embeddings":
        described = f"{inspect.getdoc(Embeddings)}\n{__doc__}"
        return finetune_embeddings(*parse(DATACLASSES, rest, described, task=name, **DEFAULTS))
    if name not in TASKS:
        print(f"{usage()}\n\nsynkhorn finetune: {name!r} is not a task", file=sys.stderr)
        sys.exit(2)
    description = f"{inspect.getdoc(TASKS[name])}\n{__doc__}"
    asked = parse(dataclasses_of(name), rest, description, task=name, **DEFAULTS | TASKS[name].defaults)
    return finetune(name, command_line("finetune", [name, *rest]), *asked)


if __name__ == "__main__":
    main()
    leave_process_group()
