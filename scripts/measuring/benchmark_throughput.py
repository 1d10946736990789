"""
Documents per second of training and evaluation on real reviews, both families beside their peers.

The packaged IMDb reviews come in batches as they do in training, or of like length (`--order length`), padded to the
longest one's next multiple of 64. Every model reads the same batches. The models take turns, a batch each, and ratios
are taken batch by batch.

    python -m synkhorn.scripts.benchmark throughput
    python -m synkhorn.scripts.benchmark throughput --models floor bert sinkhorn --max_length 2048 --order length
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import DataCollatorWithPadding, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

import synkhorn

from ..common.arguments import parse
from ..data.reviews import load_reviews
from .benchmark_models import FLOOR, MODELS, SizeArguments, Sizes, check_models, classifier
from .benchmark_report import cell, peer_of, ratio
from .benchmark_worker import Failed, Settings, Worker
from .report import about_line, machine, write_report

# a multiple of the blocks, windows and chunks of all models
PAD_TO = 64
PHASES = ("training", "evaluation")


@dataclass
class ThroughputArguments(SizeArguments):
    models: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "As for the benchmark; or all that have a classifier."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens at which a review is cut."})
    batch_size: int = field(default=32, metadata={"help": "Reviews in a batch."})
    order: str = field(
        default="random",
        metadata={
            "help": "How reviews come into batches: `random`, as in training, or `length`, like lengths together.",
            "choices": ["random", "length"],
        },
    )
    batches: int = field(default=8, metadata={"help": "Batches that are timed, after one that warms up."})
    max_samples: int = field(default=4000, metadata={"help": "Reviews of which the batches are drawn."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": ["float32", "bfloat16"]})
    device: str = field(default="cpu", metadata={"help": "Where to measure.", "choices": ["cpu", "cuda"]})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds after which a batch is given up."})
    memory_limit: float = field(default=8.0, metadata={"help": "Gigabytes that a model may take (not on a GPU)."})
    output: str = field(
        default="benchmarks/throughput/throughput", metadata={"help": "Path without ending of the files."}
    )

    def __post_init__(self):
        self.models = MODELS if self.models == ["all"] else list(dict.fromkeys(self.models))
        check_models(self.models)
        if self.max_length % PAD_TO:
            raise ValueError(f"--max_length {self.max_length} must be a multiple of {PAD_TO}")


def draw_batches(arguments: ThroughputArguments) -> list[dict[str, torch.Tensor]]:
    """Padded batches of reviews in the order that is asked for, one more than are timed."""
    set_seed(0)
    reviews = load_reviews()["train"].shuffle(seed=0)
    reviews = reviews.select(range(min(arguments.max_samples, len(reviews))))
    texts, labels = list(reviews["text"]), list(reviews["label"])
    tokenizer = synkhorn.train_tokenizer(texts, arguments.vocab_size, arguments.max_length)
    ids = tokenizer(texts, truncation=True)["input_ids"]
    order = list(range(len(ids)))
    if arguments.order == "length":
        order = list(LengthGroupedSampler(arguments.batch_size, lengths=[len(row) for row in ids]))
    batches = [order[start : start + arguments.batch_size] for start in range(0, len(order), arguments.batch_size)]
    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO)
    # by length, the first is the longest; the order starts again with long ones, so that no stride is fair
    warm_up, *others = batches
    chosen = [warm_up, *random.sample(others, min(arguments.batches, len(others)))]
    return [dict(pad([{"input_ids": ids[index], "label": labels[index]} for index in batch])) for batch in chosen]


class FineTuning:
    """A model with a classifier, its optimizer, and the batches that it is trained on."""

    def __init__(self, name: str, dtype: str, sizes: Sizes, settings: Settings, batches: list[dict]):
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.device = torch.device(settings.device)
        self.model = classifier(name, sizes).to(self.device, getattr(torch, dtype)).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.batches = [{key: value.to(self.device) for key, value in batch.items()} for batch in batches]
        if name == "nystromformer":
            # its landmarks are those of one length, and its masks do not fit them
            for batch in self.batches:
                missing = sizes.length - batch.pop("attention_mask").shape[1]
                batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, missing))

    def seconds(self, number: int) -> dict[str, float]:
        """How long one training step takes, and one evaluation of the same batch."""
        return {"training": self.timed(self.step, number), "evaluation": self.timed(self.evaluate, number)}

    def timed(self, function: Callable[[int], None], number: int) -> float:
        began = time.perf_counter()
        function(number)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        self.model.train()(**self.batches[number]).loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, number: int) -> None:
        self.model.eval()(**self.batches[number])


def measure(arguments: ThroughputArguments, batches: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Seconds of each model for each batch, the first of which warms up; or why a model could not be measured."""
    sizes = arguments.sizes(arguments.max_length)
    settings = Settings(arguments.batch_size, arguments.device, arguments.threads)
    limit = arguments.memory_limit if arguments.device == "cpu" else None
    rows: list[dict[str, Any]] = [{"model": name, **{phase: [] for phase in PHASES}} for name in arguments.models]
    workers = {
        name: Worker(FineTuning, name, arguments.dtype, sizes, settings, batches, memory_gigabytes=limit)
        for name in arguments.models
    }
    progress = tqdm(total=len(rows) * len(batches))
    for number in range(len(batches)):
        for row in rows:
            progress.set_postfix_str(row["model"])
            if "missing" not in row:
                try:
                    seconds = workers[row["model"]].ask("seconds", number, timeout=arguments.timeout)
                    for phase in PHASES:
                        row[phase].append(seconds[phase])
                except Failed as failed:
                    row["missing"] = str(failed)
            progress.update()
    progress.close()
    for worker in workers.values():
        worker.end()
    return rows


