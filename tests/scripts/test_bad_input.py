"""What every command makes of bad input: an error at once that names it, and nothing half written."""

import errno
import json
import pkgutil
import shutil
from pathlib import Path

import pytest
import torch
from task_data import SIZES, write_jsonl

import synkhorn
from synkhorn import cli

CARD = "---\nlicense: apache-2.0\n---\n\n# A model\n"
SCRATCH = (
    "--max_steps 1 --tokenizer_name bytes --max_length 32 --validation_size 1 --model_config {sizes} --output_dir {new}"
)
START = SCRATCH.replace("--model_config {sizes} ", "")
TUNE = "finetune classification --train_files {train}"
MEASURE = "evaluate classification --model_name_or_path {classifier} --resamples 0"
PERPLEXITY = "evaluate language-modeling --model_name_or_path {causal} --resamples 0"
# fault -> command line -> what the error says
FAULTS = {
    "unknown column": {
        f"pretrain --train_files {{train}} --text_column body {SCRATCH}": "lacks the columns ['body']",
        f"{TUNE} --text_column body {SCRATCH}": "lacks the columns ['body'] in its split train",
        f"{MEASURE} --test_files {{test}} --label_column stars": "lacks the columns ['stars']",
        f"{PERPLEXITY} --test_files {{test}} --text_column body": "lacks the columns ['body']",
        "generate {causal} --prompt_file {train}": 'not {{"prompt": ...}}',
    },
    "no text": {
        f"{TUNE} --text_column number {SCRATCH}": "the split train has 7 where there must be a text, 2 times",
        f"{TUNE} --test_files {{hole}} {SCRATCH}": "the split test has None where there must be a text, 1 times",
        f"{MEASURE} --test_files {{hole}}": "the split test has None where there must be a text, 1 times",
        f"{PERPLEXITY} --test_files {{hole}}": "the split test has None where there must be a text, 1 times",
        f"pretrain --train_files {{train}} --text_column number {SCRATCH}": "holds int, such as 7, and not texts",
    },
    "empty data": {
        f"pretrain --train_files {{empty}} {SCRATCH}": "{empty} is empty",
        f"pretrain --train_files {{header}} {SCRATCH}": "hold no row",
        f"finetune multiple-choice --train_files {{empty}} {SCRATCH}": "{empty} is empty",
        f"{MEASURE} --test_files {{empty}}": "{empty} is empty",
        "generate {causal} --prompt_file {empty}": "is empty: write one prompt a line",
    },
    "label out of range": {
        f"{TUNE} --test_files {{wrong}} {SCRATCH}": "the label 'huge' in column 'label' is unknown",
        f"{MEASURE} --test_files {{wrong}}": "the label 'huge' in column 'label' is unknown",
        f"{TUNE} --problem_type regression {SCRATCH}": "the label 'high' in column 'label' is not a number",
    },
    "longer than the model": {
        f"pretrain --train_files {{train}} --model_name_or_path {{classifier}} {START}": "max_length=32 is more than",
        f"{TUNE} --model_name_or_path {{classifier}} {START}": "max_length=32 is more than the model's",
        f"{MEASURE} --test_files {{test}} --max_length 32": "max_length=32 must be 1 to 24",
        "generate {causal} --prompt 0123456789012345678901234": "leaves no room in the 24",
        "generate {causal} --prompt word --max_new_tokens 24": "max_new_tokens=24 does not fit",
    },
    "folder that exists": {
        f"pretrain --train_files {{train}} {SCRATCH}".replace("{new}", "{taken}"): "choose a new folder",
        f"{TUNE} {SCRATCH}".replace("{new}", "{taken}"): "choose a new folder",
        "push {classifier} --to {taken}": "exists: choose a new folder",
        "export {classifier} --output_dir {taken}": "exists: choose a new folder",
    },
    "no checkpoint": {
        "push {taken} --to {new}": "has no config.json",
        "export {taken} --output_dir {new}": "is a folder without config.json",
        "generate {taken} --prompt word": "is a folder without config.json",
        "generate {classifier} --prompt word": "generates no text",
        f"{MEASURE} --test_files {{test}}".replace("{classifier}", "{causal}"): "fine-tune it first",
    },
}
CASES = [(fault, line, message) for fault, lines in FAULTS.items() for line, message in lines.items()]


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> dict[str, Path]:
    """The files and folders that the command lines name."""
    folder = tmp_path_factory.mktemp("input")
    named = {name: folder / name for name in ("classifier", "causal", "taken", "new")}
    named |= {name: folder / f"{name}.jsonl" for name in ("train", "test", "wrong", "hole", "empty")}
    rows = [{"text": "a text", "label": label, "number": 7} for label in ("high", "low", "high")]
    for name in ("train", "test"):
        write_jsonl(named[name], rows)
    write_jsonl(named["wrong"], [{"text": "a text", "label": "huge", "number": 7}])
    write_jsonl(named["hole"], [*rows, {"text": None, "label": "low", "number": 7}])
    named["empty"].touch()
    named["header"] = folder / "header.csv"
    named["header"].write_text("text,label\n")
    named["taken"].mkdir()
    (named["taken"] / "thesis.txt").write_text("precious")
    named["sizes"] = folder / "sizes.json"
    named["sizes"].write_text(json.dumps(SIZES | {"max_position_embeddings": 32, "block_size": 8}))
    tokenizer = synkhorn.byte_tokenizer(24)
    fields = SIZES | {"max_position_embeddings": 24, "block_size": 8} | synkhorn.token_fields(tokenizer)
    labels = {"id2label": {0: "high", 1: "low"}, "label2id": {"high": 0, "low": 1}}
    for name, kind, more in (("classifier", "SequenceClassification", labels), ("causal", "CausalLM", {})):
        torch.manual_seed(0)
        model = getattr(synkhorn, f"SinkhornFor{kind}")(synkhorn.SinkhornConfig(**fields | more))
        model.save_pretrained(named[name])
        tokenizer.save_pretrained(named[name])
        (named[name] / "README.md").write_text(CARD)
    return named


