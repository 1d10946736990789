"""
Measure time and peak memory against the length: both families' variants, a floor without attention, and peers.

Every model lives in a process of its own, and they take turns, one running at a time, so that a drift of the machine
hits all alike; ratios are taken round by round. The floor is the same trunk with the identity between an attention's
projections. The results are Markdown tables, JSON and plots. `decode` measures generation, `throughput` fine-tuning on
real reviews, and `profile` the operators of a step, with arguments of their own.

    python -m synkhorn.scripts.benchmark
    python -m synkhorn.scripts.benchmark --models floor bert sinkhorn dense+dot_product --lengths 1024 2048 4096
    python -m synkhorn.scripts.benchmark --dtype float32 bfloat16 --output benchmarks/speed/speed-bfloat16
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 python -m synkhorn.scripts.benchmark
    python -m synkhorn.scripts.benchmark decode --help
    python -m synkhorn.scripts.benchmark throughput --help
    python -m synkhorn.scripts.benchmark profile --help
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .common.arguments import parse
from .measuring import benchmark_decode, benchmark_profile, benchmark_throughput
from .measuring.benchmark_length import BenchmarkArguments, Entrant, header, measure
from .measuring.benchmark_report import growth, growth_table, plots, tables, with_ratios
from .measuring.report import machine, write_report

SUBCOMMANDS = {
    "decode": benchmark_decode.main,
    "profile": benchmark_profile.main,
    "throughput": benchmark_throughput.main,
}


def main(args: list[str] | None = None) -> None:
    """Measure, and write tables, figures and plots, after each length those of the lengths so far."""
    args = sys.argv[1:] if args is None else args
    if args[:1] and args[0] in SUBCOMMANDS:
        SUBCOMMANDS[args[0]](args[1:])
        return
    (arguments,) = parse([BenchmarkArguments], args, __doc__)
    about = machine(arguments.device)
    allocator = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")}
    entrants = [Entrant(model, dtype, arguments) for model in arguments.models for dtype in arguments.dtype]
    settings = {name: value for name, value in asdict(arguments).items() if name != "output"}
    rows: list[dict] = []
    steps = len(arguments.lengths) * len(arguments.phases) * len(entrants) * (arguments.rounds + 1)
    with tqdm(total=steps) as progress:
        for length in arguments.lengths:
            rows += measure(length, entrants, arguments, progress)
            complete = with_ratios(rows, arguments.batch_size)
            report = "\n".join(header(arguments, about, allocator) + tables(complete) + growth_table(complete)) + "\n"
            figures: dict[str, Any] = {"machine": about, "settings": settings, "allocator": allocator}
            figures |= {"results": complete, "growth": growth(complete)}
            write_report(Path(arguments.output), report, figures)
            plots(complete, Path(arguments.output))
    print(report)


if __name__ == "__main__":
    main()
