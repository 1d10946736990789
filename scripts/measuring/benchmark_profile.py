"""
Where a step spends its time: the operators of PyTorch, each model beside the others.

The models are profiled one after the other in this process, some steps each. An operator's milliseconds are its own,
without those of the operators that it calls; what is below a hundredth of every model's step is added up.

    python -m synkhorn.scripts.benchmark profile --models floor bert dense --length 4096
"""

import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from ..common.arguments import parse
from .benchmark_models import BERT, FLOOR, SizeArguments, check_models
from .benchmark_worker import PHASES, Settings, Steps, in_order
from .report import about_line, machine, write_report

# operators below this share of each step have no row of their own
LEAST_SHARE = 0.01
OTHERS = "others"


@dataclass
class ProfileArguments(SizeArguments):
    models: list[str] = field(
        default_factory=lambda: [FLOOR, BERT, "dense", "sinkhorn"], metadata={"help": "As for the benchmark."}
    )
    length: int = field(default=4096, metadata={"help": "Sequence length."})
    phases: list[str] = field(default_factory=lambda: list(PHASES), metadata={"help": f"{', '.join(PHASES)}, or both."})
    steps: int = field(default=5, metadata={"help": "Steps that are recorded, and timed without the profiler before."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": ["float32", "bfloat16"]})
    device: str = field(default="cpu", metadata={"help": "Where to measure.", "choices": ["cpu", "cuda"]})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    batch_size: int = field(default=1, metadata={"help": "Sequences in a step."})
    output: str = field(
        default="benchmarks/profiles/profile", metadata={"help": "Path without ending of the table and JSON."}
    )

    def __post_init__(self):
        check_models(self.models)
        self.phases = in_order(self.phases)


def operators(steps: Steps, count: int) -> dict[str, float]:
    """The milliseconds of a step that each operator takes itself."""
    on_gpu = steps.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        for _ in range(count):
            steps.seconds()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {event.key: getattr(event, own) / 1000 / count for event in recorded.key_averages()}


def measure(arguments: ProfileArguments) -> dict[str, dict[str, dict[str, float]]]:
    """Phase -> model -> operator -> milliseconds, with the whole `step`'s, timed without the profiler."""
    sizes = arguments.sizes(arguments.length)
    settings = Settings(arguments.batch_size, arguments.device, arguments.threads)
    measured: dict[str, dict[str, dict[str, float]]] = {phase: {} for phase in arguments.phases}
    for model in arguments.models:
        steps = Steps(model, arguments.dtype, sizes, settings)
        for phase in arguments.phases:
            steps.prepare(phase)
            steps.seconds()
            whole = 1000 * statistics.median(steps.seconds() for _ in range(arguments.steps))
            measured[phase][model] = operators(steps, arguments.steps) | {"step": whole}
    return measured


def rows(models: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Operator -> milliseconds of each model, the longest first and what is short added up, of one phase."""
    totals = {model: sum(times.values()) - times["step"] for model, times in models.items()}
    names = {name for times in models.values() for name in times if name != "step"}
    long = {
        name
        for name in names
        if any(times.get(name, 0.0) >= LEAST_SHARE * totals[model] for model, times in models.items())
    }
    table = {name: [times.get(name, 0.0) for times in models.values()] for name in long}
    table = dict(sorted(table.items(), key=lambda row: -max(row[1])))
    table[OTHERS] = [sum(times.get(name, 0.0) for name in names - long) for times in models.values()]
    return table


def report(measured: dict[str, dict[str, dict[str, float]]], arguments: ProfileArguments, about: dict[str, str]) -> str:
    """The operators of each phase as Markdown."""
    lines = [
        "# What a step spends its time on",
        "",
        f"Milliseconds of PyTorch's operators, without those that they call, in a step of {arguments.length:,} tokens: "
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"batch {arguments.batch_size}, {arguments.dtype}, {arguments.device}, {arguments.threads} thread(s). Means of "
        f"{arguments.steps} recorded steps; the last row is the median of as many without the profiler.",
        "",
        about_line(about),
    ]
    for phase, models in measured.items():
        lines += ["", f"## {phase.capitalize()}", "", "| operator | " + " | ".join(f"`{m}`" for m in models) + " |"]
        lines.append("|---|" + "---:|" * len(models))
        cells = {f"`{name}`" if name != OTHERS else name: times for name, times in rows(models).items()}
        cells["a step without the profiler"] = [times["step"] for times in models.values()]
        lines += [f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in times) + " |" for name, times in cells.items()]
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Profile, and write the table and its figures."""
    args = sys.argv[1:] if args is None else args
    (arguments,) = parse([ProfileArguments], args, __doc__, task="profile")
    about = machine(arguments.device)
    measured = measure(arguments)
    text = report(measured, arguments, about)
    settings = {name: value for name, value in asdict(arguments).items() if name != "output"}
    write_report(Path(arguments.output), text, {"machine": about, "settings": settings, "milliseconds": measured})
    print(text)
