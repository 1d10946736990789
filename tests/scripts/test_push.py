"""`synkhorn push`: a checkpoint and its card, whole, to a stand-in for the Hub or to a folder."""

import json
from pathlib import Path

import pytest
from loopback_hub import loopback_hub
from processes import python
from transformers import AutoModelForSequenceClassification
from variants import model_of, tiny_sinkhorn_config

import synkhorn
from synkhorn.scripts import push

CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n\n# A model\n"
# run in a new process, where an import of the package fails
USE_BY_NAME = """
import sys
sys.modules["synkhorn"] = None
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1], trust_remote_code=True)
print(type(classify.model).__name__, classify("fine")[0]["label"])
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """What a training leaves: a checkpoint with its card, and what only the Trainer reads."""
    folder = tmp_path / "my-model"
    tokenizer = synkhorn.byte_tokenizer(model_max_length=13)
    config = tiny_sinkhorn_config(**synkhorn.token_fields(tokenizer), id2label={0: "good", 1: "good"})
    model_of(config, "ForSequenceClassification").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "checkpoint-3").mkdir()
    for name in ("curves.png", "training_args.bin", "trainer_state.json", "run.json", ".hidden", "checkpoint-3/x.py"):
        (folder / name).touch()
    return folder


def is_published(names: set[str], checkpoint: Path) -> bool:
    everything = {path.name for path in checkpoint.iterdir() if path.is_file()}
    return names == everything - {"training_args.bin", "trainer_state.json", "run.json", ".hidden"}


def test_to_the_hub_and_back_by_name(checkpoint, tmp_path):
    log: list = []
    with loopback_hub(tmp_path / "home", log) as (environment, repositories):
        command = ("-m", "synkhorn.cli", "push", str(checkpoint), "--to", "user/published")
        printed = python(*command, "--private", "--revision", "second", "--commit_message", "Two epochs", **environment)
        assert "files of" in printed and "/user/published/" in printed
        assert is_published(set(repositories["user/published"]) - {".gitattributes"}, checkpoint)
        assert repositories["user/published"]["README.md"].decode() == CARD
        used = python("-c", USE_BY_NAME, "user/published", **environment)
    assert used == "SinkhornForSequenceClassification good\n"
    (created,) = (json.loads(body) for path, body in log if path == "api/repos/create")
    assert (created["name"], created["visibility"]) == ("published", "private")
    assert "api/models/user/published/branch/second" in [path for path, _ in log]
    (commit,) = (body for path, body in log if path == "api/models/user/published/commit/second")
    assert json.loads(commit.splitlines()[0])["value"]["summary"] == "Two epochs"


def test_to_a_folder(checkpoint, tmp_path):
    target = tmp_path / "to" / "publish"
    assert push.main([str(checkpoint), "--to", str(target)]) == str(target)
    names = {path.name for path in target.iterdir()}
    assert is_published(names, checkpoint)
    assert all((target / name).read_bytes() == (checkpoint / name).read_bytes() for name in names)
    with pytest.raises(FileExistsError, match="to=.*publish' exists: choose a new folder"):
        push.main([str(checkpoint), "--to", str(target)])


def test_weights_in_several_files(checkpoint, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="4KB")
    parts = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    assert len(parts) > 1
    push.main([str(checkpoint), "--to", str(tmp_path / "published")])
    assert {*parts, "model.safetensors.index.json"} < {path.name for path in (tmp_path / "published").iterdir()}
    (checkpoint / parts[1]).unlink()
    with pytest.raises(ValueError, match=f"my-model' has no {parts[1]}: save the model again"):
        push.main([str(checkpoint), "--to", str(tmp_path / "again")])


@pytest.mark.parametrize("missing", ["README.md", "model.safetensors", "config.json", "rows.py"])
def test_what_lacks_something_is_refused(checkpoint, missing, tmp_path):
    (checkpoint / missing).unlink()
    with pytest.raises(ValueError, match=f"my-model' has no .*{missing}"):
        push.main([str(checkpoint), "--to", str(tmp_path / "published")])
    assert not (tmp_path / "published").exists()


def test_a_card_without_metadata_is_refused(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("# A model\n")
    with pytest.raises(ValueError, match="has no metadata in README.md"):
        push.main([str(checkpoint), "--to", str(tmp_path / "published")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "name"], "to='name' must be owner/name on the Hub, or a path such as ./name"),
        (["--to", "./folder", "--private"], "to='./folder' is a folder, and private are for a repository"),
    ],
)
def test_arguments_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        push.main([str(tmp_path), *options])
