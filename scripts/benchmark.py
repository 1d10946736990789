"""
Time and peak memory of a family's variants, forward and backward, against a baseline in the same model (dot-product
attention if not said otherwise), and how much each grows where the length doubles.

Each variant is measured in a process of its own, so that no other's memory is counted. The results are Markdown tables
and JSON. `decode` measures generation instead, and has its own arguments.

    python -m synkhorn.scripts.benchmark decode --help
    python -m synkhorn.scripts.benchmark --lengths 1024 2048 4096 8192
    python -m synkhorn.scripts.benchmark --family sinkhorn --baseline local --lengths 2048 4096 8192 16384
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

from . import benchmark_decode
from .report import about_line, machine, write_report

DOT_PRODUCT = "dot_product"
SYNTHESIZERS = [
    DOT_PRODUCT,
    "dense",
    "random",
    "fixed_random",
    "factorized_random",
    "factorized_dense",
    "dense+dot_product",
    "random+dot_product",
]
# what each Sinkhorn variant has beyond the shared sizes
SINKHORN = {
    "concat": {},
    "sum": {"combine": "sum"},
    "logits": {"combine": "logits"},
    "sortcut": {"sortcut_blocks": 2},
    "causal": {"is_causal": True},
    "local": {"sort_net": "none"},
}
VARIANTS = {"synthesizer": SYNTHESIZERS, "sinkhorn": [DOT_PRODUCT, *SINKHORN]}
MEASURED = ["forward ms", "forward+backward ms", "forward MB", "forward+backward MB"]


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--family", choices=list(VARIANTS), default="synthesizer")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["all"],
        help=f"members of each Synthesizer, joined by +, or Sinkhorn variants: {', '.join(SINKHORN)}",
    )
    parser.add_argument("--baseline", default=DOT_PRODUCT, help="the variant that the others are compared with")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192], help="sequence lengths")
    parser.add_argument("--num_hidden_layers", type=int, default=1)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median time is taken")
    parser.add_argument("--block_size", type=int, default=64, help="tokens of a block (sinkhorn)")
    parser.add_argument("--output", default="benchmarks/{family}", help="path without ending of the tables and JSON")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "LENGTH"), help="one measurement, printed as JSON")
    return parser


def resident_megabytes(field: str) -> float:
    """`VmRSS`, what the process holds now, or `VmHWM`, the most it held since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def forget_peak() -> None:
    """Set `VmHWM` back to what the process holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def model_fields(family: str, variant: str, block_size: int) -> tuple[str, dict]:
    """The model type of a variant, and its fields beyond the shared sizes; dot product is a Synthesizer."""
    if family == "synthesizer" or variant == DOT_PRODUCT:
        return "synthesizer", {"synthesizers": variant.split("+")}
    if variant not in SINKHORN:
        raise ValueError(f"variants={variant!r} is unknown: choose among {', '.join(SINKHORN)}")
    return "sinkhorn", {"block_size": block_size} | SINKHORN[variant]


def measure(variant: str, length: int, arguments: Namespace) -> dict[str, float]:
    """Peak memory of the first forward and backward beyond the model and its input, then median times."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model_type, fields = model_fields(arguments.family, variant, arguments.block_size)
    model = AutoModel.from_config(
        AutoConfig.for_model(
            model_type,
            **fields,
            vocab_size=256,
            hidden_size=arguments.hidden_size,
            intermediate_size=4 * arguments.hidden_size,
            num_hidden_layers=arguments.num_hidden_layers,
            num_attention_heads=arguments.num_attention_heads,
            max_position_embeddings=length,
            hidden_dropout=0.0,
        )
    )
    ids = torch.randint(0, 256, (arguments.batch_size, length))

    def forward():
        with torch.no_grad():
            model.eval()(ids)

    def forward_backward():
        model.train().zero_grad()
        model(ids).last_hidden_state.sum().backward()

    result = {}
    # once: what a forward pass has freed may stay with the process, and would be missing in the next peak
    held = resident_megabytes("VmRSS")
    for name, step in (("forward", forward), ("forward+backward", forward_backward)):
        forget_peak()
        step()
        result[f"{name} MB"] = resident_megabytes("VmHWM") - held
        times = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        result[f"{name} ms"] = statistics.median(times) * 1000
    return result


