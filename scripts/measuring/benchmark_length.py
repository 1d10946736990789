"""Time and memory of models against the length, each in a process of its own."""

import math
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from .benchmark_models import BERT, FLOOR, GPT2, MODELS, SizeArguments, check_models
from .benchmark_worker import PHASES, Failed, Settings, Steps, Worker, in_order
from .report import about_line

# measured however long they take: the others' ratios are to them
REFERENCES = (FLOOR, BERT, GPT2)


@dataclass
class BenchmarkArguments(SizeArguments):
    models: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": f"{', '.join(MODELS)}, other Synthesizer members joined by +, any with _causal; or all."},
    )
    lengths: list[int] = field(
        default_factory=lambda: [512, 1024, 2048, 4096, 8192], metadata={"help": "Sequence lengths."}
    )
    dtype: list[str] = field(default_factory=lambda: ["float32"], metadata={"help": "float32, bfloat16, or both."})
    device: str = field(default="cpu", metadata={"help": "Where to measure.", "choices": ["cpu", "cuda"]})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    batch_size: int = field(default=1, metadata={"help": "Sequences in a step."})
    rounds: int = field(default=5, metadata={"help": "Turns of each model, of which the median is taken."})
    phases: list[str] = field(default_factory=lambda: list(PHASES), metadata={"help": f"{', '.join(PHASES)}, or both."})
    cell_timeout: float = field(
        default=60.0,
        metadata={
            "help": "Seconds for one model at one length, forward or with backward: it takes fewer turns, or is shown "
            f"as too slow; {', '.join(REFERENCES)} take one step at least."
        },
    )
    memory_limit: float = field(default=8.0, metadata={"help": "Gigabytes that a model may take (not on a GPU)."})
    output: str = field(
        default="benchmarks/speed/speed", metadata={"help": "Path without ending of the tables, JSON and plots."}
    )

    def __post_init__(self):
        self.models = MODELS if self.models == ["all"] else list(dict.fromkeys(self.models))
        check_models(self.models)
        self.lengths = sorted(set(self.lengths))
        # a size that is too large forward is not tried with backward
        self.phases = in_order(self.phases)
        for dtype in self.dtype:
            if dtype not in ("float32", "bfloat16", "float16"):
                raise ValueError(f"--dtype {dtype!r} is unknown: choose among float32, bfloat16, float16")


