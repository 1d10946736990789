"""The console command, and what every training script's command line has in common."""

import ast
import json
import re
import sys
from importlib.metadata import entry_points
from importlib.util import resolve_name
from pathlib import Path

import pytest
from processes import ROOT, python
from transformers import TrainingArguments

import synkhorn_console
from synkhorn import cli
from synkhorn.hub_export import source_path
from synkhorn.scripts import visualize
from synkhorn.scripts.common.arguments import as_command_line, parse, read_fields
from synkhorn.scripts.data.text_data import DataArguments
from synkhorn.scripts.training.models import ModelArguments

ALL = (ModelArguments, DataArguments, TrainingArguments)


def test_the_package_installs_the_command():
    (command,) = entry_points(group="console_scripts", name="synkhorn")
    assert command.load() is synkhorn_console.main


def test_help_lists_every_command_and_imports_none():
    code = "import sys; from synkhorn import cli; cli.main(['-h']); print([n for n in sys.modules if '.scripts.' in n])"
    printed = python("-c", code)
    assert printed.splitlines()[-1] == "[]"
    assert re.findall(r"^  (\w+) +\S", printed, flags=re.MULTILINE) == list(cli.COMMANDS)
    assert re.findall(r"^(\w+)$", printed, flags=re.MULTILINE) == ["Train", "Use", "Study"]


def test_at_the_top_of_the_scripts_there_are_the_commands_and_nothing_else():
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {"__init__", *cli.COMMANDS}
    assert all("\nif __name__ ==" in source_path(f"synkhorn.scripts.{name}").read_text() for name in cli.COMMANDS)


# each may import those to its left, and the commands all of them, but no other command
FOLDERS = ("common", "data", "measuring", "tasks", "training")


def imported_by(path: Path) -> set[str]:
    """The modules below `synkhorn.scripts`, and what else of it, that a file imports, without that prefix."""
    package = ".".join(("synkhorn", *path.relative_to(ROOT).parts[:-1]))
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            found |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("synkhorn.scripts.") for name in found if name.startswith("synkhorn.scripts.")}


def test_imports_of_the_scripts_go_one_way():
    assert {path.name for path in (ROOT / "scripts").iterdir() if (path / "__init__.py").exists()} == set(FOLDERS)
    for path in (ROOT / "scripts").rglob("*.py"):
        folder = path.relative_to(ROOT / "scripts").parts[0]
        may = FOLDERS[: FOLDERS.index(folder) + 1] if folder in FOLDERS else FOLDERS
        assert {name.split(".")[0] for name in imported_by(path)} <= set(may), path


def test_every_command_takes_its_arguments_as_a_list():
    for command in cli.COMMANDS:
        source = source_path(f"synkhorn.scripts.{command}").read_text()
        assert re.search(r"^def main\((args|arguments): list\[str\] \| None = None\)", source, flags=re.MULTILINE), (
            command
        )


def test_a_command_gets_its_arguments(monkeypatch):
    got = []
    monkeypatch.setattr(sys, "argv", ["synkhorn"])
    monkeypatch.setattr(visualize, "main", got.append)
    cli.main(["visualize", "--blocks", "8"])
    assert sys.argv == ["synkhorn visualize"]
    monkeypatch.setattr(sys, "argv", ["synkhorn", "visualize", "--seed", "1"])
    cli.main()
    assert got == [["--blocks", "8"], ["--seed", "1"]]


def test_an_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretain"])
    assert caught.value.code == 2
    assert "synkhorn: 'pretain' is not a command" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_the_command_line_overrides_the_file_and_the_file_the_defaults(ending, tmp_path):
    path = tmp_path / f"run.{ending}"
    if ending == "json":
        values = {"learning_rate": 0.01, "train_files": ["a.txt", "b.txt"], "bf16": True, "weight_decay": 0.3}
        values |= {"lr_scheduler_kwargs": {"num_cycles": 2}, "max_eval_samples": None}
        path.write_text(json.dumps(values))
    else:
        # a float to YAML only with a point and a sign
        path.write_text(
            "learning_rate: 1e-2\ntrain_files: [a.txt, b.txt]\nbf16: true\nweight_decay: 0.3\n"
            "lr_scheduler_kwargs: {num_cycles: 2}\nmax_eval_samples: null\n"
        )
    command = ["--config", str(path), "--weight_decay", "0.2", "--family", "synthesizer"]
    model, data, training = parse(ALL, command, "", learning_rate=5.0, logging_steps=7, output_dir=str(tmp_path))
    assert (training.learning_rate, training.weight_decay, training.logging_steps) == (0.01, 0.2, 7)
    assert training.bf16 and training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (model.family, data.train_files, data.max_eval_samples) == ("synthesizer", ["a.txt", "b.txt"], None)


def test_arguments_survive_the_command_line(tmp_path):
    values = {"train_files": ["a", "b"], "model_config": {"block_size": 8}, "streaming": True, "learning_rate": 1e-5}
    model, data, training = parse(ALL, as_command_line(values | {"output_dir": tmp_path, "revision": None}), "")
    assert (data.train_files, data.streaming, training.learning_rate) == (["a", "b"], True, 1e-5)
    assert read_fields("model_config", model.model_config) == {"block_size": 8} and model.revision == "main"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("run.yaml", "learning_rat: 1\nseeed: 2\n", "has learning_rat, seeed: no such arguments"),
        ("run.yaml", "a: [1\n", "cannot be read"),
        ("run.json", "[1]", "must hold names and values, not a list"),
        ("run.toml", "a = 1", "must be a JSON object, such as .*, or an existing .json or .yaml file"),
    ],
)
def test_a_bad_file_of_arguments_is_an_error(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(ALL, ["--config", str(tmp_path / name)], "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
        (["--learning_rate", "fast"], "argument --learning_rate: invalid float value: 'fast'"),
        (["--family", "longformer"], "argument --family: invalid choice: 'longformer'"),
    ],
)
def test_a_bad_command_line_is_an_error(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(ALL, arguments, "")
    assert message in capsys.readouterr().err


def test_help_explains_the_most_used_arguments_only(capsys):
    with pytest.raises(SystemExit):
        parse(ALL, ["--help"], "What it does.", learning_rate=0.125)
    printed = " ".join(capsys.readouterr().out.split())
    assert "What it does." in printed and "(default: 0.125)" in printed and "(default: None)" not in printed
    places = [printed.index(option) for option in ("--train_files", "--model_name_or_path", "--learning_rate")]
    assert places == sorted(places) and "--learning-rate" not in printed
    assert "--hub_strategy" not in printed and "--help-all explains all arguments" in printed
    with pytest.raises(SystemExit):
        parse(ALL, ["--help-all"], "What it does.")
    assert "--hub_strategy" in capsys.readouterr().out
