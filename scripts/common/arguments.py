"""The command line of the commands: dataclasses, `--config`, and help that teaches."""

import json
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .precision import AUTO, BF16_HELP, choose_bf16, device_type, read_bf16

# those of the Trainer's many arguments that `--help` explains
EXPLAINED = {
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "max_grad_norm", "bf16", "activation_checkpointing", "eval_strategy", "eval_steps",
    "save_strategy", "save_steps", "save_total_limit", "logging_steps", "load_best_model_at_end",
    "metric_for_best_model", "report_to", "seed", "resume_from_checkpoint",
}  # fmt: skip


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the lines of a script's docstring as they are."""


def read_fields(argument: str, value: str) -> dict[str, Any]:
    """
    The mapping that `value`, a JSON object or the path of a JSON or YAML file, holds.

    Raises:
        ValueError: naming `argument`, if it is neither.
    """
    if value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--{argument} {value} is no valid JSON: {error}") from error
    path = Path(value)
    if path.suffix not in (".json", ".yaml", ".yml") or not path.is_file():
        raise ValueError(f"--{argument} {value!r} must be a JSON object, or an existing .json or .yaml file")
    try:
        # JSON is YAML, but for numbers such as 1e-3
        read = json.loads if path.suffix == ".json" else yaml.safe_load
        content = read(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--{argument} {value!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--{argument} {value!r} must hold names and values, not a {type(content).__name__}")
    return content


def as_command_line(values: Mapping[str, Any]) -> list[str]:
    """Names and values as arguments of a command line; those that are `None` are left out."""
    line = []
    for name, value in values.items():
        if isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        elif value is not None:
            line.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return line


def parse(
    dataclasses: Sequence[type],
    arguments: list[str] | None,
    description: str,
    first: str | None = None,
    task: str | None = None,
    **defaults: Any,
) -> tuple[Any, ...]:
    """
    Read a command line into dataclasses, with Transformers' `HfArgumentParser`.

    `--config file.yaml|json` gives values that the command line overrides. A Trainer's arguments run on the CPU where
    there is no accelerator, and `--help` explains the most used of them. `bf16` is `auto` by default, see `precision`.

    Args:
        dataclasses: what is read, such as `(ModelArguments, DataArguments, TrainingArguments)`.
        arguments: the command line; `None` for that of the process.
        description: the script's docstring.
        first: the argument whose value may begin the command line, without its name.
        task: a word between the command and `arguments`, for the help.
        defaults: values other than the dataclasses' own.

    Raises:
        ValueError: if the file cannot be read, or has names that are no arguments.
        SystemExit: for an unknown argument or a value of the wrong kind, after a message.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if first is not None and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    parser = HfArgumentParser(
        dataclasses,  # type: ignore[arg-type]
        usage=" ".join(filter(None, ("%(prog)s", task, first and first.upper(), "ARGUMENTS"))),
        description=description.strip(),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML or JSON file of arguments, which the command line overrides")
    names = {entry.name: dataclass for dataclass in dataclasses for entry in fields(dataclass) if entry.init}
    trainer = {name for name, dataclass in names.items() if issubclass(dataclass, TrainingArguments)}
    for action in parser._actions:
        if action.dest in names:
            # one spelling is enough to read; the other is taken too
            action.option_strings = action.option_strings[:1]
        # of a switch that is on by default `--no_...` is there too
        if action.dest in trainer and (action.dest not in EXPLAINED or action.const is False):
            action.help = SUPPRESS
        if action.dest == "bf16":
            action.type, action.default, action.help = read_bf16, AUTO, BF16_HELP
    if trainer:
        parser.epilog = "All other arguments of transformers.TrainingArguments are taken as well."
        defaults = {"use_cpu": device_type() == "cpu"} | defaults
    parser.set_defaults(**defaults)
    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config")
    (known, _) = reader.parse_known_args(arguments)
    if known.config is not None:
        values = read_fields("config", known.config)
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"--config {known.config} has {', '.join(unknown)}: no such arguments (see --help)")
        arguments = [*as_command_line(values), *arguments]
    namespace = vars(parser.parse_args(arguments))
    if "bf16" in names:
        device = device_type(namespace.get("use_cpu"))
        namespace["bf16"] = choose_bf16(namespace["bf16"], device, namespace.get("fp16", False))
    return tuple(
        dataclass(**{name: namespace[name] for name, owner in names.items() if owner is dataclass})
        for dataclass in dataclasses
    )
