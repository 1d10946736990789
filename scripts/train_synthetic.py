"""
Does sorting blocks let a model read what local attention cannot? Trains Sinkhorn models, and the same model with purely
local attention, on sequences that are drawn, to copy blocks or to sort tokens.

    python -m synkhorn.scripts.train_synthetic copy
    python -m synkhorn.scripts.train_synthetic sort --steps 2000 --seeds 0

It is a comparison as `synkhorn compare` runs them; `benchmarks/synthetic/` has more entrants and tasks.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common.arguments import parse
from .common.comparison_spec import read_spec
from .training.comparison import compare

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
SINKHORN, LOCAL = {"model_type": "sinkhorn", "block_size": 8}, {"local": {"sort_net": "none"}}
# task -> its sizes, and what each entrant has beyond the shared fields
TASKS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "copy": (
        {"block_size": 8, "num_blocks": 8, "distance": 3},
        LOCAL | {"Sinkhorn, softmax": {}, "Sinkhorn, balanced": {"causal_balancing": "sinkhorn"}},
    ),
    "sort": ({"length": 64}, LOCAL | {"Sinkhorn": {}}),
}


@dataclass
class SyntheticArguments:
    """Which task, on which budget."""

    task: str = field(metadata={"help": "Repeat the block three blocks before, or sort.", "choices": [*TASKS]})
    steps: int = field(default=1000, metadata={"help": "Batches of 32 sequences that each model is trained on."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Each model is trained with each."})
    output_dir: str = field(default="runs/synthetic", metadata={"help": "Folder of the trainings and the report."})


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Train the compared models of a task, write the report, and return the results."""
    (asked,) = parse([SyntheticArguments], arguments, __doc__, first="task")
    sizes, entrants = TASKS[asked.task]
    values = {
        "title": f"{asked.task.capitalize()}, 64 tokens in blocks of 8",
        "task": {"name": asked.task, "vocab_size": 32, **sizes},
        "entrants": {name: SINKHORN | change for name, change in entrants.items()},
        "budget": {"steps": asked.steps},
        "learning_rates": [2e-3],
        "seeds": asked.seeds,
        "max_length": 64,
        "model": SIZES | {"hidden_dropout": 0.0},
        "training": {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "bf16": False},
        "against": "local",
    }
    output = Path(asked.output_dir)
    return compare(
        read_spec(values), output / asked.task, output / asked.task, f"synkhorn train_synthetic {asked.task}", None
    )


if __name__ == "__main__":
    main()
