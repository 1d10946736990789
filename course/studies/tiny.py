"""Small models, the tasks that they are trained on, and the loop that trains them: one thread, seconds a run."""

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    get_scheduler,
    set_seed,
)

from synkhorn import train_tokenizer
from synkhorn.scripts.data.reviews import packaged_reviews
from synkhorn.scripts.data.synthetic_tasks import IGNORED, copy_across_blocks, sort_sequence
from synkhorn.scripts.measuring.benchmark_models import FloorForSequenceClassification

Batch = dict[str, torch.Tensor]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout": 0.0,
}
# models of text are wider, and start from larger weights: with 0.02 they stand still for the first hundred steps
TEXT = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
BLOCK = 8
# up to this length the formulas are faster than the tiles that long texts need
SHORT = 64
FLOOR = "floor"
# different tokens of the copied sequences
COPIED = 8
VOCABULARY = 2000
TEST = 500
# name in the tables -> family, and the fields of its configuration
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ("synthesizer", {"synthesizers": name.split("+")})
        for name in (
            "dot_product",
            "dense",
            "random",
            "fixed_random",
            "factorized_random",
            "factorized_dense",
            "random+dot_product",
            "dense+dot_product",
        )
    },
    "sinkhorn": ("sinkhorn", {"block_size": BLOCK}),
    "local": ("sinkhorn", {"block_size": BLOCK, "sort_net": "none"}),
    "sortcut": ("sinkhorn", {"block_size": BLOCK, "sortcut_blocks": 2}),
    "mix": ("sinkhorn", {"block_size": BLOCK, "mix_dot_product": True}),
    FLOOR: ("synthesizer", {}),
    "bert": ("bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    "longformer": (
        "longformer",
        {"attention_window": [2 * BLOCK] * 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
}


class Task(NamedTuple):
    """
    auto_class: the Auto class of the head.
    fields: of the configuration: the sizes of the vocabulary, the labels and the length.
    draw: (batch size, generator) -> inputs with labels, for training.
    test: inputs with labels that training never sees.
    right: (outputs, batch) -> a tensor of answers that are right (1) or wrong (0).
    steps: how long it is trained.
    rate: the highest learning rate.
    """

    auto_class: Any
    fields: dict[str, Any]
    draw: Callable[[int, torch.Generator], Batch]
    test: Callable[[], Batch]
    right: Callable[[Any, Batch], torch.Tensor]
    steps: int
    rate: float = 4e-3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def reviews() -> Any:
    """The packaged reviews, in the splits `train` and `test`."""
    return packaged_reviews()


@cache
def tokenizer() -> Any:
    """Byte-pair encoding of the reviews' training split."""
    return train_tokenizer(reviews()["train"]["text"][:4000], VOCABULARY, model_max_length=512, show_progress=False)


@cache
def encoded(split: str, first: int, count: int, length: int) -> Batch:
    """Reviews `first` to `first + count` of a split, cut and padded to `length`."""
    part = reviews()[split].select(range(first, first + count))
    batch = tokenizer()(
        list(part["text"]), truncation=True, padding="max_length", max_length=length, return_tensors="pt"
    )
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": torch.tensor(part["label"]),
    }


def chosen(batch: Batch, index: torch.Tensor) -> Batch:
    return {name: tensor[index] for name, tensor in batch.items()}


def review_task(length: int = 64, steps: int = 110, train: int = 4000) -> Task:
    """Is a review positive? Read up to `length` tokens of it."""

    def draw(size: int, rng: torch.Generator) -> Batch:
        return chosen(encoded("train", 0, train, length), torch.randint(train, (size,), generator=rng))

    return Task(
        AutoModelForSequenceClassification,
        TEXT | {"vocab_size": VOCABULARY, "max_position_embeddings": length, "num_labels": 2, "pad_token_id": 256},
        draw,
        lambda: encoded("test", 0, TEST, length),
        lambda outputs, batch: (outputs.logits.argmax(-1) == batch["labels"]).float(),
        steps,
        2e-3,
    )


def copy_task(steps: int = 120) -> Task:
    """Causal: 6 blocks; blocks 3 to 5 repeat blocks 0 to 2."""

    def draw(size: int, rng: torch.Generator) -> Batch:
        ids, labels = copy_across_blocks(size, BLOCK, 6, 3, COPIED, rng)
        return {"input_ids": ids, "labels": labels}

    def right(outputs: Any, batch: Batch) -> torch.Tensor:
        labels, answers = batch["labels"][:, 1:], outputs.logits.argmax(-1)[:, :-1]
        return (answers == labels)[labels != IGNORED].float()

    fields = {"vocab_size": COPIED, "max_position_embeddings": 6 * BLOCK, "is_causal": True, "pad_token_id": None}
    return Task(AutoModelForCausalLM, fields, draw, lambda: draw(128, generator(10_000)), right, steps, 8e-3)


def sort_task(steps: int = 120) -> Task:
    """32 tokens out of 8, to be given back in ascending order."""

    def draw(size: int, rng: torch.Generator) -> Batch:
        ids, labels = sort_sequence(size, 4 * BLOCK, 8, rng)
        return {"input_ids": ids, "labels": labels}

    def right(outputs: Any, batch: Batch) -> torch.Tensor:
        return (outputs.logits.argmax(-1) == batch["labels"]).float()

    fields = {"vocab_size": 8, "max_position_embeddings": 4 * BLOCK, "num_labels": 8, "pad_token_id": None}
    return Task(AutoModelForTokenClassification, fields, draw, lambda: draw(128, generator(10_000)), right, steps)


