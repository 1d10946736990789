"""The command lines that the README and the scripts' own texts show are ones that the commands read."""

import re
import shlex
from importlib import import_module

import pytest
from processes import ROOT
from recipes import blocks, recipes

from synkhorn import cli
from synkhorn.scripts.common.arguments import parse

COMMANDS = [
    command for command in cli.COMMANDS if hasattr(import_module(f"synkhorn.scripts.{command}"), parse.__name__)
]
EXAMPLES = [
    line
    for command in COMMANDS
    for line in re.findall(r"^    (synkhorn .+)$", import_module(f"synkhorn.scripts.{command}").__doc__, re.MULTILINE)
]


def lines_of(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


class Read(Exception):
    """Raised in place of what a command does once its arguments are read."""


@pytest.mark.parametrize("line", [*lines_of(recipes()), *EXAMPLES])
def test_a_command_line_is_read(line, monkeypatch, tmp_path):
    program, command, *arguments = shlex.split(line)
    module = import_module(f"synkhorn.scripts.{command}")
    monkeypatch.chdir(tmp_path)
    # what the examples name
    (tmp_path / "sizes.yaml").write_text("{}")
    for word in arguments:
        if word.startswith(("my-", "runs/")):
            (tmp_path / word).mkdir(parents=True)
            (tmp_path / word / "config.json").write_text("{}")

    def read(*dataclasses, **defaults):
        parse(*dataclasses, **defaults)
        raise Read

    monkeypatch.setattr(module, "parse", read)
    with pytest.raises(Read):
        cli.main([command, *arguments])
    assert program == "synkhorn" and command in COMMANDS


def test_the_recipes_cover_every_step_and_make_has_its_targets():
    commands = [line.split()[1] for line in lines_of(recipes())]
    assert commands == ["pretrain", "pretrain", "finetune", "evaluate", "generate", "export", "push"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = re.findall(r"^make (\w+)", "\n".join(blocks()), re.MULTILINE)
    assert shown and set(shown) <= set(targets)
