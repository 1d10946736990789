"""
Compare training choices, one at a time against a base, on a fixed budget: schedule, clipping, weight decay, dropout,
and pre-training, masked or causal.

    synkhorn ablate --steps 300 --seeds 0 1 2 --output_dir runs/ablation
    synkhorn ablate --minutes 2 --factors dropout pre-training
    synkhorn ablate --grid '{"base": {"family": "synthesizer"}, "factors": {"rate": {"low": {"learning_rate": 1e-4}}}}'

Each run is a `synkhorn finetune`, after a `synkhorn pretrain` where a setting has an `objective`, in a folder of its
own: one that is finished is not run again. Table, figures and plot are written beside them.
"""

from pathlib import Path
from typing import Any

from .common.arguments import parse
from .common.precision import choose_bf16, device_type, read_bf16
from .measuring.report import about_line, machine, write_report
from .training.ablation import NAME, AblationArguments, budget, draw, grid_of, merged, reading, run, table


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the grid, write the table, figures and plot, and return the results, the base's first."""
    (asked,) = parse([AblationArguments], arguments, __doc__)
    base, factors = grid_of(asked)
    # once, so that the table says it
    base["bf16"] = choose_bf16(read_bf16(str(base["bf16"])), device_type())
    output = Path(asked.output_dir)
    steps = budget(asked, base, output)
    pretraining_steps = asked.pretraining_steps or steps
    runs = [(NAME, "", base)]
    runs += [
        (factor, name, merged(base, change)) for factor, kinds in factors.items() for name, change in kinds.items()
    ]
    results: list[dict[str, Any]] = []
    for factor, setting, settings in runs:
        folder = output / "-".join(filter(None, (factor, setting))).replace(" ", "_")
        measured = [run(folder / f"seed-{seed}", settings, steps, pretraining_steps, seed) for seed in asked.seeds]
        if asked.metric not in measured[0]:
            raise ValueError(f"metric={asked.metric!r} was not measured: choose one of {', '.join(measured[0])}")
        results.append(
            {"factor": factor, "setting": setting} | {name: [row[name] for row in measured] for name in measured[0]}
        )
    about = machine()
    lines = [
        "# Training choices, one at a time",
        "",
        f"{steps} training steps each, and {pretraining_steps} more of pre-training where there is any; "
        f"seeds {', '.join(map(str, asked.seeds))}"
        + (
            ": mean ± standard deviation, and the difference from the base of the same seed, mean (lowest to highest)"
            if len(asked.seeds) > 1
            else ""
        )
        + ". Measured on the test split.",
        "",
        "Base: " + ", ".join(f"`{name}={value}`" for name, value in base.items()),
        "",
        about_line(about),
        "",
        *table(results, asked.metric),
        "",
        reading(results, asked.metric),
    ]
    figures = {"machine": about, "base": base, "factors": factors, "steps": steps, "seeds": asked.seeds}
    write_report(output / "ablation", "\n".join(lines) + "\n", figures | {"results": results})
    draw(results, asked.metric, output / "ablation.png")
    print("\n".join(lines))
    return results


if __name__ == "__main__":
    main()
