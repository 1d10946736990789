"""Mistakes of a newcomer: one line that names the remedy, before PyTorch is imported, and nothing written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GenerationConfig, TrainingArguments

import synkhorn_console
from synkhorn import SinkhornConfig, SinkhornForCausalLM, byte_tokenizer, cli, token_fields
from synkhorn_console import parser
from synkhorn_console.checks import LEAST_SPACE

TUNE = "finetune classification --output_dir new"
DATA = f"{TUNE} --train_files reviews.csv --text_column review --label_column stars"
# command line -> what the line says; every word of it before the imports
MISTAKES = {
    # commands and tasks
    "fintune": "did you mean finetune?",
    "finetune clasification": "did you mean classification?",
    "evaluate summarization": "choose one of classification, token-classification",
    # options
    f"{TUNE} --train_file reviews.csv": "did you mean --train_files?",
    f"{DATA} --learning_rat 1e-3": "did you mean --learning_rate?",
    f"{DATA} --learning_rate fast": "give a number, such as 3 or 0.001",
    f"{DATA} --max_length long": "give a whole number",
    f"{DATA} --max_length 0": "max_length=0 must be at least 1",
    f"{DATA} --learning_rate -1": "--learning_rate -1.0 must be above 0",
    f"{DATA} --family sinkhron": "did you mean sinkhorn?",
    f"{DATA} --bf16 maybe": "'maybe' is not true, false or auto",
    "convert checkpoint --to sinkhorn": "the following arguments are required: --output_dir",
    "generate checkpoint --prompt Hi --temprature 0.5": "did you mean --temperature?",
    "quickstart --max_train_samples many": "give a whole number",
    # data
    TUNE: "no data: give --train_files, such as --train_files texts.csv, or --dataset reviews",
    f"{DATA} --dataset reviews": "give one of them",
    f"{TUNE} --dataset reviews.csv": "give local files by --train_files reviews.csv",
    f"{TUNE} --dataset review": "did you mean reviews?",
    f"{TUNE} --train_files review.csv": "does not exist: did you mean reviews.csv?",
    f"{TUNE} --train_files reviews.xlsx": "must end in one of .txt, .json, .jsonl, .csv, .parquet",
    f"{TUNE} --train_files empty.csv": "is empty",
    f"{TUNE} --train_files header.csv": "has no row below the names of the columns",
    f"{TUNE} --train_files no-texts": "is a folder without .txt files",
    f"{TUNE} --train_files broken.jsonl": "line 1, is not valid JSON",
    f"{TUNE} --train_files list.json": 'each row must be an object such as {"text": "a"}',
    f"{TUNE} --train_files latin.csv": "is not UTF-8 text: save it as UTF-8",
    f"{TUNE} --train_files semicolons.csv": "has semicolons between its fields: save it with commas",
    f"{TUNE} --train_files gap.csv": "gap.csv, line 4, has nothing in column 'text': fill it in, or remove the row",
    f"{TUNE} --train_files one-class.csv": "has the class 'good' only in column 'label': a classifier needs two",
    f"{TUNE} --train_files gap.csv --text_column label --label_column text": "line 4, has nothing",
    f"{TUNE} --train_files three.csv --text_column label --label_column text": "another class in each of its 3 rows",
    # columns
    f"{TUNE} --train_files reviews.csv": "has no column 'text', only review, stars: give --text_column review",
    f"{TUNE} --train_files reviews.csv --text_column review": "has no column 'label'",
    f"{DATA} --text_column reviw": "give --text_column review",
    f"{TUNE} --train_files numbers.jsonl --text_column number": "holds 7, not a text: give --text_column body",
    f"{TUNE} --train_files headless.csv": "It was a fine [...], good: its first line must name the columns",
    # JSON
    f'{DATA} --model_config {{"hiden_size":64}}': "did you mean hidden_size?",
    f"{DATA} --model_config {{'hidden_size':64}}": "names and texts need double quotes",
    f"{DATA} --model_config size.json": "did you mean sizes.json?",
    f"{DATA} --config run.yaml": "--config run.yaml has lerning_rate: no such arguments",
    # checkpoints
    f"{DATA} --model_name_or_path checkpint": "did you mean checkpoint?",
    f"{DATA} --model_name_or_path runs": "holds no config.json, so it is not a checkpoint: did you mean runs/first?",
    f"{DATA} --model_name_or_path runs/frist": "did you mean runs/first?",
    f"{DATA} --model_name_or_path no-weights": "holds no weights",
    f"{DATA} --model_name_or_path checkpoint --max_length 64": "lower it, or make the model longer first",
    "export reviews.csv --output_dir new": "is a file: name the folder that holds config.json",
    # what is written
    "export checkpoint --output_dir runs": "exists and is not empty: choose a new folder",
    f"{DATA} --output_dir reviews.csv": "is a file: name a new folder",
    "push checkpoint --to name": "must be owner/name on the Hub, or a path such as ./name",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that a newcomer stands in."""
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("review,stars\nA very fine film,5\nDull,1\n")
    Path("reviews.xlsx").write_bytes(b"PK")
    Path("empty.csv").touch()
    Path("header.csv").write_text("review,stars\n")
    Path("latin.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    Path("semicolons.csv").write_text("text;label\nA film;good\n")
    Path("gap.csv").write_text('text,label\n"A fine\nfilm",good\n"",bad\n')
    Path("one-class.csv").write_text("text,label\nA film,good\nA play,good\n")
    Path("headless.csv").write_text(f"{'It was a fine film. ' * 400},good\nDull,bad\n")
    Path("three.csv").write_text("text,label\nA film,good\nA play,good\nA song,bad\n")
    Path("broken.jsonl").write_text('{"text": "a"\n')
    Path("list.json").write_text('["a", "b"]')
    Path("numbers.jsonl").write_text('{"number": 7, "body": "A text", "label": "a"}\n')
    Path("sizes.json").write_text("{}")
    Path("run.yaml").write_text("lerning_rate: 1e-3\n")
    for name in ("no-texts", "checkpoint", "no-weights", "runs/first"):
        Path(name).mkdir(parents=True)
        if name != "no-texts":
            Path(name, "config.json").write_text(
                json.dumps({"model_type": "sinkhorn", "max_position_embeddings": 32, "block_size": 8})
            )
        if name != "no-weights":
            Path(name, "model.safetensors").touch()
    return tmp_path


def message(line: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        synkhorn_console.main(line.split())
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1, printed
    assert printed.err.startswith("synkhorn")
    return printed.err


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(line, folder, capsys, monkeypatch):
    monkeypatch.setattr(cli, "main", lambda arguments: pytest.fail("the command has started"))
    before = sorted(folder.rglob("*"))
    assert MISTAKES[line] in message(line, capsys)
    assert sorted(folder.rglob("*")) == before


def test_right_files_pass(folder, monkeypatch):
    """Documents of any length, numbers to predict, the one right choice, and texts without a label."""
    monkeypatch.setattr(cli, "main", got := [].append)
    Path("long.csv").write_text(f"text,label\n{'word ' * 50_000},good\nA play,bad\n")
    Path("grades.csv").write_text("text,label\nA film,7\nA play,8\nA song,9\n")
    Path("choices.csv").write_text("question,first,second,label\nWho?,I,you,0\nWhat?,this,that,0\n")
    Path("texts.csv").write_text('text\n"A film"\n""\n')
    for line in (
        f"{TUNE} --train_files long.csv",
        f"{TUNE} --train_files grades.csv",
        "finetune multiple-choice --output_dir new --train_files choices.csv --context_column question "
        "--question_column none --choice_columns first second",
        "pretrain --output_dir new --train_files texts.csv",
    ):
        synkhorn_console.main(line.split())
    assert len(got.__self__) == 4


def test_a_right_command_line_reaches_the_command(folder, monkeypatch):
    got = []
    monkeypatch.setattr(cli, "main", got.append)
    for line in (DATA, "evaluate classification --model_name_or_path checkpoint --dataset reviews", "serve checkpoint"):
        synkhorn_console.main(line.split())
    assert got[0] == DATA.split() and got[2] == ["serve", "checkpoint"]


def test_a_full_or_closed_disk_is_said_first(folder, capsys, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=LEAST_SPACE // 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "is on a disk that is full (16 MB free): free some space" in message(DATA, capsys)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cannot be written" in message(DATA, capsys)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "synkhorn finetune: error: two lines"),
        (
            RuntimeError("CUDA out of memory"),
            "synkhorn finetune: error: RuntimeError: CUDA out of memory (see --debug)",
        ),
        (
            KeyboardInterrupt(),
            "synkhorn finetune: error: interrupted; the same command goes on from the last checkpoint, or "
            "starts again if there is none yet",
        ),
    ],
)
def test_what_fails_later_is_one_line_too_and_a_trace_where_it_is_asked_for(error, line, folder, capsys, monkeypatch):
    def fails(arguments):
        assert arguments == DATA.split()
        raise error

    monkeypatch.setattr(cli, "main", fails)
    assert message(DATA, capsys).strip() == line
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            synkhorn_console.main([*DATA.split(), "--debug"])


def test_a_device_that_is_missing_is_named(folder, capsys):
    config = SinkhornConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **token_fields(byte_tokenizer())
    )
    SinkhornForCausalLM(config).save_pretrained("causal")
    byte_tokenizer(is_causal=True).save_pretrained("causal")
    synkhorn_console.main(["generate", "causal", "--prompt", "Hi", "--max_new_tokens", "1"])
    capsys.readouterr()
    printed = message("generate causal --prompt Hi --device cuda:7", capsys)
    assert "--device cuda:7 cannot be used here" in printed and "leave it out, or give cpu" in printed


