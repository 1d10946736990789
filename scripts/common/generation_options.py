"""The options of `generate()` as arguments of a command line, read from Transformers' own `GenerationConfig`."""

import inspect
import re
from dataclasses import field, fields, make_dataclass
from typing import Any

import yaml
from transformers import GenerationConfig

# options that a command that writes text does not show, or that only encoder-decoder models read
UNUSED = {
    *GenerationConfig.extra_output_flags,
    "return_dict_in_generate", "decoder_start_token_id", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "is_assistant", "compile_config",
}  # fmt: skip
SCALARS = {"`int`": int, "`float`": float, "`bool`": bool, "`str`": str}
LISTS = {"list[int]": list[int], "list[str]": list[str]}


def documented() -> dict[str, tuple[str, str]]:
    """Every field that `GenerationConfig` documents: name -> its type as it is written there, and its description."""
    entries: dict[str, tuple[str, str]] = {}
    name = None
    for line in inspect.getdoc(GenerationConfig).splitlines():
        entry = re.fullmatch(r" {4}(\w+):? *\((.*?)\)+:", line)
        if entry:
            name = entry[1]
            entries[name] = (entry[2], "")
        elif name is not None and line.startswith(" " * 8):
            kind, text = entries[name]
            entries[name] = (kind, f"{text} {line.strip()}".lstrip())
        elif line.strip():
            name = None
    return {name: entry for name, entry in entries.items() if name in vars(GenerationConfig()) and name not in UNUSED}


def type_of(kind: str) -> Any:
    """The type of an argument from what the documentation calls it; `None` for one that is read as YAML."""
    listed = [LISTS[name] for name in LISTS if name in kind and f"list[{name}" not in kind and "dict[" not in kind]
    return listed[0] if listed else SCALARS.get(kind.split(",")[0].strip())


TYPES = {name: type_of(kind) for name, (kind, _) in documented().items()}


def option(name: str, text: str) -> tuple[str, Any, Any]:
    """An argument for `make_dataclass`, not given unless the user does."""
    text = text.replace("%", "%%")
    if TYPES[name] is None:
        text += " Given as YAML or JSON."
    # a switch may stand alone
    switch = {"nargs": "?", "const": True} if TYPES[name] is bool else {}
    return name, (TYPES[name] or str) | None, field(default=None, metadata={"help": text} | switch)


GenerationArguments = make_dataclass(
    "GenerationArguments",
    [option(name, text) for name, (_, text) in documented().items()],
    namespace={
        "__doc__": "The options of `generate()`, `None` where they are left to the checkpoint and to Transformers.",
        "_argument_group_name": "generate()",
    },
)


def given_options(arguments: Any) -> dict[str, Any]:
    """
    The options that were given, as `generate()` takes them.

    Raises:
        ValueError: if one is not valid YAML, or Transformers refuses it.
    """
    options = {
        entry.name: value for entry in fields(arguments) if (value := getattr(arguments, entry.name)) is not None
    }
    for name in [name for name in options if TYPES[name] is None]:
        try:
            options[name] = yaml.safe_load(options[name])
        except yaml.YAMLError as error:
            raise ValueError(f"{name}={options[name]!r} is not valid YAML: {error}") from error
    GenerationConfig(**options).validate()
    return options
