"""Measures a checkpoint on a task: metrics with confidence intervals, throughput and memory."""

import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ..common.checkpoints import load_whole, reading
from ..common.precision import DTYPE_HELP, DTYPES, device_type, weights_dtype
from ..data.text_data import DataArguments, load_splits
from ..measuring.memory import forget_peak, resident_megabytes
from ..measuring.metrics import confidence_intervals
from ..measuring.report import about_line
from .classification import ClassificationArguments
from .language_modeling import LanguageModelingArguments
from .task import Task


@dataclass
class EvaluateArguments:
    """Which checkpoint, and how it is measured."""

    _argument_group_name = "evaluation"

    model_name_or_path: str = field(metadata={"help": "The checkpoint: a folder, or a name on the Hub."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code in the checkpoint, if you trust its author."}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "`sdpa`, the fast form, or `eager`, which follows the formulas step by step."}
    )
    dtype: str | None = field(default=None, metadata={"help": DTYPE_HELP, "choices": DTYPES})
    split: str = field(
        default="test", metadata={"help": "The split to measure on.", "choices": ["test", "validation", "train"]}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a document, or a window; as many as the model takes if not given."}
    )
    batch_size: int = field(default=32, metadata={"help": "Documents, or windows over them, in a batch."})
    resamples: int = field(default=1000, metadata={"help": "Draws of the bootstrap; 0 for no intervals."})
    confidence: float = field(default=0.95, metadata={"help": "Share of the draws that an interval holds."})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap."})
    output: str | None = field(
        default=None, metadata={"help": "Path without ending of a report, .md and .json; only printed if not given."}
    )
    lm_eval: list[str] | None = field(
        default=None, metadata={"help": "Tasks of EleutherAI's harness to measure a causal model on, in place of data."}
    )
    lm_eval_include: str | None = field(
        default=None, metadata={"help": "Folder with further tasks of the harness, as YAML files."}
    )
    lm_eval_limit: int | None = field(default=None, metadata={"help": "Examples of each task of the harness."})

    def __post_init__(self):
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} must lie between 0 and 1, such as 0.95")
        for name, least in (("batch_size", 1), ("resamples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


def predict(task: Task, model: PreTrainedModel, examples: Dataset, inputs: Dataset, batch_size: int):
    """Rows of predictions by a `Trainer`, and the seconds that they took."""
    with tempfile.TemporaryDirectory() as folder:
        training = task.training_class(
            folder,
            per_device_eval_batch_size=batch_size,
            report_to="none",
            use_cpu=device_type() == "cpu",
            **task.defaults,
        )
        trainer = task.trainer_class(
            model,
            training,
            data_collator=task.collator(),
            processing_class=task.tokenizer,
            preprocess_logits_for_metrics=task.reduce,
        )
        start = time.perf_counter()
        outputs = trainer.predict(inputs).predictions
        rows = task.predict(examples, inputs, outputs)
    return rows, time.perf_counter() - start


def peak_megabytes() -> float:
    """The most memory that was held: of the accelerator where there is one, else of the process since `forget_peak`."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated() / 2**20
    return resident_megabytes("VmHWM")


def measure(arguments: EvaluateArguments, data: DataArguments, kind: type[Task], task_arguments: Any) -> dict[str, Any]:
    """
    Measure a checkpoint on a split.

    Returns:
        `metrics`, `intervals` (metric -> lower and upper end), `documents`, `tokens`, `documents_per_second`,
        `tokens_per_second` and `peak_megabytes`.
    """
    source = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
    config = AutoConfig.from_pretrained(arguments.model_name_or_path, **source)
    suffix = kind.auto_class.__name__.removeprefix("AutoModel")
    is_trained = any(name.endswith(suffix) for name in config.architectures or [])
    if not (config.is_encoder_decoder if suffix == "ForSeq2SeqLM" else is_trained):
        raise ValueError(
            f"model_name_or_path={arguments.model_name_or_path!r} is a {config.architectures}, without a trained head "
            f"for this task (...{suffix}): fine-tune it first"
        )
    longest = reading(config).max_position_embeddings
    if arguments.max_length is not None and not 1 <= arguments.max_length <= longest:
        raise ValueError(f"max_length={arguments.max_length} must be 1 to {longest}, which the model takes")
    if data.streaming:
        raise ValueError("streaming=True: evaluation reads its data several times; leave --streaming out")
    sample_by = task_arguments.sample_by if isinstance(task_arguments, LanguageModelingArguments) else "line"
    splits = load_splits(data, kind.columns(task_arguments), needed=[arguments.split], sample_by=sample_by)
    examples = splits[arguments.split]
    kind.check_texts(task_arguments, {arguments.split: examples})
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, **source)
    if isinstance(task_arguments, ClassificationArguments):
        task_arguments = replace(task_arguments, problem_type=task_arguments.problem_type or config.problem_type)
    labels = [config.id2label[index] for index in range(config.num_labels)]
    task = kind(task_arguments, tokenizer, arguments.max_length or longest, labels)
    inputs = task.prepare(examples, arguments.split, data.num_workers)
    model = load_whole(
        kind.auto_class,
        arguments.model_name_or_path,
        attn_implementation=arguments.attn_implementation,
        dtype=weights_dtype(arguments.dtype, config, device_type()),
        **source,
    )
    forget_peak()
    rows, seconds = predict(task, model, examples, inputs, arguments.batch_size)
    tokens = sum(inputs["length"])
    return {
        "metrics": task.measure(rows),
        "peak_megabytes": peak_megabytes(),
        "intervals": confidence_intervals(
            task.measure, rows, min(arguments.resamples, task.most_resamples), arguments.confidence, arguments.seed
        ),
        "documents": len(examples),
        "tokens": tokens,
        "documents_per_second": len(examples) / seconds,
        "tokens_per_second": tokens / seconds,
    }


def as_markdown(arguments: EvaluateArguments, measured: dict[str, Any], about: dict[str, str]) -> str:
    """The measurements as text."""
    interval = f"{arguments.confidence:.0%} interval"
    lines = [f"| metric | value | {interval} |", "|---|---:|---|"]
    for name, value in measured["metrics"].items():
        low, high = measured["intervals"].get(name, (None, None))
        lines.append(f"| {name} | {value:.4f} | " + ("not taken |" if low is None else f"{low:.4f} to {high:.4f} |"))
    return "\n".join(
        [
            f"`{arguments.model_name_or_path}` on {measured['documents']:,} documents, {measured['tokens']:,} tokens",
            "",
            *lines,
            "",
            f"{measured['documents_per_second']:,.1f} documents/s, {measured['tokens_per_second']:,.0f} tokens/s, peak "
            f"memory {measured['peak_megabytes']:,.0f} MB, batches of {arguments.batch_size}. {about_line(about)}.",
            "",
        ]
    )


def harness(arguments: EvaluateArguments) -> dict[str, Any]:
    """
    The measurements of EleutherAI's harness on a causal model: task -> metric -> value.

    Raises:
        ModuleNotFoundError: if the harness is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ModuleNotFoundError(
            "--lm_eval hands the model to EleutherAI's harness, which is not installed: pip install lm_eval"
        )
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    results = simple_evaluate(
        model="hf",
        model_args={
            "pretrained": arguments.model_name_or_path,
            "revision": arguments.revision,
            "trust_remote_code": arguments.trust_remote_code,
            "max_length": arguments.max_length,
            "attn_implementation": arguments.attn_implementation,
            "dtype": arguments.dtype or "auto",
        },
        tasks=arguments.lm_eval,
        task_manager=TaskManager(include_path=arguments.lm_eval_include),
        batch_size=arguments.batch_size,
        limit=arguments.lm_eval_limit,
        device=None if torch.accelerator.is_available() else "cpu",
        bootstrap_iters=arguments.resamples,
    )
    print(make_table(results))
    return results["results"]