class Entrant:
    """A model in a dtype: its process at the length of the moment, and its steps' seconds at the lengths so far."""

    def __init__(self, model: str, dtype: str, arguments: BenchmarkArguments):
        self.model, self.dtype, self.arguments = model, dtype, arguments
        self.timeout = None if model in REFERENCES else arguments.cell_timeout
        self.known: dict[str, dict[int, float]] = {phase: {} for phase in arguments.phases}
        self.too_large = dict.fromkeys(arguments.phases, "")
        self.rows: list[dict[str, Any]] = []

    def begin(self, length: int) -> None:
        """Start a process for a length, where the model may be measured at all."""
        self.rows = [
            {"model": self.model, "dtype": self.dtype, "length": length, "phase": phase, "seconds": []}
            for phase in self.arguments.phases
        ]
        for row in self.rows:
            reason = self.too_large[row["phase"]] or self.too_slow(row["phase"], length)
            if reason:
                row["missing"] = f"not run: {reason}"
        if all("missing" in row for row in self.rows):
            return
        arguments = self.arguments
        sizes = arguments.sizes(length)
        settings = Settings(arguments.batch_size, arguments.device, arguments.threads)
        limit = arguments.memory_limit if arguments.device == "cpu" else None
        self.worker = Worker(Steps, self.model, self.dtype, sizes, settings, memory_gigabytes=limit)
        weights = self.ask(self.rows, "weights")
        for row in self.rows:
            row["weights"] = weights

    def too_slow(self, phase: str, length: int) -> str:
        """Why a step would take more than the time of a cell, by the growth so far; empty where it would not."""
        seconds = predicted(self.known[phase], length)
        if self.timeout is None or seconds <= self.timeout:
            return ""
        return f"predicted {seconds:.0f} s a step, over {self.timeout:.0f} s"

    def ask(self, rows: list[dict], method: str, *args: Any) -> Any:
        """What the process answers; where it fails, `rows` and whatever else it would have measured say so."""
        try:
            return self.worker.ask(method, *args, timeout=self.timeout)
        except Failed as failed:
            phases = [row["phase"] for row in rows]
            for row in self.rows[self.arguments.phases.index(phases[0]) :]:
                row["missing"] = str(failed)
                if failed.is_size:
                    self.too_large[row["phase"]] = f"{failed} at {row['length']:,}"
            return None

    def first(self, row: dict) -> None:
        """The first step of a phase, which is timed, and whose peak of memory is taken."""
        measured = self.ask([row], "first", row["phase"])
        if measured is not None:
            seconds, row["MB"] = measured
            row["seconds"].append(seconds)
            self.known[row["phase"]][row["length"]] = seconds

    def turn(self, row: dict) -> None:
        """One more turn, if the time of the cell allows it."""
        if sum(row["seconds"]) + row["seconds"][-1] > self.arguments.cell_timeout:
            return
        seconds = self.ask([row], "turn")
        if seconds is not None:
            row["seconds"].append(seconds)
            self.known[row["phase"]][row["length"]] = seconds

    def end(self) -> list[dict]:
        """Stop the process; what was measured at its length."""
        if any("missing" not in row for row in self.rows):
            self.worker.end()
        for row in self.rows:
            if "missing" in row:
                del row["seconds"]
        return self.rows


def predicted(known: dict[int, float], length: int) -> float:
    """Seconds of a step at a length by those at shorter ones: their growth, at least linear, at most quadratic."""
    shorter = sorted(known)[-2:]
    if not shorter:
        return 0.0
    exponent = 1.0
    if len(shorter) == 2:
        exponent = math.log(known[shorter[1]] / known[shorter[0]]) / math.log(shorter[1] / shorter[0])
    return known[shorter[-1]] * (length / shorter[-1]) ** min(max(exponent, 1.0), 2.0)


def measure(length: int, entrants: list[Entrant], arguments: BenchmarkArguments, progress: tqdm) -> list[dict]:
    """All entrants at one length: in each phase a first step of each, then the rounds, in which they take turns."""
    for entrant in entrants:
        entrant.begin(length)
    for number, phase in enumerate(arguments.phases):
        for round_ in range(arguments.rounds + 1):
            for entrant in entrants:
                progress.set_postfix_str(f"{length:,} {phase} {entrant.model}")
                row = entrant.rows[number]
                if "missing" not in row:
                    entrant.first(row) if round_ == 0 else entrant.turn(row)
                progress.update()
    return [row for entrant in entrants for row in entrant.end()]


def header(arguments: BenchmarkArguments, about: dict[str, str], allocator: dict[str, str]) -> list[str]:
    """The text above the tables: the measurement and its settings."""
    set_ = ", ".join(f"{name}={value}" for name, value in allocator.items()) or "none set"
    return [
        "# Time and memory against the length",
        "",
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"feed-forward 4 times as wide, vocabulary {arguments.vocab_size:,}, batch {arguments.batch_size}, "
        f"{arguments.device}, {arguments.threads} thread(s), random weights. The models take turns; medians of "
        f"{arguments.rounds} rounds, or of as many as {arguments.cell_timeout:.0f} s allow. Ratios are medians of each "
        "round's: `× floor` to the same trunk with the identity between an attention's projections, `× peer` to BERT, "
        "for causal models to GPT-2, both with SDPA. MB is the peak beyond the model and its input. Variables of the "
        f"allocator: {set_}.",
        "",
        about_line(about),
    ]
