"""
Publish a checkpoint and its card: on the Hub, or as a folder.

    synkhorn push my-model --to owner/my-model --private --commit_message "Two epochs"
    synkhorn push my-model --to ./to-publish

What is published is the folder's own files, without what only a Trainer reads: weights, configuration, the model's
source files, tokenizer, card and pictures, in one commit. A folder that lacks weights, source files or a card with
metadata is refused. Anybody loads the result with `trust_remote_code=True`, without synkhorn.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .arguments import parse
from .checkpoints import check_new_folder, whole_folder

CARD_NAME = "README.md"
# beside hidden files, what a Trainer leaves in its output folder for itself
UNPUBLISHED = ("training_args.bin", "trainer_state.json", "run.json", "*.pt", "*.pth", "*.tmp", ".*")


@dataclass
class PushArguments:
    """What is published where."""

    _argument_group_name = "publishing"

    checkpoint: str = field(metadata={"help": "Folder of a checkpoint with its card."})
    to: str = field(metadata={"help": "owner/name on the Hub, or a new folder, such as ./to-publish."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch of the repository, made where it is missing; main if not given."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "What the commit says."})

    @property
    def is_folder(self) -> bool:
        """Whether `to` is a path, which begins with a dot, a tilde or a slash."""
        return self.to.startswith((".", "/", "~"))

    def __post_init__(self):
        if not self.is_folder and self.to.count("/") != 1:
            raise ValueError(f"to={self.to!r} must be owner/name on the Hub, or a path such as ./{self.to}")
        given = [name for name in ("private", "revision", "commit_message") if getattr(self, name)]
        if self.is_folder and given:
            raise ValueError(f"to={self.to!r} is a folder, and {', '.join(given)} are for a repository of the Hub")


def published_files(folder: Path) -> list[str]:
    """
    The names of the files to publish.

    Raises:
        ValueError: if the folder has no card with metadata, no configuration, no weights, or not all source files that
            the configuration names.
    """
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint={str(folder)!r} is no folder: name one that `save_pretrained` or a training wrote"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not any(map(path.match, UNPUBLISHED)))
    where = f"checkpoint={str(folder)!r} has no"
    if CONFIG_NAME not in names:
        raise ValueError(f"{where} {CONFIG_NAME}: it is no checkpoint")
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


def main(arguments: list[str] | None = None) -> str:
    """Publish, and return where: the commit on the Hub, or the folder."""
    (push,) = parse((PushArguments,), arguments, __doc__, first="checkpoint")
    source = Path(push.checkpoint)
    names = published_files(source)
    if push.is_folder:
        target = Path(push.to).expanduser()
        check_new_folder("to", target)
        with whole_folder(target) as folder:
            for name in names:
                shutil.copyfile(source / name, folder / name)
        published = str(target)
    else:
        hub = HfApi()
        hub.create_repo(push.to, private=push.private, exist_ok=True)
        if push.revision is not None:
            hub.create_branch(push.to, branch=push.revision, exist_ok=True)
        published = str(
            hub.upload_folder(
                repo_id=push.to,
                folder_path=source,
                allow_patterns=names,
                revision=push.revision,
                commit_message=push.commit_message or f"{source.resolve().name}, by synkhorn push",
            )
        )
    print(f"{len(names)} files of {source}: {published}")
    return published


if __name__ == "__main__":
    main()
