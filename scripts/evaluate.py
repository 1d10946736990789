"""
Evaluate a checkpoint on a dataset: its metrics with confidence intervals, its throughput and its peak memory.

    synkhorn evaluate classification --model_name_or_path my-classifier --dataset reviews
    synkhorn evaluate language-modeling --model_name_or_path my-model --test_files books.txt --sample_by document
    synkhorn evaluate language-modeling --model_name_or_path my-model --lm_eval lambada_openai hellaswag

Intervals are those of a bootstrap over documents: they tell what another sample of documents would change, not another
training run. Throughput is that of the whole evaluation, with its batches as the data orders them.

Predictions are made by a Trainer, as in fine-tuning. No metric is downloaded.

With --lm_eval a causal model is handed to EleutherAI's harness, which must be installed: pip install lm_eval.
"""

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .common.arguments import parse
from .data.text_data import DataArguments
from .measuring.report import machine, write_report
from .tasks import MEASURED
from .tasks.evaluation import EvaluateArguments, as_markdown, harness, measure


def usage() -> str:
    """The tasks."""
    names = "\n".join(f"  {name}" for name in MEASURED)
    return f"usage: synkhorn evaluate TASK ARGUMENTS\n{__doc__}\nTASK is one of\n{names}\nTASK --help says more."


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Evaluate as the command line asks, print the figures and return them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return None
    if name not in MEASURED:
        print(f"{usage()}\n\nsynkhorn evaluate: {name!r} is not a task", file=sys.stderr)
        sys.exit(2)
    kind = MEASURED[name]
    own, data, task_arguments = parse(
        (EvaluateArguments, DataArguments, kind.arguments_class), rest, f"{inspect.getdoc(kind)}\n{__doc__}", task=name
    )
    if own.lm_eval is not None:
        if name != "language-modeling":
            raise ValueError(
                f"lm_eval={own.lm_eval} is for causal language models: synkhorn evaluate language-modeling"
            )
        return harness(own)
    measured = measure(own, data, kind, task_arguments)
    about = machine()
    text = as_markdown(own, measured, about)
    print(text)
    if own.output is not None:
        figures = {"task": name, "arguments": asdict(own), "data": asdict(data), "about": about} | measured
        write_report(Path(own.output), text, figures)
    return measured


if __name__ == "__main__":
    main()