def table(results: list[dict], arguments: Namespace, about: dict[str, str]) -> str:
    """The measurements as Markdown, each time and memory with its ratio to the baseline's at that length."""
    sizes = (
        f"{arguments.num_hidden_layers} layer(s), width {arguments.hidden_size}, {arguments.num_attention_heads} heads"
    )
    lines = [
        f"# {arguments.family.capitalize()} variants against `{arguments.baseline}`",
        "",
        f"{sizes}, batch {arguments.batch_size}, float32, {arguments.threads} thread(s). Median of {arguments.repeats} "
        "runs; memory is the peak beyond the model and its input. In brackets: times the figure of "
        f"`{arguments.baseline}` at that length.",
        "",
        about_line(about),
        "",
        "| length | variant | " + " | ".join(MEASURED) + " |",
        "|---:|---|" + "---:|" * len(MEASURED),
    ]
    baseline = {row["length"]: row for row in results if row["variant"] == arguments.baseline}
    for row in results:
        cells = [f"{row[c]:.0f} ({row[c] / baseline[row['length']][c]:.2f})" for c in MEASURED]
        lines.append(f"| {row['length']} | `{row['variant']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines + growth_table(results)) + "\n"


def growth(results: list[dict]) -> list[dict]:
    """For each variant and each length that was measured at its double too: how many times the figures grow."""
    measured = {(row["variant"], row["length"]): row for row in results}
    return [
        {"variant": variant, "from": length, "to": 2 * length}
        | {c: measured[variant, 2 * length][c] / max(row[c], 1e-9) for c in MEASURED}
        for (variant, length), row in measured.items()
        if (variant, 2 * length) in measured
    ]


def growth_table(results: list[dict]) -> list[str]:
    """`growth` as lines of Markdown, one block of lines a variant; none where no length is another's double."""
    rows = growth(results)
    if not rows:
        return []
    lines = ["", "How many times the figures grow where the length doubles (linear: 2, quadratic: 4):", ""]
    lines += ["| variant | length | " + " | ".join(MEASURED) + " |", "|---|---:|" + "---:|" * len(MEASURED)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for row in rows:
            if row["variant"] == variant:
                cells = [f"{row[c]:.2f}" for c in MEASURED]
                lines.append(f"| `{variant}` | {row['from']} to {row['to']} | " + " | ".join(cells) + " |")
    return lines


def main(args: list[str] | None = None) -> None:
    """Measure in processes of their own, and write the table and its figures."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["decode"]:
        benchmark_decode.main(args[1:])
        return
    arguments = parser().parse_args(args)
    if arguments.measure:
        variant, length = arguments.measure
        print(json.dumps(measure(variant, int(length), arguments)))
        return
    chosen = VARIANTS[arguments.family] if arguments.variants == ["all"] else arguments.variants
    baseline = arguments.baseline
    variants = [baseline] + [variant for variant in chosen if variant != baseline]
    results = []
    for length, variant in tqdm([(length, variant) for length in arguments.lengths for variant in variants]):
        command = [sys.executable, "-m", "synkhorn.scripts.benchmark", *args, "--measure", variant, str(length)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append({"variant": variant, "length": length} | json.loads(printed.splitlines()[-1]))
    about = machine()
    report = table(results, arguments, about)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("measure", "output")}
    write_report(
        Path(arguments.output.format(family=arguments.family)),
        report,
        {"machine": about, "settings": settings, "results": results, "growth": growth(results)},
    )
    print(report)


if __name__ == "__main__":
    main()
