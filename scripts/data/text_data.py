"""Examples to train and measure on: a dataset of the Hub, local files, or the packaged reviews, streamed or not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from synkhorn_console.checks import READERS, SPLITS, check_file

from .reviews import PACKAGED, SPLIT_SEED, load_reviews

# without a validation split a tenth of the training rows is held out, and at most so many
MOST_HELD_OUT = 1000
# the names that datasets of the Hub give the split that is validated on
VALIDATION_NAMES = ("validation", "valid", "dev", "val")
Examples: TypeAlias = Dataset | IterableDataset


@dataclass
class DataArguments:
    """Which data: a dataset of the Hub, local files, or the packaged reviews."""

    _argument_group_name = "data"

    dataset: str | None = field(
        default=None,
        metadata={"help": f"Instead of files, a dataset of the Hub, or `{PACKAGED}`: IMDb reviews, without network."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Your own files to train on: csv, json, jsonl, parquet, txt (one text a line), or a folder of .txt "
            "files, in which subfolders are classes."
        },
    )
    validation_files: list[str] | None = field(
        default=None, metadata={"help": "Files to validate on; a part of the training data if not given."}
    )
    test_files: list[str] | None = field(default=None, metadata={"help": "Files to test on."})
    validation_size: int | None = field(
        default=None,
        metadata={"help": f"Training rows held out to validate on; a tenth, at most {MOST_HELD_OUT:,}, if not given."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many examples only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many examples only."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the data while training, without a copy on disk. Needs --max_steps."}
    )
    num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})


def load_splits(
    data: DataArguments,
    columns: Sequence[str],
    needed: Sequence[str] = ("train", "validation"),
    sample_by: str = "line",
) -> dict[str, Examples]:
    """
    The splits `train`, `validation` and `test` that there are, each with at least one row and with `columns`.

    Where `validation` is needed and there is none, `validation_size` rows of the training split are held out, drawn by
    a fixed seed; of a stream, its first rows.

    Args:
        data: its arguments.
        columns: the columns that each split must have; others are kept.
        needed: the splits that there must be.
        sample_by: a row of a local text file: a `line`, a `paragraph` or the whole `document`.

    Raises:
        ValueError: if the arguments name no data or two, a file is missing, empty or of an unknown kind, or a split or
            column is missing, or a split is empty.
    """
    files = {split: paths for split in SPLITS if (paths := getattr(data, f"{split}_files")) is not None}
    if (data.dataset is None) == (not files):
        raise ValueError(
            f"dataset={data.dataset!r} and files {files}: name a dataset or files, and not both, such as --dataset "
            f"{PACKAGED} or --train_files texts.jsonl"
        )
    name = f"dataset {data.dataset!r}" if files == {} else "the data in the files"
    loaded = read_files(files, data.streaming, sample_by) if files else load_named(data)
    splits = {"validation" if split in VALIDATION_NAMES else split: rows for split, rows in loaded.items()}
    splits = {split: rows for split, rows in splits.items() if split in SPLITS}
    for split, rows in splits.items():
        check_split(name, split, rows, columns)
    if "validation" in needed and "validation" not in splits and "train" in splits:
        splits |= hold_out(name, splits["train"], data.validation_size, data.max_train_samples)
    missing = [split for split in needed if split not in splits]
    if missing:
        raise ValueError(f"{name} has the splits {list(loaded)}, but needs {', '.join(missing)}")
    return {
        split: first_rows(rows, data.max_train_samples if split == "train" else data.max_eval_samples)
        for split, rows in splits.items()
    }


def described(data: DataArguments) -> dict[str, Any]:
    """The data in a model card: `dataset_name`, and `dataset_id` and `language` where they are known."""
    if data.dataset == PACKAGED:
        name = "IMDb (training half, own split)"
        return {"dataset_name": name, "dataset_id": "stanfordnlp/imdb", "language": "en"}
    if data.dataset is not None:
        return {"dataset_name": data.dataset, "dataset_id": data.dataset, "language": None}
    paths = [path for split in SPLITS for path in getattr(data, f"{split}_files") or []]
    name = ", ".join(Path(path).name for path in paths)
    return {"dataset_name": name, "dataset_id": None, "language": None}


def load_named(data: DataArguments) -> DatasetDict | IterableDatasetDict:
    """The splits of a dataset of the Hub, or of the packaged reviews."""
    if data.dataset != PACKAGED:
        return load_dataset(data.dataset, data.dataset_config, streaming=data.streaming)
    reviews = load_reviews()
    return as_stream(reviews) if data.streaming else reviews


def as_stream(splits: dict[str, Dataset]) -> IterableDatasetDict:
    return IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in splits.items()})


def read_files(files: dict[str, list[str]], streaming: bool, sample_by: str) -> DatasetDict | IterableDatasetDict:
    """The splits of local files, all of one kind."""
    kinds = set()
    for split, paths in files.items():
        for path in map(Path, paths):
            check_file(f"--{split}_files", path)
            kinds.add("folder" if path.is_dir() else READERS[path.suffix])
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(f'{split}_files' for split in files)} mix {sorted(kinds)}: give one kind of file")
    kind = kinds.pop()
    if kind == "folder":
        folders = {split: Dataset.from_list(rows_of_folders(paths)) for split, paths in files.items()}
        return as_stream(folders) if streaming else DatasetDict(folders)
    options: dict[str, Any] = {"sample_by": sample_by} if kind == "text" else {}
    if kind == "csv":
        # texts and labels such as "None" and "NA" are what they are
        options = {"keep_default_na": False, "na_values": [""]}
    try:
        return load_dataset(kind, data_files=files, streaming=streaming, **options)
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(f"{files} cannot be read, or hold no row: {error.__cause__ or error}") from error


def rows_of_folders(paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each .txt file: its `text`, and as its `label` the subfolder that it lies in, where it lies in one."""
    rows = []
    for folder in map(Path, paths):
        for path in sorted(folder.rglob("*.txt")):
            inside = path.relative_to(folder).parts[:-1]
            label = {"label": inside[0]} if inside else {}
            rows.append({"text": path.read_text(encoding="utf-8", errors="replace")} | label)
    return rows


