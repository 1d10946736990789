"""What a comparison trains: the task, the tokenizer, and each entrant's model before its training."""

import json
import re
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

import synkhorn

from ..common.checkpoints import whole_folder
from ..common.comparison_spec import ENTRANT_FIELDS, ComparisonSpec, expect
from ..common.precision import AUTO, choose_bf16, device_type
from ..data.installed import in_distribution
from .experiment import Experiment
from .experiments import EXPERIMENTS
from .models import BYTES, TRAIN

# of an entrant and a seed that are finished
RECORD = "chosen.json"
# of the Trainer, unless the file says otherwise
DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": AUTO,
}


class Entrants:
    """
    What a comparison trains, before it is trained.

    Args:
        spec: what is compared.
        folder: of the trainings, which resume there.
        data_dir: folder of unpacked packages.
    """

    def __init__(self, spec: ComparisonSpec, folder: Path, data_dir: str | None):
        self.spec, self.folder, self.data_dir = spec, folder, data_dir
        disable_progress_bars()
        for name, entrant in spec.entrants.items():
            check_fields(name, entrant, spec.model)
        unknown = sorted(set(spec.training) - {entry.name for entry in fields(TrainingArguments)})
        expect(not unknown, "training", unknown, "arguments of transformers.TrainingArguments")
        self.training = DEFAULTS | spec.training
        self.training["bf16"] = choose_bf16(self.training["bf16"], device_type())

    @cached_property
    def experiment(self) -> Experiment:
        """The task, with its data."""
        options = dict(self.spec.task)
        name = options.pop("name")
        expect(name in EXPERIMENTS, "task.name", name, f"one of {', '.join(EXPERIMENTS)}")
        try:
            return EXPERIMENTS[name](data_dir=self.data_dir, **options)
        except TypeError as error:
            raise ValueError(f"task={self.spec.task!r} does not fit: {error}") from error

    def tokenizer(self, part: int) -> Any:
        """The tokenizer of all entrants, or `None` where a task has ids of its own."""
        if next(self.experiment.texts(part), None) is None:
            return None
        wanted, length = self.spec.tokenizer, self.spec.max_length
        if wanted is None:
            name = next(name for name, entrant in self.spec.entrants.items() if "baseline" not in entrant)
            wanted = self.source(name, self.spec.seeds[0]) or TRAIN
        is_causal = self.experiment.auto_class.__name__.endswith("CausalLM")
        if wanted == BYTES:
            return synkhorn.byte_tokenizer(length, is_causal)
        if wanted != TRAIN:
            return AutoTokenizer.from_pretrained(self.checkpoint(wanted), model_max_length=length)
        folder = self.folder / "tokenizers" / str(part)
        if not folder.exists():
            trained = synkhorn.train_tokenizer(self.experiment.texts(part), self.spec.vocab_size, length, is_causal)
            with whole_folder(folder) as scratch:
                trained.save_pretrained(scratch)
        return AutoTokenizer.from_pretrained(folder)

    def checkpoint(self, checkpoint: Any) -> str:
        """The folder or name of a checkpoint."""
        if isinstance(checkpoint, str):
            return checkpoint
        return str(in_distribution(checkpoint["package"], checkpoint["path"], self.data_dir))

    def source(self, name: str, seed: int) -> str | None:
        """The checkpoint that an entrant starts from; `None` from scratch."""
        entrant = self.spec.entrants[name]
        if "start_from" not in entrant:
            return self.checkpoint(entrant["checkpoint"]) if "checkpoint" in entrant else None
        folder = Path(entrant["start_from"]) / slug(name) / f"seed-{seed}"
        if not (folder / RECORD).exists():
            raise FileNotFoundError(
                f"entrants.{name}.start_from={entrant['start_from']!r} has no finished {folder}: run it first"
            )
        return str(folder / f"rate-{json.loads((folder / RECORD).read_text(encoding='utf-8'))['rate']:g}")

    def max_length(self, name: str) -> int:
        """Tokens that an entrant reads."""
        return self.spec.entrants[name].get("max_length", self.spec.max_length)

    def model(self, name: str, seed: int, tokenizer: Any) -> PreTrainedModel:
        """An entrant before its training."""
        entrant, experiment = self.spec.entrants[name], self.experiment
        own = own_fields(entrant, self.spec.model if "model_type" in entrant else {})
        of_task = experiment.fields(experiment.part(seed), tokenizer)
        set_seed(seed)
        if (source := self.source(name, seed)) is not None:
            if "convert" in entrant:
                source, own = self.converted(name, source, own), {}
            config = AutoConfig.from_pretrained(source)
            for field, value in {**of_task, **own}.items():
                if not field.endswith("_token_id") and field != "vocab_size":
                    setattr(config, field, value)
            model = experiment.auto_class.from_pretrained(
                source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
            )
        else:
            sizes = {"max_position_embeddings": self.max_length(name)}
            config = AutoConfig.for_model(entrant["model_type"], **sizes | of_task | own)
            model = experiment.new_model(config)
        if hasattr(model.config, "sparse_prediction"):
            model.config.sparse_prediction = True
        return model

    def converted(self, name: str, source: str, own: dict[str, Any]) -> str:
        """A checkpoint as a model of ours, made once."""
        folder = self.folder / slug(name) / "converted"
        if not folder.exists():
            conversion = synkhorn.convert(
                source, to=self.spec.entrants[name]["convert"], max_length=self.max_length(name), **own
            )
            with whole_folder(folder) as scratch:
                conversion.model.save_pretrained(scratch)
        return str(folder)


def own_fields(entrant: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The fields of an entrant's configuration: the shared ones and its own, where `null` leaves a shared one out."""
    own = {field: value for field, value in entrant.items() if field not in ENTRANT_FIELDS}
    return {field: value for field, value in {**shared, **own}.items() if value is not None}


def check_fields(name: str, entrant: dict[str, Any], shared: dict[str, Any]) -> None:
    """Raise a `ValueError` for a field of an entrant that its configuration does not have."""
    kind = entrant.get("model_type") or entrant.get("convert")
    if kind is None:
        return
    expect(kind in CONFIG_MAPPING, f"entrants.{name}.model_type", kind, "a model_type of Transformers")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
    known = {entry.name for entry in fields(config_class)}  # type: ignore[arg-type]
    for field, value in own_fields(entrant, shared if "model_type" in entrant else {}).items():
        right = f"left out: {config_class.__name__} has no such field"
        expect(field in known, f"entrants.{name}.{field}", value, right)


def slug(name: str) -> str:
    """An entrant's name as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name)