def summary(rows: list[dict[str, Any]], batches: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """The rows with documents per second of both phases, and how many times the floor's and the peer's that is."""
    documents = sum(batch["input_ids"].shape[0] for batch in batches[1:])
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches[1:])
    measured = {row["model"]: row for row in rows if "missing" not in row}
    complete = []
    for row in rows:
        row = dict(row)
        for phase in PHASES if "missing" not in row else ():
            times = row[phase][1:]
            row |= {f"{phase} documents/s": documents / sum(times), f"{phase} tokens/s": tokens / sum(times)}
            for name, other in (("floor", FLOOR), ("peer", peer_of(row["model"]))):
                if other in measured:
                    row[f"{phase} times {name}"] = ratio(measured[other][phase], row[phase])
        complete.append(row)
    return complete


def table(rows: list[dict[str, Any]], arguments: ThroughputArguments, batches: list, about: dict[str, str]) -> str:
    """The rows as Markdown, the fastest first."""
    lengths = sorted(batch["input_ids"].shape[1] for batch in batches[1:])
    positions = sum(batch["attention_mask"].numel() for batch in batches[1:])
    padding = positions / sum(int(batch["attention_mask"].sum()) for batch in batches[1:])
    order = "as they come" if arguments.order == "random" else "of like length"
    lines = [
        "# Fine-tuning on real reviews: documents per second",
        "",
        f"IMDb reviews of at most {arguments.max_length:,} tokens in {len(lengths)} batches of {arguments.batch_size} "
        f"{order}, padded to {lengths[0]:,} to {lengths[-1]:,} tokens, in the median "
        f"{statistics.median(lengths):,.0f}; they hold {padding:.2f} positions for each token (`nystromformer`, which "
        f"takes one length only, is padded to {arguments.max_length:,}, unmasked, since its landmarks take no mask). "
        "Training: forward, loss, backward, AdamW; evaluation: forward without gradients. Attention dropout is 0. "
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"{arguments.dtype}, {arguments.device}, {arguments.threads} thread(s), random weights. The models take turns, "
        "a batch each, after one that warms up. Documents per second are over all batches; the ratios are medians over "
        "the batches of how many times the speed: `× floor` of the same trunk with the identity between an attention's "
        "projections, `× peer` of BERT, for causal models of GPT-2, both with SDPA.",
        "",
        about_line(about),
        "",
        "| model | training: documents/s | × floor | × peer | tokens/s | evaluation: documents/s | × floor | × peer |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: -row.get("training documents/s", 0)):
        if "missing" in row:
            lines.append(f"| `{row['model']}` | {row['missing']} | | | | | | |")
            continue
        training, evaluation = (
            [f"{row[f'{phase} documents/s']:.1f}", *(cell(row, f"{phase} times {x}", ".2f") for x in ("floor", "peer"))]
            for phase in PHASES
        )
        cells = [*training, f"{row['training tokens/s']:.0f}", *evaluation]
        lines.append(f"| `{row['model']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Measure, and write the table and its figures."""
    args = sys.argv[1:] if args is None else args
    (arguments,) = parse([ThroughputArguments], args, __doc__, task="throughput")
    batches = draw_batches(arguments)
    about = machine(arguments.device)
    rows = summary(measure(arguments, batches), batches)
    report = table(rows, arguments, batches, about)
    settings = {name: value for name, value in asdict(arguments).items() if name != "output"}
    write_report(Path(arguments.output), report, {"machine": about, "settings": settings, "results": rows})
    print(report)
