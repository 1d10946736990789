"""
Compare training choices, one at a time against a base, on a fixed budget: schedule, clipping, weight decay, dropout,
and pre-training, masked or causal.

    synkhorn ablate --steps 300 --seeds 0 1 2 --output_dir runs/ablation
    synkhorn ablate --factors dropout pre-training --family synthesizer

These are two or three comparisons as `synkhorn compare` runs them, whose files can hold any other choice. A training
that is finished is not done again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common.arguments import parse
from .common.comparison_spec import read_spec
from .training.comparison import compare

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
# factor -> setting -> what it changes of an entrant: fields, `training`, or the objective of a pre-training
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "schedule": {
        "constant": {"training": {"lr_scheduler_type": "constant", "warmup_steps": 0}},
        "no warm-up": {"training": {"warmup_steps": 0}},
        "cosine": {"training": {"lr_scheduler_type": "cosine"}},
    },
    "clipping": {"off": {"training": {"max_grad_norm": 0.0}}},
    "weight decay": {"off": {"training": {"weight_decay": 0.0}}, "strong": {"training": {"weight_decay": 0.1}}},
    "dropout": {"off": {"hidden_dropout": 0.0}},
    "pre-training": {"masked": {"objective": "mlm"}, "causal": {"objective": "clm"}},
}


@dataclass
class AblationArguments:
    """What is compared, on which budget."""

    output_dir: str = field(
        default="runs/ablation", metadata={"help": "Folder of the trainings, the table and the plot."}
    )
    family: str = field(default="sinkhorn", metadata={"help": "Family of the models."})
    source: str = field(default="reviews", metadata={"help": "Texts with labels, as in a file of `synkhorn compare`."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of unpacked packages of texts."})
    factors: list[str] | None = field(default=None, metadata={"help": f"Of {', '.join(FACTORS)}; all if not given."})
    steps: int = field(default=300, metadata={"help": "Training steps of each; pre-training has as many of its own."})
    max_length: int = field(default=256, metadata={"help": "Tokens of a text."})
    train_size: int | None = field(default=None, metadata={"help": "Texts to train on; all if not given."})
    tokenizer: str = field(default="train", metadata={"help": "`train`, `bytes`, or a checkpoint's."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Each setting is trained with each."})

    def __post_init__(self):
        if unknown := [factor for factor in self.factors or [] if factor not in FACTORS]:
            raise ValueError(f"factors={unknown} are unknown: choose of {', '.join(FACTORS)}")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the comparisons, and return the results of the last."""
    (asked,) = parse([AblationArguments], arguments, __doc__)
    output = Path(asked.output_dir)
    source = {"source": asked.source, "validation_size": 0.05, "train_size": asked.train_size}
    base = {"model_type": asked.family}
    shared = {
        "budget": {"steps": asked.steps},
        "learning_rates": [1e-3],
        "seeds": asked.seeds,
        "max_length": asked.max_length,
        "tokenizer": asked.tokenizer,
        "model": SIZES,
        "against": "base",
    }
    entrants: dict[str, dict[str, Any]] = {"base": base}
    for factor in asked.factors or FACTORS:
        for setting, change in FACTORS[factor].items():
            name, objective = f"{factor}: {setting}", change.get("objective")
            entrants[name] = base | change
            if objective is not None:
                folder = output / objective
                task = {"name": "language_modeling", "objective": objective, **source}
                before = shared | {"title": f"Pre-training, {setting}", "task": task, "entrants": {name: base}}
                compare(read_spec(before | {"against": None}), folder, output / objective, "ablate", asked.data_dir)
                entrants[name] = {"start_from": str(folder)}
    task = {"name": "classification", **source}
    spec = shared | {"title": "Training choices, one at a time", "task": task, "entrants": entrants}
    return compare(read_spec(spec), output / "classification", output / "ablation", "synkhorn ablate", asked.data_dir)


if __name__ == "__main__":
    main()