def find_task(steps: int = 1500) -> Task:
    """A question and its answer: the first token asks, and stands once more among the 15 different ones behind it."""
    length = 16

    def draw(size: int, rng: torch.Generator) -> Batch:
        passage = torch.rand(size, length, generator=rng).argsort(-1)[:, : length - 1]
        answer = torch.randint(length - 1, (size, 1), generator=rng)
        ids = torch.cat((passage.gather(1, answer), passage), dim=1)
        return {"input_ids": ids, "start_positions": answer[:, 0] + 1, "end_positions": answer[:, 0] + 1}

    def right(outputs: Any, batch: Batch) -> torch.Tensor:
        return (outputs.start_logits.argmax(-1) == batch["start_positions"]).float()

    fields = {"vocab_size": length, "max_position_embeddings": length, "pad_token_id": None, "block_size": length // 4}
    return Task(AutoModelForQuestionAnswering, fields, draw, lambda: draw(512, generator(10_000)), right, steps)


TASKS: dict[str, Callable[[], Task]] = {
    "reviews": lambda: review_task(steps=200),
    "find": find_task,
    "copy": copy_task,
    "sort": sort_task,
}


def build(name: str, task: Task, seed: int = 0, **fields: Any) -> nn.Module:
    """A model of `MODELS`, from the seed, with the head and the sizes of the task."""
    family, own = MODELS[name]
    merged = SIZES | own | task.fields | fields
    if family != "sinkhorn":
        merged.pop("block_size", None)
    if name == FLOOR:
        set_seed(seed)
        return FloorForSequenceClassification(AutoConfig.for_model(family, **merged))
    if family in ("bert", "longformer"):
        merged = {key: value for key, value in merged.items() if key not in ("hidden_dropout", "is_causal")}
        # Longformer counts positions from behind the padding token's id
        merged["max_position_embeddings"] += (merged["pad_token_id"] or 0) + 1 if family == "longformer" else 0
    elif merged["max_position_embeddings"] <= SHORT:
        merged["attn_implementation"] = "eager"
    set_seed(seed)
    return task.auto_class.from_config(AutoConfig.for_model(family, **merged))


def train(
    model: nn.Module,
    draw: Callable[[int, torch.Generator], Batch],
    steps: int,
    seed: int = 0,
    batch_size: int = 32,
    rate: float = 4e-3,
    clip: float | None = 1.0,
    weight_decay: float = 0.01,
    schedule: str = "linear",
    warmup: float = 0.1,
    watched: str = "",
) -> dict[str, Any]:
    """
    Train with AdamW, and return the loss of every step, the norm of the gradient before clipping, that of the
    parameters whose name contains `watched`, and the seconds.
    """
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    scheduler = get_scheduler(schedule, optimizer, int(warmup * steps), steps)
    watched_parameters = [p for name, p in model.named_parameters() if watched and watched in name]
    history: dict[str, list[float]] = {"loss": [], "gradient norm": [], "watched norm": []}
    rng, start = generator(seed), time.perf_counter()
    model.train()
    for _ in range(steps):
        loss = model(**draw(batch_size, rng)).loss
        loss.backward()
        norms = [p.grad.norm() for p in watched_parameters if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history["loss"].append(round(loss.item(), 4))
        history["gradient norm"].append(round(norm.item(), 4))
        if norms:
            history["watched norm"].append(float(f"{torch.stack(norms).norm().item():.4g}"))
    return history | {"seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def answers(model: nn.Module, task: Task, batch: Batch | None = None) -> torch.Tensor:
    """Which answers to the test, or to a batch, are right."""
    model.eval()
    batch = task.test() if batch is None else batch
    count = len(batch["input_ids"])
    parts = [chosen(batch, index) for index in torch.arange(count).split(64)]
    return torch.cat([task.right(model(**part), part) for part in parts])


def accuracy(model: nn.Module, task: Task) -> float:
    return round(answers(model, task).mean().item(), 4)


def masked_draw(length: int, share: float = 0.3) -> Callable[[int, torch.Generator], Batch]:
    """Masked language modelling on the reviews of the training split."""

    def draw(size: int, rng: torch.Generator) -> Batch:
        texts = encoded("train", 0, 4000, length)
        batch = chosen(texts, torch.randint(4000, (size,), generator=rng))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden = (torch.rand(ids.shape, generator=rng) < share) & (mask == 1)
        return {
            "input_ids": ids.masked_fill(hidden, tokenizer().mask_token_id),
            "attention_mask": mask,
            "labels": ids.masked_fill(~hidden, IGNORED),
        }

    return draw


def causal_draw(length: int) -> Callable[[int, torch.Generator], Batch]:
    """Causal language modelling on the same."""

    def draw(size: int, rng: torch.Generator) -> Batch:
        batch = chosen(encoded("train", 0, 4000, length), torch.randint(4000, (size,), generator=rng))
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    return draw


LANGUAGE_HEADS = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}
