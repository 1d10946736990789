"""
The console command `synkhorn`: `synkhorn COMMAND ARGUMENTS` runs `synkhorn.scripts.COMMAND`.

It is a package of its own because importing any part of `synkhorn` imports PyTorch and Transformers, which takes
seconds: here a command line is checked, and help is shown, before that.
"""

import ast
import re
import sys
import textwrap
from typing import Any

from . import checks
from .declared import GENERATION, SEQ2SEQ_TRAINING, TRAINING, class_of, constants, declared, tree_of
from .parser import ALL, build, meant, read

# in the order in which they are met
GROUPS = {
    "Train": ("quickstart", "convert", "pretrain", "finetune"),
    "Use": ("evaluate", "generate", "serve", "push", "export"),
    "Study": ("compare", "ablate", "train_synthetic", "visualize", "benchmark"),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)
TASKS = ("classification", "token-classification", "question-answering", "multiple-choice", "seq2seq")
WITH_TASKS = {"finetune": (*TASKS, "embeddings"), "evaluate": (*TASKS, "language-modeling")}
CHECKPOINT = "synkhorn.scripts.common.checkpoints:CheckpointArguments"
MODEL, DATA = "synkhorn.scripts.training.models:ModelArguments", "synkhorn.scripts.data.text_data:DataArguments"
# command -> its dataclasses, the module of its defaults, and the argument that may stand first without its name
READ: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    "quickstart": (("synkhorn.scripts.quickstart:QuickstartArguments",), None, None),
    "convert": ((CHECKPOINT, "synkhorn.scripts.convert:ConvertArguments"), None, "checkpoint"),
    "pretrain": (
        (MODEL, DATA, "synkhorn.scripts.training.pretraining:PretrainingArguments", TRAINING),
        "synkhorn.scripts.training.pretraining",
        None,
    ),
    "finetune": (
        (MODEL, DATA, "synkhorn.scripts.training.finetuning:FinetuneArguments", TRAINING),
        "synkhorn.scripts.training.finetuning",
        None,
    ),
    "evaluate": (("synkhorn.scripts.tasks.evaluation:EvaluateArguments", DATA), None, None),
    "generate": ((CHECKPOINT, "synkhorn.scripts.common.generation:PromptArguments", GENERATION), None, "checkpoint"),
    "push": (("synkhorn.scripts.push:PushArguments",), None, "checkpoint"),
    "export": ((CHECKPOINT, "synkhorn.scripts.export:ExportArguments"), None, "checkpoint"),
}
# errors that say what to do about them
EXPECTED = (ValueError, OSError, ImportError)


def documented(command: str) -> str:
    """The docstring of a command's script."""
    return ast.get_docstring(tree_of(f"synkhorn.scripts.{command}"))


def first_sentence(command: str) -> str:
    """A command in one sentence: the first of its docstring."""
    return re.split(r"(?<=[.?]) ", " ".join(documented(command).split()))[0]


def usage() -> str:
    """The commands, one a line, grouped."""
    lines = ["usage: synkhorn COMMAND ARGUMENTS"]
    for group, commands in GROUPS.items():
        lines += ["", group]
        for command in commands:
            first, *more = textwrap.wrap(first_sentence(command), width=90)
            lines += [f"  {command:<18}{first}", *(" " * 20 + line for line in more)]
    lines += ["", "Your own texts: synkhorn finetune classification --train_files reviews.csv --output_dir my-model"]
    lines += ["synkhorn COMMAND --help explains the arguments of a command, --help-all all of them."]
    return "\n".join(lines)


def task_usage(command: str) -> str:
    """The tasks of a command."""
    lines = [f"usage: synkhorn {command} TASK ARGUMENTS", "", documented(command), "", "TASK is one of"]
    for task in WITH_TASKS[command]:
        doc = ast.get_docstring(class_of(task_module(task), task_class(task)))
        lines.append(f"  {task:<24}{' '.join(doc.split()).split('. ')[0].rstrip('.')}")
    return "\n".join([*lines, "", f"synkhorn {command} TASK --help explains the arguments."])


def task_module(task: str) -> str:
    return f"synkhorn.scripts.tasks.{task.replace('-', '_')}"


def task_class(task: str) -> str:
    return task.title().replace("-", "")


def fail(program: str, message: str) -> None:
    """End with a message of one line."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check(command: str, arguments: list[str]) -> None:
    """
    Read a command line as the command will, and check what it names, without importing it. Shows help, too.

    Raises:
        ValueError: naming the argument and the remedy.
        SystemExit: after help, or a message of one line.
    """
    names, defaults_of, first = READ[command]
    if command in WITH_TASKS and arguments[0] == "seq2seq":
        names = tuple(SEQ2SEQ_TRAINING if name == TRAINING else name for name in names)
    dataclasses: list[Any] = [declared(name) for name in names]
    description, task = documented(command), None
    if command in WITH_TASKS:
        task, *arguments = arguments
        own = declared(f"{task_module(task)}:{task_class(task)}Arguments")
        dataclasses.insert(2, own)
        description = f"{ast.get_docstring(class_of(task_module(task), task_class(task)))}\n\n{description}"
    training = next((declared(name) for name in names if name in (TRAINING, SEQ2SEQ_TRAINING)), None)
    defaults: dict[str, Any] = {} if defaults_of is None else constants(defaults_of)["DEFAULTS"]
    parser = build(dataclasses, description, training, first, task, ALL in arguments, **defaults)
    fields = {name: dataclass for dataclass in dataclasses for name in dataclass.__dataclass_fields__}
    values = read(parser, arguments, fields, first)
    checks.check(command, values)
    for dataclass in dataclasses:
        try:
            dataclass(**{name: values[name] for name, owner in fields.items() if owner is dataclass})
        except NameError:
            # a check that needs what is not imported yet; the command makes it
            continue


def main(arguments: list[str] | None = None) -> None:
    """Check and run the command that the command line names; an error is one line, unless `--debug` is given."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help", ALL):
        print(usage())
        return
    if command not in COMMANDS:
        hint = meant(command, COMMANDS) or f": choose one of {', '.join(COMMANDS)}"
        fail("synkhorn", f"{command!r} is not a command{hint}")
    # the name in the command's own help and errors
    program = sys.argv[0] = f"synkhorn {command}"
    if command in WITH_TASKS:
        task = (rest or ["--help"])[0]
        if task in ("-h", "--help", ALL):
            print(task_usage(command))
            return
        if task not in WITH_TASKS[command]:
            hint = meant(task, WITH_TASKS[command]) or f": choose one of {', '.join(WITH_TASKS[command])}"
            fail(program, f"{task!r} is not a task{hint}")
    # the Trainer has a --debug of its own, which takes a value
    debug = rest[-1:] == ["--debug"]
    rest = rest[:-1] if debug else rest
    try:
        if command in READ:
            check(command, rest)
        if sys.stderr.isatty() and not {"-h", "--help", ALL} & set(rest):
            print("Loading PyTorch and Transformers ...", file=sys.stderr, flush=True)
        from synkhorn import cli

        cli.main([command, *rest])
    except KeyboardInterrupt:
        resume = (
            "; the same command goes on from the last checkpoint, or starts again if there is none yet"
            if command in ("pretrain", "finetune")
            else ""
        )
        fail(program, f"interrupted{resume}")
    except Exception as error:
        if debug:
            raise
        message = str(error) or type(error).__name__
        fail(program, message if isinstance(error, EXPECTED) else f"{type(error).__name__}: {message} (see --debug)")