# the options of each command are read twice: from the source before the imports, and by the command
@pytest.mark.parametrize("command", synkhorn_console.READ)
def test_the_options_before_the_imports_are_those_of_the_command(command, folder, monkeypatch, capsys):
    task = ["classification"] if command in synkhorn_console.WITH_TASKS else []
    built = []
    build = parser.build

    def keep(*arguments, **options):
        built.append(build(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(synkhorn_console, "build", keep)
    monkeypatch.setattr("synkhorn.scripts.common.arguments.build", keep)
    for run in (synkhorn_console.main, cli.main):
        with pytest.raises(SystemExit) as ended:
            run([command, *task, "--help"])
        assert ended.value.code == 0
    declared, real = ({action.dest: action for action in one._actions} for one in built)
    if command == "generate":
        # documented, and not for a command that writes text
        declared = {
            name: action for name, action in declared.items() if name in real or hasattr(GenerationConfig(), name)
        }
        assert set(real) <= set(declared)
    else:
        assert set(declared) == set(real)
    trainer = set(TrainingArguments.__dataclass_fields__)
    for name in set(real) - trainer if command != "generate" else ():
        for part in ("nargs", "choices", "required", "help"):
            one, other = (getattr(found[name], part) for found in (declared, real))
            assert (list(one) if part == "choices" and one else one) == (
                list(other) if part == "choices" and other else other
            ), (name, part)


def test_nothing_heavy_is_imported_before_a_mistake_is_found(folder):
    code = (
        "import sys, synkhorn_console\ntry: synkhorn_console.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'synkhorn') if name in sys.modules])"
    )
    for line in (f"{TUNE} --train_files reviews.csv", "finetune classification --help-all", "--help"):
        command = [sys.executable, "-c", code, *line.split()]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed.splitlines()[-1] == "[]", printed
