"""Checks of a command line, made before PyTorch is imported and before data is read."""

import csv
import json
import os
import shutil
from pathlib import Path
from textwrap import shorten
from typing import Any

from .declared import config_fields
from .parser import files_in, meant, nearest, read_fields

# ending of a file -> what reads it
READERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("train", "validation", "test")
CONFIG_NAME = "config.json"
LEAST_SPACE = 2**26
ABOVE_ZERO = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
# a document is longer than what the module takes for a field
csv.field_size_limit(2**31 - 1)
# what some programs write between the fields of a line
SEPARATORS = {";": "semicolons", "\t": "tabs"}
# characters of a column's name that a message shows
LONGEST_NAME = 60
# beyond it a .json or .csv file is not read twice
MOST_BYTES = 2**25


def check(command: str, values: dict[str, Any]) -> None:
    """
    Raise a `ValueError` that names the argument and the remedy if a command cannot run.

    Args:
        command: such as `finetune`.
        values: name of an argument -> value, as the command line and the defaults have it.
    """
    for name in ("checkpoint", "model_name_or_path", "assistant_model"):
        if values.get(name) is not None:
            check_checkpoint(name, values[name])
    if values.get("tokenizer_name") not in (None, "bytes", "train"):
        check_path("tokenizer_name", values["tokenizer_name"])
    for name in ABOVE_ZERO:
        if isinstance(values.get(name), (int, float)) and values[name] <= 0:
            raise ValueError(f"--{name} {values[name]} must be above 0")
    check_config(values)
    check_output(command, values)
    for name in ("prompt_file", "file", "lm_eval_include"):
        if values.get(name) is not None and not Path(values[name]).exists():
            raise ValueError(f"--{name} {values[name]} does not exist{meant_path(Path(values[name]))}")
    if "train_files" in values and values.get("lm_eval") is None:
        check_data(values, needed=values.get("split") or "train")


def meant_path(path: Path) -> str:
    """`: did you mean ...?` for a path that does not exist, or nothing."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = {str(other): other for other in files_in(folder) if not other.name.startswith(".")}
    found = nearest(str(path), names) or nearest(
        path.name, {other.name: other for other in files_in(path.parent) if other.suffix == path.suffix}
    )
    if found is not None:
        return f": did you mean {found if found in names else path.parent / found}?"
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def check_path(name: str, value: str) -> None:
    """A folder that exists, or a name on the Hub: owner/name, unless there is a folder `owner` here."""
    path = Path(value).expanduser()
    if path.exists() or (len(path.parts) == 1 and not value.startswith((".", "~"))):
        return
    is_hub_name = not path.is_absolute() and len(path.parts) == 2 and not value.startswith((".", "~"))
    if not is_hub_name or path.parent.is_dir():
        raise ValueError(f"--{name} {value} does not exist{meant_path(path)}")


def check_checkpoint(name: str, value: str) -> None:
    folder = Path(value).expanduser()
    if folder.is_file():
        raise ValueError(f"--{name} {value} is a file: name the folder that holds {CONFIG_NAME} and the weights")
    if not folder.is_dir():
        if len(folder.parts) == 1:
            hint = meant(value, [path.name for path in files_in(Path()) if (path / CONFIG_NAME).is_file()])
            raise ValueError(f"--{name} {value} is neither a folder in {Path.cwd()} nor owner/name on the Hub{hint}")
        check_path(name, value)
        return
    if not (folder / CONFIG_NAME).is_file():
        inside = [path for path in files_in(folder) if (path / CONFIG_NAME).is_file()]
        raise ValueError(
            f"--{name} {value} holds no {CONFIG_NAME}, so it is not a checkpoint"
            + (f": did you mean {inside[-1]}?" if inside else "")
        )
    names = [path.name for path in files_in(folder)]
    if not any(name.endswith((".safetensors", ".bin", ".safetensors.index.json")) for name in names):
        raise ValueError(f"--{name} {value} holds no weights (model.safetensors): the training did not end, or copy it")


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the checkpoint that a command starts from, where it is a folder."""
    start = values.get("model_name_or_path") or values.get("checkpoint")
    path = Path(start or "").expanduser() / CONFIG_NAME
    if start is None or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def own_fields(option: str, values: dict[str, Any], family: str | None) -> dict[str, Any]:
    """The fields that an option sets, each of them one that the family has."""
    if values.get(option) is None:
        return {}
    own = read_fields(option, values[option])
    known = None if family is None else config_fields(family)
    unknown = [] if known is None else sorted(set(own) - known)
    if unknown:
        hint = meant(unknown[0], known) or f": it has {', '.join(sorted(known))}"
        raise ValueError(f"--{option} has {', '.join(unknown)}, not a field of a {family} model{hint}")
    return own


