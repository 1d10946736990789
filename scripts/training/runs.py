"""Runs that may be killed at any moment: their folder, and the checkpoint from which they resume."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from synkhorn.hub_export import write_whole
from synkhorn_console.parser import Chosen

RECORD = "run.json"
# arguments that may differ between a run and its continuation
PASSING = {"output_dir", "resume_from_checkpoint", "local_rank", "use_cpu", "num_workers", "dataloader_num_workers"}
# bytes of free space below which a failed write is put down to a full disk
NO_SPACE = 2**20


def settings_of(*dataclasses: Any) -> dict[str, Any]:
    """The arguments of a run, from its dataclasses, as JSON values; one that is chosen later says so."""
    values = {
        entry.name: getattr(dataclass, entry.name)
        for dataclass in dataclasses
        for entry in fields(dataclass)
        if entry.init and entry.name not in PASSING
    }
    given = {name: str(value) if isinstance(value, Chosen) else value for name, value in values.items()}
    return json.loads(json.dumps(given, default=str))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer's state is what it writes last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def remove_incomplete_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that were being written when a run ended."""
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not is_complete(checkpoint):
            shutil.rmtree(checkpoint)


def checkpoint_to_resume(command: str, training: TrainingArguments, settings: dict[str, Any]) -> str | None:
    """
    The checkpoint from which a run resumes, or `None` where it starts. The folder is marked as that of this run.

    Args:
        command: the script.
        training: with `output_dir`, and perhaps `resume_from_checkpoint`, which a run with other arguments may name.
        settings: those of the run, see `settings_of`.

    Raises:
        FileExistsError: if the folder holds anything but a run of this command with these arguments.
        ValueError: if `resume_from_checkpoint` is not a complete checkpoint.
    """
    folder, named = Path(training.output_dir), training.resume_from_checkpoint
    if named is not None and not is_complete(Path(named)):
        raise ValueError(
            f"resume_from_checkpoint={named!r} is no whole checkpoint of a Trainer: no {TRAINER_STATE_NAME}"
        )
    run = {"command": command, "settings": settings}
    with training.main_process_first(desc="looking for an earlier run"):
        record = folder / RECORD
        # a run that ended before it made anything, such as by an error in its arguments, is none
        is_begun = folder.exists() and any(path != record for path in folder.iterdir())
        earlier = json.loads(record.read_text(encoding="utf-8")) if is_begun and record.exists() else None
        if earlier is not None:
            check_same_run(folder, earlier, run, named)
        elif is_begun:
            raise FileExistsError(
                f"output_dir={str(folder)!r} exists, and is not a run of {command}: choose a new folder"
            )
        if record.exists() and earlier is None and named is None and training.should_save:
            print(f"{folder}: an earlier run wrote no checkpoint yet, so it starts from the beginning", flush=True)
        if training.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            remove_incomplete_checkpoints(folder)
            if earlier is None or named is not None:
                write_whole(record, json.dumps(run, indent=2) + "\n")
    found = named or get_last_checkpoint(folder)
    if found is not None and training.should_save and "results" not in (earlier or {}):
        print(f"Goes on from {found}", flush=True)
    return found


def train_to_the_end(trainer: Trainer, checkpoint: str | None) -> None:
    """
    `trainer.train`, also for a run that was interrupted after its last step, of which Transformers would take one more.

    Args:
        checkpoint: as `checkpoint_to_resume` gives it.
    """
    arguments = trainer.args
    state = None if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    # one that was named is gone on from, perhaps with other arguments
    is_named = arguments.resume_from_checkpoint is not None
    if state is None or is_named or not state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    state.is_local_process_zero = trainer.is_local_process_zero()
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    trainer._load_from_checkpoint(checkpoint)
    trainer.control = trainer.callback_handler.on_train_begin(arguments, state, trainer.control)
    if arguments.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer.control = trainer.callback_handler.on_train_end(arguments, state, trainer.control)


def results_of(training: TrainingArguments) -> dict[str, float] | None:
    """The results of a finished run, or `None` while it is not finished."""
    return json.loads((Path(training.output_dir) / RECORD).read_text(encoding="utf-8")).get("results")


def finish(trainer: Trainer, results: dict[str, float], defaults: dict[str, Any]) -> None:
    """
    Mark a run as finished, so that its command, repeated, trains no further, and remove what only a resumed run needs:
    all checkpoints, unless the user gave an option about them.

    Args:
        trainer: which has trained.
        results: the metrics of the finished model.
        defaults: of the command's arguments.
    """
    training = trainer.args
    # the losses of the run, in place of those in the checkpoints
    trainer.save_state()
    if not training.should_save:
        return
    folder = Path(training.output_dir)
    record = folder / RECORD
    run = json.loads(record.read_text(encoding="utf-8"))
    # what was chosen for arguments that nobody gave, and the steps taken
    chosen = {"learning_rate": training.learning_rate, "num_train_epochs": training.num_train_epochs}
    run |= {"chosen": chosen | {"steps": trainer.state.global_step}, "results": results}
    write_whole(record, json.dumps(run, indent=2) + "\n")
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    own = {entry.name: entry.default for entry in fields(TrainingArguments)} | defaults
    if all(getattr(training, name) == own[name] for name in ("save_strategy", "save_steps", "save_total_limit")):
        for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(checkpoint)


def leave_process_group() -> None:
    """Leave the process group at the end: PyTorch may abort a process that exits as a member of it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_same_run(folder: Path, earlier: dict, now: dict, named: str | None) -> None:
    """Raise a `FileExistsError` that says what differs, unless a checkpoint to go on from is named."""
    if earlier["command"] != now["command"]:
        raise FileExistsError(
            f"output_dir={str(folder)!r} holds a run of {earlier['command']}: choose a new folder, or remove it"
        )
    before, after = earlier["settings"], now["settings"]
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if differing and named is None:
        go_on = (
            "Repeat them to go on with it, name one of its checkpoints by --resume_from_checkpoint to go on "
            "differently, choose a new folder, or remove it"
        )
        raise FileExistsError(
            f"output_dir={str(folder)!r} holds a {'finished run' if 'results' in earlier else 'run'} with other "
            "arguments: "
            + ", ".join(f"{name} {before.get(name)!r}, now {after.get(name)!r}" for name in differing)
            + f". {'Choose a new folder, or remove it' if 'results' in earlier else go_on}"
        )


@contextmanager
def explained_when_the_disk_is_full(folder: str | Path) -> Iterator[None]:
    """
    Turn what the several writers of a checkpoint raise on a full disk into one `OSError` that says what to do, and
    remove the checkpoint, or the finished model's weights, that were being written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
        if not is_full and shutil.disk_usage(folder).free >= NO_SPACE:
            raise
        remove_incomplete_checkpoints(Path(folder))
        for weights in Path(folder).glob("*.safetensors"):
            weights.unlink()
        message = (
            f"the disk is full: the unfinished files in output_dir={str(folder)!r} were removed. Free space "
            "(--save_total_limit 1 keeps fewer checkpoints), then repeat the command, which resumes from the last "
            "whole checkpoint"
        )
        raise OSError(errno.ENOSPC, message) from error