def run(line: str, named: dict[str, Path]) -> None:
    cli.main(line.format(**named).split())


@pytest.mark.parametrize(("fault", "line", "message"), CASES, ids=[f"{fault}: {line}" for fault, line, _ in CASES])
def test_bad_input_is_an_error_that_names_it(fault, line, message, named, monkeypatch):
    monkeypatch.chdir(named["train"].parent)
    write_jsonl(Path("texts.jsonl"), [{"text": "no label"}] * 3)
    with pytest.raises((ValueError, FileExistsError)) as error:
        run(line, named)
    assert message.format(**named) in str(error.value)
    assert [path.name for path in named["taken"].iterdir()] == ["thesis.txt"]
    left = {path.name for path in named["new"].rglob("*")} if named["new"].exists() else set()
    assert left <= {"run.json", "base", "seed-0", "finetuned"}
    shutil.rmtree(named["new"], ignore_errors=True)


@pytest.mark.parametrize(
    ("line", "writer", "place"),
    [
        (f"{MEASURE} --test_files {{test}} --output {{new}}/report", "pathlib.Path.write_text", 0),
        ("generate {causal} --prompt word --output_file {new}/texts.jsonl", "pathlib.Path.write_text", 0),
        ("push {classifier} --to {new}/published", "shutil.copyfile", 1),
        ("export {classifier} --formats torch --output_dir {new}/exported", "torch.export.save", 1),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(line, writer, place, named, monkeypatch):
    write = pkgutil.resolve_name(writer)

    def half(*arguments, **options):
        """What writes to the path that is its argument `place`."""
        path = Path(arguments[place])
        if not path.is_relative_to(named["new"]):
            return write(*arguments, **options)
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(writer, half)
    with pytest.raises(OSError, match="No space left on device"):
        run(line, named)
    assert not [path for path in named["new"].rglob("*") if path.is_file()]
    shutil.rmtree(named["new"])
