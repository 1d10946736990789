"""
What balancing does to a causal sort: a lower-triangular matrix whose rows and columns all add up to 1 can only be the
identity, so with many iterations every block is sent to the block before it, whatever the sort net says. Shows, for
random logits, how much mass row i puts on block i - 1 as the iterations grow, and, for a bidirectional sort, how far
from 1 they leave the columns.

    python -m synkhorn.scripts.causal_balancing
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import matplotlib
import torch

import synkhorn
from synkhorn.modeling.sinkhorn_sort import column_residual

from .measuring.report import write_report

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--iterations", nargs="+", type=int, default=[0, 1, 2, 4, 7, 15, 30, 60], help="0 is the softmax of the rows"
    )
    parser.add_argument("--num_blocks", type=int, default=16, help="blocks of a sequence")
    parser.add_argument("--samples", type=int, default=1000, help="matrices of standard normal logits to average over")
    parser.add_argument("--temperature", type=float, default=0.75, help="what the logits are divided by")
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        default=[2.0, 0.75, 0.3, 0.1, 0.03, 0.01],
        help="what they are divided by in a bidirectional sort",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="benchmarks/sinkhorn/causal_balancing", help="path without ending of the files")
    return parser


def mass_on_previous(logits: torch.Tensor, iterations: int) -> torch.Tensor:
    """
    Mean mass that row i of the balanced logits puts on block i - 1.

    Args:
        logits: (samples, n, n).
        iterations: of `synkhorn.causal_sinkhorn`.

    Returns:
        (n - 2,), for the rows from 2 on: row 0 has no past, and row 1 no choice.
    """
    weights = synkhorn.causal_sinkhorn(logits, iterations)
    return weights.diagonal(-1, -2, -1).mean(0)[1:]


def column_residuals(logits: torch.Tensor, iterations: int) -> list[float]:
    """The largest |column sum - 1| of balanced matrices: its mean over the samples, and the largest of all."""
    residuals = column_residual(synkhorn.sinkhorn(logits, None, iterations), None)
    return [residuals.mean().item(), residuals.max().item()]


def rows_drawn(num_blocks: int) -> list[int]:
    """A few rows from the first that has a choice to the last, each about twice the one before."""
    rows = [2]
    while 2 * rows[-1] < num_blocks - 1:
        rows.append(2 * rows[-1])
    return rows + [num_blocks - 1]


def table(masses: dict[int, list[float]], arguments: Namespace) -> str:
    """Mass by iterations (down) and row (across) as Markdown."""
    rows = rows_drawn(arguments.num_blocks)
    lines = [
        "# Mass on the previous block in a causal sort",
        "",
        f"`causal_sinkhorn` of standard normal logits over {arguments.temperature:g}, {arguments.num_blocks} blocks, "
        f"mean of {arguments.samples} matrices, seed {arguments.seed}. Row i may choose among i blocks; without any "
        "preference it would put 1 / i on block i - 1.",
        "",
        "| iterations | " + " | ".join(f"row {row}" for row in rows) + " | all rows from 2 |",
        "|---:|" + "---:|" * (len(rows) + 1),
    ]
    for iterations, mass in masses.items():
        cells = [f"{mass[row - 2]:.3f}" for row in rows] + [f"{sum(mass) / len(mass):.3f}"]
        lines.append(f"| {iterations} | " + " | ".join(cells) + " |")
    lines.append("| no preference | " + " | ".join(f"{1 / row:.3f}" for row in rows) + " | |")
    return "\n".join(lines) + "\n"


def residual_table(residuals: dict[float, dict[int, list[float]]], arguments: Namespace) -> str:
    """Residual by temperature (down) and iterations (across) as Markdown."""
    iterations = list(next(iter(residuals.values())))
    lines = [
        "",
        "# Columns of a bidirectional sort",
        "",
        "The largest |column sum - 1| of `sinkhorn` of the same kind of logits: mean of the matrices, and the largest. "
        "The smaller the temperature, the more iterations it needs before no column is used twice.",
        "",
        "| temperature; iterations: | " + " | ".join(f"{n}" for n in iterations) + " |",
        "|---:|" + "---:|" * len(iterations),
    ]
    for temperature, row in residuals.items():
        cells = [f"{average:.3f} (at most {largest:.2f})" for average, largest in row.values()]
        lines.append(f"| {temperature:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_masses(masses: dict[int, list[float]], arguments: Namespace, path: Path) -> None:
    """Draw the mass on the previous block against the iterations, one line a row."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    rows = rows_drawn(arguments.num_blocks)
    for row, shade in zip(rows, plt.get_cmap("viridis")(torch.linspace(0, 0.85, len(rows)).tolist()), strict=True):
        mass = [masses[iterations][row - 2] for iterations in masses]
        axis.plot(list(masses), mass, marker="o", markersize=4, color=shade, label=f"row {row}")
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xticks(list(masses), [str(iterations) for iterations in masses])
    axis.set(xlabel="balancing iterations (0: softmax of the rows)", ylabel="mass of row i on block i - 1")
    axis.set_title(f"What balancing does to a causal sort of {arguments.num_blocks} blocks", fontsize=11)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: list[str] | None = None) -> dict[int, list[float]]:
    """Write the table, JSON and plot, and return iterations -> mass on the previous block for each row from 2 on."""
    arguments = parser().parse_args(args)
    if arguments.num_blocks < 4:
        raise ValueError(f"num_blocks={arguments.num_blocks} is too small: from 4 on, a row has a choice to lose")
    shape = arguments.samples, arguments.num_blocks, arguments.num_blocks
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(arguments.seed))
    iterations = sorted(set(arguments.iterations))
    masses = {n: mass_on_previous(logits / arguments.temperature, n).tolist() for n in iterations}
    residuals = {
        temperature: {n: column_residuals(logits / temperature, n) for n in iterations if n}
        for temperature in arguments.temperatures
    }
    output = Path(arguments.output)
    report = table(masses, arguments) + residual_table(residuals, arguments)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_report(output, report, {"settings": settings, "mass": masses, "residual": residuals})
    draw_masses(masses, arguments, output.with_suffix(".png"))
    print(report)
    return masses


if __name__ == "__main__":
    main()
