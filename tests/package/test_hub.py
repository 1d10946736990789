"""A checkpoint is self-contained: it loads, runs and saves again in a process without the package, offline."""

import json
from pathlib import Path

import torch
import transformers
from checkpoints import family_config, write_checkpoints
from loopback_hub import loopback_hub
from processes import run
from shipped_code import CODE, every_family
from variants import randomize, tiny_config

import synkhorn
from synkhorn import FAMILIES
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES


def test_every_head_loads_without_the_package_and_saves_again(tmp_path, forms_as_shipped):
    first, second = tmp_path / "first", tmp_path / "second"
    for family in FAMILIES:
        write_checkpoints(first / family, family)
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    assert run("remote_load.py", first, second, **home) == f"loaded {len(FAMILIES) * len(AUTO_CLASSES)}\n"
    for family in FAMILIES:
        for auto in AUTO_CLASSES:
            saved, again = ({path.name: path for path in (x / family / auto).iterdir()} for x in (first, second))
            assert {name for name in saved if name.endswith(".py")} == CODE[family]
            assert {Path(name).suffix for name in saved} <= {".py", ".json", ".safetensors"}
            # what loads once loads again: the same code, weights and names of classes
            assert again.keys() == saved.keys()
            for name in CODE[family] | {"model.safetensors"}:
                assert again[name].read_bytes() == saved[name].read_bytes()
            maps = [json.loads(files["config.json"].read_text())["auto_map"] for files in (saved, again)]
            assert maps[0] == maps[1]


def test_every_way_to_push_leaves_a_self_contained_repository(tmp_path):
    with loopback_hub(tmp_path / "home") as (environment, repositories):
        assert run("push.py", tmp_path, **environment).endswith("pushed\n")
        for name in ("pushed", "saved", "trained", "configured", "every_save", "checkpoint"):
            files = set(repositories[f"user/{name}"])
            assert files >= CODE["synthesizer"] | {"config.json"}, name
            # training_args.bin is the Trainer's own, and holds no weights
            files = {file for file in files if not file.startswith("last-checkpoint/")}
            assert not any(Path(file).suffix in (".bin", ".pt", ".pkl") for file in files - {"training_args.bin"})
            assert ("model.safetensors" in files) == (name != "configured")
        assert run("pull.py", tmp_path / "pulled", **environment).endswith("pulled\n")
    for name in ("pushed", "saved", "trained"):
        auto_map = json.loads((tmp_path / "pulled" / name / "config.json").read_text())["auto_map"]
        assert auto_map == tiny_config().auto_map
        assert {path.name for path in (tmp_path / "pulled" / name).iterdir()} >= CODE["synthesizer"]


@every_family
def test_registered_classes_win_over_the_exported_code(family, tmp_path):
    model_class = getattr(synkhorn, f"{family.title()}ForMaskedLM")
    model = randomize(model_class(family_config(family)))
    model.save_pretrained(tmp_path)
    for trust in (False, True):
        loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(loaded) is model_class
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
