"""Checkpoints that commands name, their published files, and folders that are written completely or not at all."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

CARD_NAME = "README.md"
# beside hidden files, those that only a Trainer reads
UNPUBLISHED = ("training_args.bin", "trainer_state.json", "run.json", "*.pt", "*.pth", "*.tmp", ".*")


@dataclass
class CheckpointArguments:
    """Which checkpoint."""

    _argument_group_name = "checkpoint"

    checkpoint: str = field(metadata={"help": "A folder that `save_pretrained` wrote, or a name on the Hub."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code in the checkpoint, if you trust its author."}
    )

    def __post_init__(self):
        folder = Path(self.checkpoint)
        if folder.is_dir():
            if not (folder / CONFIG_NAME).is_file():
                raise ValueError(
                    f"checkpoint={self.checkpoint!r} is a folder without {CONFIG_NAME}: it is not a checkpoint"
                )
        elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", "..", "~"):
            # a name on the Hub is owner/name
            raise ValueError(
                f"checkpoint={self.checkpoint!r} is neither a folder that exists nor owner/name on the Hub"
            )

    @property
    def hub_options(self) -> dict[str, str | bool]:
        """The options of `from_pretrained` beside the name."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def load_whole(auto_class: Any, checkpoint: str, **options: Any) -> PreTrainedModel:
    """
    `auto_class.from_pretrained`, for a model that is used as it is.

    Raises:
        ValueError: if the checkpoint lacks some of its weights, which would be random.
    """
    model, report = auto_class.from_pretrained(checkpoint, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(
            f"checkpoint={checkpoint!r} lacks weights of a {type(model).__name__}: "
            f"{', '.join(sorted(report['missing_keys']))}"
        )
    return model


def published_files(folder: Path) -> list[str]:
    """
    The names of the files to publish.

    Raises:
        ValueError: if the folder has no card with metadata, no configuration, no weights, or not all source files that
            the configuration names.
    """
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint={str(folder)!r} is not a folder: name one that `save_pretrained` or a training wrote"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not any(map(path.match, UNPUBLISHED)))
    where = f"checkpoint={str(folder)!r} has no"
    if CONFIG_NAME not in names:
        raise ValueError(f"{where} {CONFIG_NAME}: it is not a checkpoint")
    weights = {SAFE_WEIGHTS_NAME}
    if SAFE_WEIGHTS_INDEX_NAME in names:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        weights = set(index["weight_map"].values())
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    modules = {f"{target.split('--')[-1].split('.')[0]}.py" for target in config.get("auto_map", {}).values()}
    for path in folder.glob("*.py"):
        imported = re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        modules |= {f"{module}.py" for module in imported}
    missing = sorted((weights | modules) - set(names))
    if missing:
        raise ValueError(
            f"{where} {', '.join(missing)}: save the model again, by `save_pretrained` with synkhorn installed"
        )
    if CARD_NAME not in names:
        raise ValueError(f"{where} {CARD_NAME}, its card: synkhorn's trainings write one; tell what it is and can do")
    if not ModelCard.load(folder / CARD_NAME).data.to_dict():
        raise ValueError(f"{where} metadata in {CARD_NAME}: begin it with such as ---, license: apache-2.0, ---")
    return names


def check_new_folder(argument: str, folder: str | Path) -> None:
    """Raise a `FileExistsError` that names `argument` if the folder exists and holds anything."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{argument}={str(folder)!r} exists: choose a new folder, or remove it")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a scratch folder that becomes `folder`, new or empty, if nothing is raised, and else is removed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        # such as any other folder, where mkdtemp's own is closed to others
        scratch.chmod(0o755)
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise


def reading(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of what reads: a model's own, or that of its encoder."""
    return config.encoder if config.is_encoder_decoder and hasattr(config, "encoder") else config