def check_config(values: dict[str, Any]) -> None:
    """`--model_config`, `--decoder_config`, and a `--max_length` beyond what a checkpoint takes."""
    saved = saved_config(values)
    start = values.get("model_name_or_path")
    family = values.get("to") or (saved.get("model_type") if start else values.get("family"))
    own = own_fields("model_config", values, family)
    own_fields("decoder_config", values, values.get("decoder_family") or family)
    limit, asked = saved.get("max_position_embeddings"), values.get("max_length")
    limit = own.get("max_position_embeddings", limit)
    if "to" not in values and limit and asked and asked > limit:
        raise ValueError(
            f"--max_length {asked} is more than the {limit} tokens that the model takes: lower it, or make the model "
            f"longer first: synkhorn convert ... --max_length {asked}"
        )


def check_output(command: str, values: dict[str, Any]) -> None:
    """The folder that is written must be new, or hold an earlier run; and there must be space for it."""
    name = "to" if command == "push" else "output_dir"
    value = values.get(name)
    if value is None or (command == "push" and not value.startswith((".", "/", "~"))):
        return
    folder = Path(value).expanduser()
    if folder.is_file():
        raise ValueError(f"--{name} {value} is a file: name a new folder")
    is_resumed = command in ("finetune", "pretrain") and (folder / "run.json").is_file()
    if command != "quickstart" and files_in(folder) and not is_resumed:
        raise ValueError(f"--{name} {value} exists and is not empty: choose a new folder")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--{name} {value} cannot be written: {parent} is read-only for you; choose another folder")
    if (free := shutil.disk_usage(parent).free) < LEAST_SPACE:
        raise ValueError(
            f"--{name} {value} is on a disk that is full ({free / 2**20:.0f} MB free): free some space, or choose a "
            "folder on another disk"
        )


def check_data(values: dict[str, Any], needed: str) -> None:
    """The files of the data: that they exist, can be read, and have the columns that the arguments name."""
    files = {split: values[f"{split}_files"] for split in SPLITS if values.get(f"{split}_files")}
    if values.get("dataset") is None and not files:
        raise ValueError(
            f"no data: give --{needed}_files, such as --{needed}_files texts.csv, or --dataset reviews for the "
            "packaged reviews"
        )
    if values.get("dataset") is not None and files:
        raise ValueError(f"--dataset {values['dataset']} and --{next(iter(files))}_files: give one of them")
    if values.get("dataset") is not None:
        check_dataset(values["dataset"])
        return
    if needed not in files:
        raise ValueError(f"no data to {'train' if needed == 'train' else 'measure'} on: give --{needed}_files")
    for split, paths in files.items():
        for path in map(Path, paths):
            check_file(f"--{split}_files", path)
            check_columns(f"--{split}_files", path, values)
            check_cells(f"--{split}_files", path, values)


def check_dataset(dataset: str) -> None:
    path = Path(dataset)
    if path.suffix in READERS or path.is_file():
        raise ValueError(f"--dataset {dataset} is a file: give local files by --train_files {dataset}")
    if not path.exists() and len(path.parts) == 1 and dataset != "reviews" and nearest(dataset, ["reviews"]):
        raise ValueError(f"--dataset {dataset} is not known: did you mean reviews?")


