"""
Train a small classifier of movie reviews, measure it, save it, and use it in a new process without synkhorn.

    synkhorn quickstart
    synkhorn quickstart --family sinkhorn --max_train_samples 2000

It is a `synkhorn finetune classification`, whose command is printed and stands in the model's card.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field

from synkhorn import FAMILIES

from .common.arguments import as_command_line, parse
from .data.reviews import PACKAGED
from .training.finetuning import DEFAULTS, dataclasses_of, finetune
from .training.model_card import command_line

TASK, HELD_OUT = "classification", 5000
EXAMPLES = [
    "One of the finest films I have seen in years: warm, funny, and beautifully acted.",
    "A dull, clumsy mess. I wanted my money back after twenty minutes.",
]
# run in a new process, where an import of the package fails
USE_SAVED_MODEL = """
import sys
sys.modules["synkhorn"] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
for text, result in zip(sys.argv[2:], classify(sys.argv[2:])):
    print(f"{result['label']:>8} {result['score']:.3f}  {text}")
"""


@dataclass
class QuickstartArguments:
    """Options of the quickstart."""

    _argument_group_name = "data"

    family: str = field(default="synthesizer", metadata={"help": "Model family.", "choices": FAMILIES})
    dataset: str = field(
        default=PACKAGED,
        metadata={"help": "`reviews`, the packaged ones, or a dataset of the Hub such as stanfordnlp/imdb."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "New folder for the model; runs/quickstart-FAMILY if not given."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training reviews."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many reviews only, and measure on at most as many."}
    )
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on so many reviews only."})


def folder_of(arguments: QuickstartArguments) -> str:
    return arguments.output_dir or f"runs/quickstart-{arguments.family}"


def finetuning(arguments: QuickstartArguments) -> list[str]:
    """The fine-tuning that the quickstart is, as the arguments of its command."""
    family = FAMILIES[arguments.family]
    sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
    few = arguments.max_train_samples
    values = {
        "dataset": arguments.dataset,
        "family": arguments.family,
        "model_config": json.dumps(sizes | family.quickstart),
        "max_length": 512,
        "max_train_samples": few,
        "max_eval_samples": arguments.max_test_samples or (few and min(few, HELD_OUT)),
        # a tenth to choose the best checkpoint by
        "validation_size": few and max(1, few // 10),
        "num_train_epochs": arguments.num_train_epochs,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "seed": 0,
    }
    return [*as_command_line(values), "--output_dir", folder_of(arguments)]


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the quickstart and return what was measured on the held-out reviews."""
    (arguments,) = parse([QuickstartArguments], args, __doc__)
    line, folder = finetuning(arguments), folder_of(arguments)
    command = command_line("finetune", [TASK, *line])
    print(command, flush=True)
    results = finetune(TASK, command, *parse(dataclasses_of(TASK), line, "", **DEFAULTS))
    print("\nA new process, which cannot import synkhorn, classifies two reviews:", flush=True)
    subprocess.run([sys.executable, "-c", USE_SAVED_MODEL, folder, *EXAMPLES], check=True)
    return results


if __name__ == "__main__":
    main()
