"""
The arguments of a command, read from the source of its dataclasses: importing them would import PyTorch, which takes
seconds, and a misspelt option should be reported at once.
"""

import ast
import dataclasses
import re
import sys
from dataclasses import field, make_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRAINING = "transformers.training_args:TrainingArguments"
SEQ2SEQ_TRAINING = "transformers.training_args_seq2seq:Seq2SeqTrainingArguments"
# configurations of what is no family
NO_FAMILIES = ("backbone", "encoder_decoder")
GENERATION = "transformers.generation.configuration_utils:GenerationConfig"


def source_of(module: str) -> Path:
    """The file of a module; no package is imported."""
    package, *parts = module.split(".")
    if package == "synkhorn":
        # next to this folder; the sub-packages lie beside `synkhorn` in the repository, and inside it when installed
        spec = find_spec("synkhorn")
        root = Path(spec.origin).parent
        inside = root.joinpath(*parts)
        path = inside if inside.with_suffix(".py").is_file() else root.parent.joinpath(*parts)
    else:
        path = Path(find_spec(package).origin).parent.joinpath(*parts)
    return path.with_suffix(".py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(source_of(module).read_text(encoding="utf-8"))


def class_of(module: str, name: str) -> ast.ClassDef:
    return next(node for node in tree_of(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def families() -> dict[str, str]:
    """Name of each family of the package -> the module of its configuration."""
    folder = source_of("synkhorn.configuration.configuration_backbone").parent
    names = [path.stem.removeprefix("configuration_") for path in sorted(folder.glob("configuration_*.py"))]
    return {name: f"synkhorn.configuration.configuration_{name}" for name in names if name not in NO_FAMILIES}


def config_fields(model_type: str) -> set[str] | None:
    """The fields of a family's configuration; `None` for a model of another library."""
    if model_type not in families():
        return None
    found = set()
    sources = [families()[model_type], "synkhorn.configuration.configuration_backbone"]
    for module in (*sources, "transformers.configuration_utils"):
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                found |= {ast.unparse(entry.target) for entry in node.body if isinstance(entry, ast.AnnAssign)}
    return found


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression; a `NameError` for names that only an import would define."""
    return eval(compile(ast.Expression(node), "<declared>", "eval"), dict(names))


@cache
def constants(module: str) -> dict[str, Any]:
    """The constants of a module, with those that it imports from this package and the standard library."""
    names: dict[str, Any] = {"FAMILIES": list(families()), "field": field, "Any": Any}
    for node in tree_of(module).body:
        if isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            if source.split(".")[0] in (*sys.stdlib_module_names, "synkhorn_console"):
                known = vars(import_module(source))
            elif source.startswith("synkhorn.") and source_of(source).is_file():
                known = constants(source)
            else:
                continue
            names |= {alias.asname or alias.name: known[alias.name] for alias in node.names if alias.name in known}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            called = [ast.unparse(part.func) for part in ast.walk(node.value) if isinstance(part, ast.Call)]
            if set(called) <= {"Chosen"}:
                try:
                    value = value_of(node.value, names)
                    if isinstance(target, ast.Name):
                        names[target.id] = value
                    elif isinstance(target, ast.Tuple):
                        names |= zip(map(ast.unparse, target.elts), value, strict=True)
                except (NameError, AttributeError, TypeError):
                    # it needs what is not imported
                    continue
    return names


def field_of(node: ast.expr | None, names: dict[str, Any]) -> Any:
    """A dataclass' field, without those parts that cannot be known before the imports."""
    if node is None:
        return field()
    if not isinstance(node, ast.Call):
        return field(default=value_of(node, names))
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        try:
            if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
                options["metadata"] = {}
                for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                    options["metadata"][ast.literal_eval(key)] = value_of(value, names)
            else:
                options[keyword.arg] = value_of(keyword.value, names)
        except (NameError, AttributeError):
            if keyword.arg == "default":
                options["default"] = None
    return field(**options)


@cache
def declared(name: str) -> type:
    """
    The dataclass `module:Class` with its fields, and with its checks where these need nothing else.

    A field whose type is not known before the imports is read as text.
    """
    if name == GENERATION:
        return generation_options()
    module, _, class_name = name.partition(":")
    names, node = constants(module), class_of(module, class_name)
    entries = []
    body: dict[str, Any] = {}
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            try:
                kind = value_of(entry.annotation, names)
            except (NameError, TypeError):
                kind = str | None
            entries.append((entry.target.id, kind, field_of(entry.value, names)))
        elif isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == "_argument_group_name":
            body["_argument_group_name"] = value_of(entry.value, names)
        elif isinstance(entry, ast.FunctionDef) and module.startswith("synkhorn"):
            known = dict(names)
            exec(compile(ast.Module([entry], []), "<declared>", "exec"), known)
            body[entry.name] = known[entry.name]
    # fields without a default come first
    entries.sort(key=lambda entry: entry[2].default is not dataclasses.MISSING or callable(entry[2].default_factory))
    bases = (declared(TRAINING),) if name == SEQ2SEQ_TRAINING else ()
    return make_dataclass(class_name, entries, bases=bases, namespace=body)


def generation_options() -> type:
    """The options of `generate()`, whose names and texts stand in a docstring."""
    text = ast.get_docstring(class_of(*GENERATION.split(":")))
    found = dict(re.findall(r"^ {4}(\w+):? *\((.*?)\)+:", text, flags=re.MULTILINE))
    options = [(name, str | None, field(default=None, metadata={"nargs": "*"})) for name in found]
    return make_dataclass("GenerationArguments", options, namespace={"_argument_group_name": "generate()"})