def check_split(name: str, split: str, examples: Examples, columns: Sequence[str]) -> None:
    """Raise a `ValueError` that names what is missing if a split has no row, or lacks a column."""
    first = next(iter(examples), None)
    if first is None:
        raise ValueError(f"{name} is empty: its split {split} has no row")
    missing = [column for column in columns if column not in first]
    if missing:
        raise ValueError(
            f"{name} lacks the columns {missing} in its split {split}: it has {list(first)}. Name the right ones, such "
            f"as by --text_column {next(iter(first))}"
        )


def hold_out(name: str, train: Examples, size: int | None, most: int | None) -> dict[str, Examples]:
    """The training split, of which `most` rows will be trained on, without `size` rows, and those rows."""
    if isinstance(train, IterableDataset):
        size = MOST_HELD_OUT if size is None else size
        return {"train": train.skip(size), "validation": train.take(size)}
    if size is None:
        size = min(MOST_HELD_OUT, max(1, min(len(train), most or len(train)) // 10))
    if not 0 < size < len(train):
        raise ValueError(
            f"validation_size={size} must lie in 1 to {len(train) - 1}: {name} has {len(train)} rows to train on, and "
            "no validation split. Give more rows, or another --validation_size"
        )
    split = train.train_test_split(test_size=size, seed=SPLIT_SEED)
    return {"train": split["train"], "validation": split["test"]}


def first_rows(examples: Examples, count: int | None) -> Examples:
    """`count` rows, drawn by a fixed seed; of a stream, its first; all for `None`."""
    if count is None:
        return examples
    if isinstance(examples, IterableDataset):
        return examples.take(count)
    return examples.shuffle(seed=SPLIT_SEED).select(range(min(count, len(examples))))
