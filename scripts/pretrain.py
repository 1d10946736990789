"""
Train a masked or causal language model on texts without labels, from a checkpoint or from scratch.

    synkhorn pretrain --dataset reviews --family sinkhorn --objective mlm --output_dir runs/mlm
    synkhorn pretrain --dataset reviews --model_name_or_path runs/mlm --objective clm --output_dir runs/clm
    synkhorn pretrain --train_files corpus.jsonl --tokenizer_name bytes --max_length 2048 --config sizes.yaml

An interrupted run resumes from its last checkpoint when the same command is repeated.
"""

import sys

from .common.arguments import parse
from .training.model_card import command_line
from .training.pretraining import DATACLASSES, DEFAULTS, pretrain
from .training.runs import leave_process_group


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Pre-train as the command line asks, and return what was measured on the held-out texts."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parse(DATACLASSES, arguments, __doc__, **DEFAULTS)
    return pretrain(command_line("pretrain", arguments), *asked)


if __name__ == "__main__":
    main()
    leave_process_group()
