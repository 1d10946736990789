"""What the README shows works as it is printed, and its numbers are the recorded ones."""

import json
import random
import re
import shlex
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from processes import ROOT
from recipes import blocks, recipes

import synkhorn_console
from synkhorn import cli
from synkhorn.scripts.common.arguments import parse

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
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


PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
PRINTED = [line for page in PAGES for block in blocks(page) for line in lines_of(block) if line.startswith("synkhorn ")]


class Read(Exception):
    """Raised in place of what a command does once its arguments are read."""


@pytest.mark.parametrize("line", dict.fromkeys([*PRINTED, *EXAMPLES]))
def test_a_command_line_is_read(line, monkeypatch, tmp_path):
    program, command, *arguments = shlex.split(line, comments=True)
    module = import_module(f"synkhorn.scripts.{command}")
    monkeypatch.chdir(tmp_path)
    # what the examples name
    (tmp_path / "sizes.yaml").write_text("{}")
    for word in arguments:
        if word.startswith(("my-", "runs/")):
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
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
    texts = "\n".join(page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "CONTRIBUTING.md"))
    shown = re.findall(r"(?:^|`)make (\w+)", texts, re.MULTILINE)
    assert shown and set(shown) <= set(targets)


# the blocks that follow run without the package
WITHOUT_US = ["import sys", "sys.modules['synkhorn'] = None"]


