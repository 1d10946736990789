"""
Does sorting blocks let a model read what local attention cannot? Trains Sinkhorn models, and the same model with purely
local attention, on sequences drawn as they train, and draws their accuracy on fresh ones against the steps.

    python -m synkhorn.scripts.train_synthetic copy
    python -m synkhorn.scripts.train_synthetic sort
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path
from typing import Any

import torch

from .measuring.report import machine, write_report
from .training.synthetic import draw_accuracy, table, task_of, train


def parser() -> ArgumentParser:
    shared = ArgumentParser(add_help=False)
    shared.add_argument("--vocab_size", type=int, default=32, help="different tokens, all equally likely")
    shared.add_argument("--block_size", type=int, default=8, help="tokens of a block")
    shared.add_argument("--hidden_size", type=int, default=64)
    shared.add_argument("--num_hidden_layers", type=int, default=2)
    shared.add_argument("--num_attention_heads", type=int, default=4)
    shared.add_argument("--sinkhorn_iterations", type=int, default=7, help="balancings of the sort matrix")
    shared.add_argument("--steps", type=int, default=1000, help="batches that each model is trained on")
    shared.add_argument("--batch_size", type=int, default=32)
    shared.add_argument("--learning_rate", type=float, default=2e-3, help="the highest: warm-up, then a cosine to 0")
    shared.add_argument("--eval_every", type=int, default=100, help="steps between two measurements")
    shared.add_argument("--eval_size", type=int, default=512, help="fresh sequences of each measurement")
    shared.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    shared.add_argument("--seed", type=int, default=0, help="of the models, of their data and of the evaluation")
    commands = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    tasks = commands.add_subparsers(dest="task", required=True, metavar="copy|sort")
    options: dict[str, Any] = {"parents": [shared], "formatter_class": ArgumentDefaultsHelpFormatter}
    copy = tasks.add_parser("copy", help="causal: repeat the block some blocks before", **options)
    copy.add_argument("--num_blocks", type=int, default=8, help="blocks of a sequence")
    copy.add_argument("--distance", type=int, default=3, help="how many blocks later a block is repeated")
    sort = tasks.add_parser("sort", help="bidirectional: emit the tokens in ascending order", **options)
    sort.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    for name, task in tasks.choices.items():
        task.add_argument(
            "--output", default=f"benchmarks/{name}", help="path without ending of the table, JSON and plot"
        )
    return commands


def main(args: list[str] | None = None) -> list[dict]:
    """Train the compared models of a task, write the table, JSON and plot, and return the measurements."""
    arguments = parser().parse_args(args)
    torch.set_num_threads(arguments.threads)
    task = task_of(arguments)
    output = Path(arguments.output)
    print(task.title, flush=True)
    results = [train(name, task, arguments) for name in task.models]
    about = machine()
    report = table(results, task, arguments, about)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_report(output, report, {"machine": about, "settings": settings, "chance": task.chance, "results": results})
    draw_accuracy(results, task, output.with_suffix(".png"))
    print(report)
    return results


if __name__ == "__main__":
    main()
