"""Reads the command line of a command into its dataclasses, as `synkhorn_console` does before the imports."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from synkhorn_console.parser import ALL, as_command_line, build, read, read_fields  # noqa: F401

from .precision import choose_bf16, device_type


def parse(
    dataclasses: Sequence[type],
    arguments: list[str] | None,
    description: str,
    first: str | None = None,
    task: str | None = None,
    **defaults: Any,
) -> tuple[Any, ...]:
    """
    Read a command line into dataclasses, see `synkhorn_console.parser.build`.

    `--config file.yaml|json` gives values that the command line overrides. A Trainer's arguments run on the CPU where
    there is no accelerator. `bf16` is `auto` by default, see `precision`.

    Raises:
        ValueError: if the file cannot be read, or has names that are not arguments.
        SystemExit: for an unknown argument or a value of the wrong kind, after a message.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    names = {entry.name: dataclass for dataclass in dataclasses for entry in fields(dataclass) if entry.init}
    training = next((dataclass for dataclass in dataclasses if issubclass(dataclass, TrainingArguments)), None)
    if training is not None:
        defaults = {"use_cpu": device_type() == "cpu"} | defaults
    parser = build(dataclasses, description, training, first, task, ALL in arguments, **defaults)
    namespace = read(parser, arguments, names, first)
    if "bf16" in names:
        device = device_type(namespace.get("use_cpu"))
        namespace["bf16"] = choose_bf16(namespace["bf16"], device, namespace.get("fp16", False))
    return tuple(
        dataclass(**{name: namespace[name] for name, owner in names.items() if owner is dataclass})
        for dataclass in dataclasses
    )