def python_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(*command: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_a_csv_to_a_model_that_is_used_and_one_trained_in_python(tmp_path, monkeypatch, capsys):
    """The blocks for one's own CSV, one after the other, as printed; only what needs the Hub is left out."""
    draw = random.Random(0)
    good, bad = ["warm", "funny", "fine", "great"], ["dull", "long", "poor", "flat"]
    for name, count in (("reviews.csv", 60), ("more.csv", 20)):
        rows = [(" ".join(draw.choices(words, k=8)), label) for words, label in ((good, "positive"), (bad, "negative"))
                for _ in range(count // 2)]  # fmt: skip
        (tmp_path / name).write_text(
            "review,sentiment\n" + "".join(f'"A {text} film.",{label}\n' for text, label in rows)
        )
    (block,) = (block for block in blocks() if "my-classifier" in block and "convert" not in block)
    monkeypatch.chdir(tmp_path)
    for line in lines_of(block):
        cli.main(shlex.split(line)[1:])
    printed = capsys.readouterr().out
    for part in (
        "Model: ",
        "Classes: ",
        "Training: ",
        "majority class",
        "Everything is in my-classifier",
        "| accuracy |",
    ):
        assert part in printed, printed
    use, train = python_of(README)
    (chinese,) = python_of(CHINESE)
    (card,) = python_of((tmp_path / "my-classifier" / "README.md").read_text())
    assert '"A text."' in card
    (inside,) = (line for line in README.splitlines() if line.startswith("Or `pipeline("))
    expression = re.search(r"`(pipeline\(.*?\))`", inside)[1]
    said = f"from transformers import pipeline\nprint({expression}('A film.'))"
    blocks_used = [use, chinese, card.replace("A text.", "A warm film. " * 200), said]
    used = run("-c", "\n".join([*WITHOUT_US, *blocks_used]), folder=tmp_path)
    assert re.findall(r"^(positive|negative) \d", used, re.MULTILINE) and used.count("label") == 3
    run("-c", train, folder=tmp_path)
    assert {"model.safetensors", "tokenizer.json", "modeling_sinkhorn.py"} <= {
        path.name for path in (tmp_path / "my-model").iterdir()
    }


def test_the_blocks_on_seq2seq_and_embeddings_run_as_printed(tmp_path):
    """Trained with the package, loaded and trained on without it."""
    trained, *used = python_of((ROOT / "docs/seq2seq.md").read_text(encoding="utf-8"))
    run("-c", trained, folder=tmp_path)
    run("-c", "\n".join([*WITHOUT_US, *used]), folder=tmp_path)
    assert (tmp_path / "my-embeddings" / "modeling_sinkhorn.py").exists()


def results(name: str, **wanted) -> dict:
    """The only recorded result with these values."""
    rows = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())["results"]
    (row,) = (row for row in rows if all(row.get(key) == value for key, value in wanted.items()))
    return row


def times_faster(name: str, model: str, length: int) -> float:
    row = results(name, model=model, length=length, phase="forward+backward", dtype="float32")
    return 1 / row["times peer"]


def decoded(model: str) -> float:
    speeds = [results("decoding/decode-batch8", model=name, length=8192)["tokens/s"] for name in (model, "gpt2")]
    return speeds[0] / speeds[1]


def mean_accuracy(row: str) -> float:
    text = (ROOT / "benchmarks" / "training" / "warm_start.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {row}"))
    return statistics.mean(float(cell) for cell in re.findall(r" (0\.\d{4}) ", line)[:3])


def genre_accuracy(entrant: str) -> float:
    rows = json.loads((ROOT / "benchmarks" / "text" / "brown.json").read_text())["results"]
    return statistics.mean(row["test"]["accuracy"] for row in rows if row["entrant"] == entrant)


def claims() -> list[str]:
    """What the README says, with the numbers that are recorded."""
    throughput = {
        model: results("throughput/throughput", model=model)["training times peer"] for model in ("sinkhorn", "random")
    }
    converted, source = (mean_accuracy(row) for row in ("MiniLM to Sinkhorn", "MiniLM itself"))
    words = json.loads((ROOT / "benchmarks" / "text" / "reviews_word_counts.json").read_text())["results"]
    frozen = [f"frozen MiniLM as Sinkhorn, {part}" for part in ("whole", "cut at 512")]
    whole, cut, tfidf = (genre_accuracy(name) for name in (*frozen, "TF-IDF, whole"))
    fast, faster = (times_faster("speed/speed", model, 4096) for model in ("sinkhorn", "random"))
    return [
        f"**{times_faster('speed/speed-16384', 'sinkhorn', 16384):.1f} times as fast as BERT**",
        f"| {fast:.1f} times as fast | {faster:.1f} times | BERT with SDPA |",
        f"| {throughput['sinkhorn']:.1f} times | {throughput['random']:.1f} times | BERT with SDPA |",
        f"| {decoded('sinkhorn'):.0f} times | {decoded('random'):.0f} times | GPT-2 |",
        f"| {converted:.3f} | | MiniLM: {source:.3f}; word counts: {words['2000']:.3f} |",
        f"| {whole:.3f} | | cut at 512 tokens: {cut:.3f}; word counts: {tfidf:.3f} |",
    ]


def test_the_numbers_of_the_readme_are_the_recorded_ones():
    for claim in claims():
        assert claim in README, claim
    first, *_ = re.findall(r"\d+\.\d times", claims()[0])
    assert first.removesuffix(" times") in CHINESE and f"{mean_accuracy('MiniLM to Sinkhorn'):.3f}" in CHINESE
    # no other measured number: those with a point, and those before "times"
    text = re.sub(r"```.*?```|\[[^\]]*\]\([^)]*\)|`[^`]*`", "", README, flags=re.DOTALL)
    for number in re.findall(r"\d+\.\d+(?! or newer)|\d+(?= times)", text):
        assert any(number in claim for claim in claims()) or f"{number}" in ("3.10", "2.11", "5.17", "2.0"), number


def test_links_lead_to_files_and_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def test_the_cards_say_what_their_metadata_says():
    for card in sorted((ROOT / "model_cards").glob("*/README.md")):
        text = card.read_text(encoding="utf-8")
        found = ModelCard.load(card).data.eval_results
        assert found
        for result in found:
            value, split = f"{result.metric_value:.4f}", re.escape(result.dataset_split)
            row = rf"^\| {result.metric_type} \| {value} \| (0\.\d{{4}}|–) \| .*{split} \|$"
            assert re.search(row, text, re.MULTILINE), (card.parent.name, result.metric_type)
        if "quickstart" in card.parent.name:
            assert "Classes in the training data: " in text


def test_every_command_is_grouped_in_the_usage():
    assert sorted(synkhorn_console.COMMANDS) == sorted(path.stem for path in (ROOT / "scripts").glob("[!_]*.py"))