def check_file(option: str, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{option} {path} does not exist{meant_path(path)}")
    if path.is_dir():
        if not any(path.rglob("*.txt")):
            raise ValueError(f"{option} {path} is a folder without .txt files: give a folder of texts, or files")
        return
    if path.suffix not in READERS:
        raise ValueError(f"{option} {path} must end in one of {', '.join(READERS)}, or be a folder of .txt files")
    if not path.stat().st_size:
        raise ValueError(f"{option} {path} is empty")


def first_row(option: str, path: Path) -> dict[str, Any] | None:
    """The first row of a file; `None` where it is not known without reading all of it."""
    if path.is_dir():
        return {"text": "", "label": ""} if any(found.is_dir() for found in files_in(path)) else {"text": ""}
    if path.suffix == ".txt":
        return {"text": ""}
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = csv.DictReader(lines)
                row = next(rows, None)
            if row is None:
                raise ValueError(f"{option} {path} has no row below the names of the columns {rows.fieldnames}")
            return row
        if path.suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_schema(path)
            return dict.fromkeys(table.names)
        with path.open(encoding="utf-8-sig") as lines:
            number, line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
        if path.suffix == ".jsonl":
            row = json.loads(line)
        elif path.stat().st_size > MOST_BYTES:
            return None
        else:
            found = json.loads(path.read_text(encoding="utf-8-sig")) if line.lstrip().startswith("[") else None
            row = json.loads(line) if found is None and line.rstrip().endswith("}") else found and found[0]
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path} is not UTF-8 text: save it as UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        message = f"{option} {path}, line {number}, is not valid JSON: {error.msg}, in {line.strip()[:60]!r}"
        raise ValueError(message) from error
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be read: {error}") from error
    if row is not None and not isinstance(row, dict):
        raise ValueError(f'{option} {path} holds {str(row)[:60]!r}: each row must be an object such as {{"text": "a"}}')
    return row


def check_columns(option: str, path: Path, values: dict[str, Any]) -> None:
    row = first_row(option, path)
    if row is None:
        return
    named = {
        name: column
        for name, value in values.items()
        if name.endswith(("_column", "_columns")) and isinstance(value, (str, list)) and value != "none"
        for column in (value if isinstance(value, list) else [value])
    }
    asked = {column for name, column in named.items()}
    for separator, many in SEPARATORS.items():
        if path.suffix == ".csv" and len(row) == 1 and separator in next(iter(row)):
            raise ValueError(f"{option} {path} has {many} between its fields: save it with commas")
    for name, column in named.items():
        if column not in row:
            names = ", ".join(shorten(str(name), LONGEST_NAME) for name in row)
            headless = any(len(str(name)) > LONGEST_NAME for name in row)
            raise ValueError(
                f"{option} {path} has no column {column!r}, only {names}"
                + (
                    ": its first line must name the columns"
                    if headless
                    else remedy(name, column, {key: value for key, value in row.items() if key not in asked})
                )
            )
        text = row[column]
        if name in ("text_column", "text_pair_column", "context_column") and not isinstance(text, (str, type(None))):
            others = {key: value for key, value in row.items() if isinstance(value, str)}
            raise ValueError(f"--{name} {column} holds {text!r}, not a text" + remedy(name, column, others))


def check_cells(option: str, path: Path, values: dict[str, Any]) -> None:
    """The texts and classes of a CSV file that is soon read: that none is missing, and that the classes are some."""
    columns = [values.get("text_column"), values.get("label_column")]
    if path.suffix != ".csv" or path.stat().st_size > MOST_BYTES or None in columns:
        return
    labels = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            for column in columns:
                if not row[column]:
                    raise ValueError(
                        f"{option} {path}, line {rows.line_num}, has nothing in column {column!r}: fill it in, or "
                        "remove the row"
                    )
            labels.append(row[columns[-1]])
    if option != "--train_files" or len(values["train_files"]) > 1 or values.get("problem_type") == "regression":
        return
    if len(set(labels)) == 1:
        raise ValueError(
            f"{option} {path} has the class {labels[0]!r} only in column {columns[-1]!r}: a classifier needs two"
        )
    if len(set(labels)) == len(labels) > 2 and not all(is_number(label) for label in labels):
        raise ValueError(
            f"{option} {path} has another class in each of its {len(labels):,} rows in column {columns[-1]!r}: give "
            "--label_column with the name of the column that holds the class"
        )


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def remedy(name: str, column: str, free: dict[str, Any]) -> str:
    """The option to give, with the column that was probably meant: by its name, or else by what it holds."""
    found = nearest(column, map(str, free))
    if found is None and free:
        longest = max if name in ("text_column", "context_column") else min
        found = longest(free, key=lambda key: len(str(free[key])))
    return f": give --{name}" + (f" {found}" if found else " with the name of the column that holds it")
