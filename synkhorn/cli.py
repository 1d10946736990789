"""Runs the command that a command line names, which the console command `synkhorn` has checked: `synkhorn_console`."""

import sys
from importlib import import_module

from synkhorn_console import COMMANDS, usage


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the command line names."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"{usage()}\n\nsynkhorn: {command!r} is not a command", file=sys.stderr)
        sys.exit(2)
    sys.argv[0] = f"synkhorn {command}"
    import_module(f"{__package__}.scripts.{command}").main(rest)


if __name__ == "__main__":
    main()
