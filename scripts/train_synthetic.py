"""
Does sorting blocks let a model read what local attention cannot? Trains Sinkhorn models, and the same model with purely
local attention, on sequences drawn as they train, and draws their accuracy on fresh ones against the steps.

    python -m synkhorn.scripts.train_synthetic copy
    python -m synkhorn.scripts.train_synthetic sort
"""

from pathlib import Path

import torch

from .measuring.report import machine, write_report
from .training.synthetic import draw_accuracy, parser, table, task_of, train


def main(args: list[str] | None = None) -> list[dict]:
    """Train the compared models of a task, write the table, JSON and plot, and return the measurements."""
    arguments = parser(__doc__).parse_args(args)
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
