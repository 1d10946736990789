"""The command line of the commands: dataclasses, `--config`, and help in the order of a user's questions."""

import json
import re
import sys
from argparse import (
    SUPPRESS,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import yaml

from .declared import source_of

# groups of arguments in the order of `--help`; those of the task stand behind the data
ORDER = ("checkpoint", "prompts", "data", "", "model", "fine-tuning", "conversion", "evaluation", "training")
TRAINING_GROUP = "training"
ALL = "--help-all"
AUTO = "auto"
BF16_HELP = (
    "Train in bfloat16 autocast: true, false, or auto: where the machine is faster in it. On a CPU with units for it a "
    "matrix product is timed in both precisions."
)
# those of the Trainer's arguments that `--help` explains, and what it says of them
EXPLAINED = {
    "output_dir": "New folder for the trained model, its card, and what it was measured to do.",
    "num_train_epochs": "Passes over the training data.",
    "max_steps": "Steps to train, instead of epochs.",
    "learning_rate": "Highest learning rate.",
    "per_device_train_batch_size": "Examples in a training batch, on each device.",
    "gradient_accumulation_steps": "Batches whose gradients are added before a step.",
    "warmup_steps": "Steps, or share of the steps, in which the learning rate rises.",
    "weight_decay": "Weight decay of AdamW.",
    "label_smoothing_factor": "Share of each label that is spread over all tokens or classes.",
    "generation_num_beams": "Beams of the search that writes predictions; 1 for greedy search.",
    "bf16": BF16_HELP,
    "save_total_limit": "Keep so many checkpoints; without a --save option all are removed when training has ended.",
    "seed": "Seed of the weights, the order of the data, and dropout.",
    "report_to": "Where to log: none, tensorboard, wandb, ...",
    "resume_from_checkpoint": "Checkpoint to go on from with other arguments. The same command resumes by itself.",
}
# arguments of our own that few change, for `--help-all`
SELDOM = {
    "attn_implementation", "choice_columns", "confidence", "dataset_config", "device", "dtype", "autocast",
    "early_stopping_patience", "lm_eval", "lm_eval_include", "lm_eval_limit", "lora_alpha", "lora_dropout",
    "max_answer_length", "max_question_length", "mlm_probability", "n_best", "no_answer_threshold", "num_workers",
    "packing", "problem_type", "resamples", "revision", "sample_by", "streaming", "stride", "tokenizer_name",
    "tolerance", "trust_remote_code", "vocab_size",
}  # fmt: skip


class Chosen(float):
    """A default that a command replaces by what suits the model and the data, unless the user gives a value."""

    def __str__(self) -> str:
        return "chosen for the model and the data"


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults that say something, and leaves the lines of a script's docstring as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action) -> str | None:
        says_nothing = action.default in (None, False, SUPPRESS, -1) or "if not given" in (action.help or "")
        return action.help if says_nothing else super()._get_help_string(action)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or `None`."""
    found = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`: did you mean ...?`, or nothing."""
    found = nearest(name, names)
    return f": did you mean {prefix}{found}?" if found else ""


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
            remedy = "; names and texts need double quotes" if "'" in value else "; write it as '{\"name\": 1}'"
            raise ValueError(f"--{argument} {value} is not valid JSON: {error}{remedy}") from error
    path = Path(value)
    if path.suffix not in (".json", ".yaml", ".yml") or not path.is_file():
        siblings = [str(path.with_name(other.name)) for other in files_in(path.parent) if other != path]
        raise ValueError(
            f"--{argument} {value!r} must be a JSON object, such as '{{\"name\": 1}}', or an existing .json or .yaml "
            f"file{meant(value, siblings)}"
        )
    try:
        # JSON is YAML, except for numbers such as 1e-3
        read = json.loads if path.suffix == ".json" else yaml.safe_load
        content = read(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--{argument} {value!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--{argument} {value!r} must hold names and values, not a {type(content).__name__}")
    return content


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def as_command_line(values: Mapping[str, Any]) -> list[str]:
    """Names and values as arguments of a command line; those that are `None` are left out."""
    line = []
    for name, value in values.items():
        if isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        elif value is not None:
            line.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return line


def read_bf16(value: str) -> bool | str:
    """`--bf16` as it is written: true, false or auto."""
    if value == AUTO:
        return AUTO
    if value.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise ArgumentTypeError(f"{value!r} is not true, false or {AUTO}")
    return value.lower() in ("true", "yes", "1")


@cache
def parser_class() -> type[ArgumentParser]:
    """Transformers' `HfArgumentParser`, loaded without the rest of Transformers, and with errors of one line."""
    spec = spec_from_file_location("synkhorn_hf_argparser", source_of("transformers.hf_argparser"))
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    class Parser(module.HfArgumentParser):  # type: ignore[name-defined, misc]
        def error(self, message: str):
            names = [option for action in self._actions for option in action.option_strings]
            if unknown := re.match(r"unrecognized arguments: (-\S+?)(?:=\S*)?(?: |$)", message):
                message += meant(unknown[1], names) or " (--help-all lists all options)"
            elif choice := re.match(r"argument \S+: invalid choice: '(.*?)' \(choose from (.*)\)", message):
                message += meant(choice[1], re.findall(r"[\w.-]+", choice[2]))
            elif number := re.search(r"invalid (int|float) value: '.*'$", message):
                message += ": give a whole number" if number[1] == "int" else ": give a number, such as 3 or 0.001"
            self.exit(2, f"{self.prog}: error: {message}\n")

    return Parser


def build(
    dataclasses: Sequence[type],
    description: str,
    training: type | None = None,
    first: str | None = None,
    task: str | None = None,
    with_all: bool = False,
    **defaults: Any,
) -> ArgumentParser:
    """
    The parser of a command.

    Args:
        dataclasses: those that are filled, such as `(ModelArguments, DataArguments, TrainingArguments)`.
        description: the script's docstring.
        training: the one among them whose many arguments are Transformers' own.
        first: the argument whose value may begin the command line, without its name.
        task: a word between the command and its arguments.
        with_all: let `--help` explain every argument.
        defaults: values other than the dataclasses' own.
    """
    parser = parser_class()(
        dataclasses,  # type: ignore[arg-type]
        usage=" ".join(filter(None, ("%(prog)s", task, first and first.upper(), "ARGUMENTS"))),
        description=description.strip(),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML or JSON file of arguments, which the command line overrides.")
    parser.add_argument(ALL, action="help", help="Explain every argument.")
    names = {entry.name: dataclass for dataclass in dataclasses for entry in fields(dataclass) if entry.init}
    group = parser.add_argument_group(TRAINING_GROUP)
    for action in parser._actions:
        if action.dest in names:
            # one spelling is enough to read; the other is accepted too
            action.option_strings = action.option_strings[:1]
        if action.nargs != 0 and action.choices is None:
            action.metavar = action.dest.split("_")[-1].upper()
        of_trainer = names.get(action.dest) is training is not None
        if of_trainer:
            group._group_actions.append(action)
            action.help = EXPLAINED.get(action.dest) or action.help
        # `--no_...` of a switch that is on by default exists too
        is_hidden = action.dest in SELDOM or (of_trainer and (action.dest not in EXPLAINED or action.const is False))
        if is_hidden and not with_all:
            action.help = SUPPRESS
        if action.dest == "bf16":
            action.type, action.default = read_bf16, AUTO
    parser._optionals._group_actions = [
        action for action in parser._optionals._group_actions if action not in group._group_actions
    ]
    parser._optionals.title = "general"
    explained = list(EXPLAINED)
    group._group_actions.sort(key=lambda action: (explained + [action.dest]).index(action.dest))

    def place(found: Any) -> int:
        return ORDER.index(found.title) if found.title in ORDER else ORDER.index("")

    general = [parser._positionals, parser._optionals]
    parser._action_groups = [*sorted((g for g in parser._action_groups if g not in general), key=place), *general]
    more = ", among them all arguments of transformers.TrainingArguments" if training is not None else ""
    parser.epilog = f"{ALL} explains all arguments{more}. --debug, at the end, shows where an error was raised."
    parser.set_defaults(**defaults)
    return parser


def read(parser: ArgumentParser, arguments: list[str], names: Iterable[str], first: str | None) -> dict[str, Any]:
    """
    The values of a command line, and of the file that `--config` names.

    Raises:
        ValueError: if the file cannot be read, or has names that are not arguments.
    """
    if first is not None and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    reader = ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config")
    (known, _) = reader.parse_known_args(arguments)
    if known.config is not None:
        values = read_fields("config", known.config)
        names = list(names)
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(
                f"--config {known.config} has {', '.join(unknown)}: no such arguments (see {ALL})"
                + meant(unknown[0], names)
            )
        arguments = [*as_command_line(values), *arguments]
    return vars(parser.parse_args(arguments))
