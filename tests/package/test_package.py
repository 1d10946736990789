"""The package as its user gets it: imported, installed from a wheel, and through its scripts."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from processes import ROOT, python

import synkhorn
from synkhorn import cli
from synkhorn.scripts import quickstart
from synkhorn.scripts.data.reviews import LABELS, load_reviews


def test_import_is_quiet_and_cheap():
    heavy = ("datasets", "matplotlib", "synkhorn.scripts", "transformers.trainer")
    code = f"import sys, synkhorn; print([name for name in {heavy} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n" and process.stderr == ""


def test_every_public_name_is_importable():
    for name in synkhorn.__all__:
        assert getattr(synkhorn, name).__doc__ or name.endswith("PreTrainedModel")


def test_a_wheel_holds_the_whole_package(tmp_path):
    # from a copy, so that no build folder is left behind
    unneeded = shutil.ignore_patterns(".*", "build", "runs", "tests", "*.egg-info")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=unneeded)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("synkhorn-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "synkhorn" / "py.typed").exists()
    assert (site / "synkhorn" / "model_cards" / "template.md").exists()
    assert not [path.name for path in site.iterdir() if not path.name.startswith("synkhorn")]
    for name in ("configuration", "modeling", "scripts", "tokenization"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / name).rglob("*.py")}
        assert sources == {
            str(path.relative_to(site / "synkhorn")) for path in (site / "synkhorn" / name).rglob("*.py")
        }
    imports = "".join(f"import synkhorn.scripts.{command}; " for command in cli.COMMANDS)
    code = (
        # not from the folder that this runs in
        f"import sys; sys.path.pop(0); {imports}"
        f"import synkhorn; from synkhorn.modeling import modeling_synthesizer as m; "
        f"synkhorn.SynthesizerConfig().save_pretrained({str(site / 'saved')!r}); print(synkhorn.__file__, m.__file__)"
    )
    printed = python("-c", code, PYTHONPATH=str(site)).split()
    assert all(path.startswith(str(site)) for path in printed)
    assert (site / "saved" / "modeling_synthesizer.py").exists()


def test_the_packaged_reviews_are_split_once_and_for_all():
    reviews = load_reviews()
    assert {name: len(split) for name, split in reviews.items()} == {"train": 19902, "test": 5000}
    assert reviews["test"].features["label"].names == LABELS
    assert sum(reviews["test"]["label"]) == 2473
    assert not set(reviews["test"]["text"]) & set(reviews["train"]["text"])
    assert not any("<br" in text for text in reviews["test"]["text"])


@pytest.mark.parametrize("family", ["sinkhorn", pytest.param("synthesizer", marks=pytest.mark.slow)])
def test_quickstart_end_to_end(family, tmp_path, capfd):
    arguments = ["--family", family, "--max_train_samples", "64", "--max_test_samples", "40", "--num_train_epochs", "1"]
    metrics = quickstart.main([*arguments, "--output_dir", str(tmp_path / "model")])
    assert 0 <= metrics["accuracy"] <= 1
    printed = capfd.readouterr().out
    assert all(text in printed for text in quickstart.EXAMPLES)
    assert any(label in printed for label in LABELS)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == pytest.approx(metrics, abs=1e-4)
    assert "{{" not in card.content
    with Image.open(tmp_path / "model" / "curves.png") as picture:
        assert picture.size[0] > 800
    assert "| accuracy |" in card.content and "Classes in the training data: " in card.content
    # nothing that was not asked for, such as optimizer states
    assert not [path.name for path in (tmp_path / "model").iterdir() if path.is_dir() or path.suffix == ".bin"]
    # fewer samples make every part shorter
    assert "Data: train 64, validation 6, test 40 rows" in printed
