"""
Publish a checkpoint and its card: on the Hub, or as a folder.

    synkhorn push my-model --to owner/my-model --private --commit_message "Two epochs"
    synkhorn push my-model --to ./to-publish

It publishes weights, configuration, the model's source files, tokenizer, card and pictures, in one commit, without the
files that only a Trainer reads. A folder that lacks weights, source files or a card with
metadata is refused. Anybody loads the result with `trust_remote_code=True`, without synkhorn.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from .common.arguments import parse
from .common.checkpoints import check_new_folder, published_files, whole_folder


@dataclass
class PushArguments:
    """The checkpoint and its destination."""

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
