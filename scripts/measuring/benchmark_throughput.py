"""
Documents per second of a fine-tuning step on real reviews, both families beside their peers.

The packaged IMDb reviews are cut into batches of documents of like length, padded to the longest one's next multiple of
64. Every model reads the same batches: forward, loss, backward, and a step of AdamW. The models take turns, a batch
each, and ratios are taken batch by batch.

    python -m synkhorn.scripts.benchmark throughput
    python -m synkhorn.scripts.benchmark throughput --models floor bert sinkhorn --max_length 2048 --batches 16
"""

import random
import statistics
import sys
import time
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

# what blocks, windows and chunks of all models divide
PAD_TO = 64


@dataclass
class ThroughputArguments(SizeArguments):
    models: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": "As for the benchmark; or all that have a classifier."}
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens at which a review is cut."})
    batch_size: int = field(default=16, metadata={"help": "Reviews in a batch."})
    batches: int = field(default=8, metadata={"help": "Batches that are timed, after one that warms up."})
    max_samples: int = field(default=4000, metadata={"help": "Reviews of which the batches are drawn."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": ["float32", "bfloat16"]})
    device: str = field(default="cpu", metadata={"help": "Where to measure.", "choices": ["cpu", "cuda"]})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds after which a batch is given up."})
    memory_limit: float = field(default=8.0, metadata={"help": "Gigabytes that a model may take (not on a GPU)."})
    output: str = field(default="benchmarks/throughput", metadata={"help": "Path without ending of the files."})

    def __post_init__(self):
        self.models = MODELS if self.models == ["all"] else list(dict.fromkeys(self.models))
        check_models(self.models)
        if self.max_length % PAD_TO:
            raise ValueError(f"--max_length {self.max_length} must be a multiple of {PAD_TO}")


def draw_batches(arguments: ThroughputArguments) -> list[dict[str, torch.Tensor]]:
    """Padded batches of reviews of like length, one more than are timed."""
    set_seed(0)
    reviews = load_reviews()["train"].shuffle(seed=0)
    reviews = reviews.select(range(min(arguments.max_samples, len(reviews))))
    texts, labels = list(reviews["text"]), list(reviews["label"])
    tokenizer = synkhorn.train_tokenizer(texts, arguments.vocab_size, arguments.max_length)
    ids = tokenizer(texts, truncation=True)["input_ids"]
    order = list(LengthGroupedSampler(arguments.batch_size, lengths=[len(row) for row in ids]))
    batches = [order[start : start + arguments.batch_size] for start in range(0, len(order), arguments.batch_size)]
    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_TO)
    # the first is the longest; the order begins anew with long ones again and again, so that no stride is fair
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

    def seconds(self, number: int) -> float:
        """How long one step takes."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(**self.batches[number]).loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def measure(arguments: ThroughputArguments, batches: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Seconds of each model for each batch, the first of which warms up; or why a model could not be measured."""
    sizes = arguments.sizes(arguments.max_length)
    settings = Settings(arguments.batch_size, arguments.device, arguments.threads)
    limit = arguments.memory_limit if arguments.device == "cpu" else None
    rows: list[dict[str, Any]] = [{"model": name, "seconds": []} for name in arguments.models]
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
                    row["seconds"].append(workers[row["model"]].ask("seconds", number, timeout=arguments.timeout))
                except Failed as failed:
                    row["missing"] = str(failed)
            progress.update()
    progress.close()
    for worker in workers.values():
        worker.end()
    return rows


def summary(rows: list[dict[str, Any]], batches: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """The rows with documents and padded tokens per second, and how many times the floor's and the peer's that is."""
    documents = sum(batch["input_ids"].shape[0] for batch in batches[1:])
    tokens = sum(batch["input_ids"].numel() for batch in batches[1:])
    measured = {row["model"]: row["seconds"] for row in rows if "missing" not in row}
    complete = []
    for row in rows:
        row = dict(row)
        if "missing" not in row:
            times = row["seconds"][1:]
            row |= {"documents/s": documents / sum(times), "tokens/s": tokens / sum(times)}
            row["ms"] = 1000 * statistics.median(times)
            for name, other in (("floor", FLOOR), ("peer", peer_of(row["model"]))):
                if other in measured:
                    row[f"speed times {name}"] = ratio(measured[other], row["seconds"])
        complete.append(row)
    return complete


def table(rows: list[dict[str, Any]], arguments: ThroughputArguments, batches: list, about: dict[str, str]) -> str:
    """The rows as Markdown, the fastest first."""
    lengths = sorted(batch["input_ids"].shape[1] for batch in batches[1:])
    lines = [
        "# Fine-tuning on real reviews: documents per second",
        "",
        f"IMDb reviews of at most {arguments.max_length:,} tokens in {len(lengths)} batches of {arguments.batch_size} "
        f"of like length, padded to {lengths[0]:,} to {lengths[-1]:,} tokens, in the median "
        f"{statistics.median(lengths):,.0f} (`nystromformer`, which takes one length only, to "
        f"{arguments.max_length:,}, and unmasked, since its landmarks take no mask): forward, loss, backward, AdamW. "
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"{arguments.dtype}, {arguments.device}, {arguments.threads} thread(s), random weights. The models take turns, "
        "a batch each, after one that warms up. `documents/s` is over all batches; the ratios are medians over "
        "the batches of how many times the speed: `× floor` of the same trunk with the identity between an attention's "
        "projections, `× peer` of BERT, for causal models of GPT-2, both with SDPA.",
        "",
        about_line(about),
        "",
        "| model | documents/s | × floor | × peer | padded tokens/s | ms a batch, median |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: -row.get("documents/s", 0)):
        if "missing" in row:
            lines.append(f"| `{row['model']}` | {row['missing']} | | | | |")
            continue
        ratios = [cell(row, f"speed times {other}", ".2f") for other in ("floor", "peer")]
        cells = [f"{row['documents/s']:.1f}", *ratios, f"{row['tokens/s']:.0f}", f"{row['ms']:.0f}"]
        lines.append(f"| `{row['model']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Measure, and write the table and its figures."""
    args = sys.argv[1:] if args is None else args
    (arguments,) = parse([ThroughputArguments], args, __doc__, task="throughput")
    batches = draw_batches(arguments)
    about = machine()
    if arguments.device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
    rows = summary(measure(arguments, batches), batches)
    report = table(rows, arguments, batches, about)
    settings = {name: value for name, value in asdict(arguments).items() if name != "output"}
    write_report(Path(arguments.output), report, {"machine": about, "settings": settings, "results": rows})
    print(report)
