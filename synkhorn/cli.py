"""The console command `synkhorn`: `synkhorn COMMAND ARGUMENTS` runs `synkhorn.scripts.COMMAND`."""

import ast
import re
import sys
import textwrap
from importlib import import_module
from itertools import zip_longest

from .hub_export import source_path

# in the order in which they are met
COMMANDS = (
    "quickstart",
    "convert",
    "pretrain",
    "finetune",
    "evaluate",
    "generate",
    "serve",
    "push",
    "export",
    "compare",
    "ablate",
    "visualize",
    "train_synthetic",
    "benchmark",
)


def first_sentence(command: str) -> str:
    """What a command does: the first sentence of its script's docstring, read without importing the script."""
    source = source_path(f"{__package__}.scripts.{command}").read_text(encoding="utf-8")
    text = " ".join(ast.get_docstring(ast.parse(source)).split())
    return re.split(r"(?<=[.?]) ", text)[0]


def usage() -> str:
    """The commands, one a line."""
    lines = ["usage: synkhorn COMMAND ARGUMENTS", ""]
    for command in COMMANDS:
        described = textwrap.wrap(first_sentence(command), width=80)
        lines += [f"  {name:<20}{line}" for name, line in zip_longest([command], described, fillvalue="")]
    lines += ["", "synkhorn COMMAND --help explains its arguments."]
    lines += ["Each is also python -m synkhorn.scripts.COMMAND and torchrun -m synkhorn.scripts.COMMAND."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the command line names."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"{usage()}\n\nsynkhorn: {command!r} is no command", file=sys.stderr)
        sys.exit(2)
    # what the command's own help and errors call it
    sys.argv[0] = f"synkhorn {command}"
    import_module(f"{__package__}.scripts.{command}").main(rest)


if __name__ == "__main__":
    main()
