"""The checkpoint that a command names, and folders that are written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME


@dataclass
class CheckpointArguments:
    """Which checkpoint."""

    _argument_group_name = "checkpoint"

    checkpoint: str = field(metadata={"help": "A folder that `save_pretrained` wrote, or a name on the Hub."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that a checkpoint brings along: only where you trust its author."}
    )

    def __post_init__(self):
        folder = Path(self.checkpoint)
        if folder.is_dir():
            if not (folder / CONFIG_NAME).is_file():
                raise ValueError(f"checkpoint={self.checkpoint!r} is a folder without {CONFIG_NAME}: no checkpoint")
        elif folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", "..", "~"):
            # a name on the Hub is owner/name
            raise ValueError(
                f"checkpoint={self.checkpoint!r} is neither a folder that exists nor owner/name on the Hub"
            )

    @property
    def hub_options(self) -> dict[str, str | bool]:
        """What `from_pretrained` takes beside the name."""
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
