"""One choice at a time: the sort's iterations and temperature, rate and clipping, training choices, ways to start."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from synkhorn import convert
from synkhorn.modeling.modeling_sinkhorn import BlockSort

from .record import Run, study
from .tiny import (
    LANGUAGE_HEADS,
    SIZES,
    TEXT,
    Task,
    accuracy,
    answers,
    build,
    causal_draw,
    copy_task,
    encoded,
    masked_draw,
    review_task,
    sort_task,
    train,
)

# the model of each family that the studies of training look at
SUBJECTS = {"synthesizer": "dense+dot_product", "sinkhorn": "sinkhorn"}
WATCHED = {"synthesizer": "members", "sinkhorn": "sort"}
TEMPERATURES = (0.25, 0.75, 2.0)
SORT_ITERATIONS = (1, 7, 20)
COPY_BALANCINGS = {"softmax": {"causal_balancing": "softmax"}} | {
    f"sinkhorn {n}": {"causal_balancing": "sinkhorn", "sinkhorn_iterations": n} for n in (2, 7)
}
RATES = (5e-4, 2e-3, 8e-3)
CLIPS = (0.1, 1.0, None)
CHOICES: dict[str, dict[str, Any]] = {
    "base": {},
    "no warm-up": {"warmup": 0.0},
    "constant rate": {"schedule": "constant", "warmup": 0.0},
    "no clipping": {"clip": None},
    "no weight decay": {"weight_decay": 0.0},
    "dropout 0.1": {"hidden_dropout": 0.1},
}
STARTS = ("scratch", "masked", "causal", "warm")
CHOICE_SEEDS = 2
LABELLED, TEST = 1000, 1000
# steps
PRETRAINING, RATED, CHOSEN = 80, 120, 200


def assignment(matrices: torch.Tensor) -> torch.Tensor:
    """The permutation of the largest sum: (R, H, n, n) -> the same, of 0 and 1."""
    hard = torch.zeros_like(matrices)
    for row, matrix in enumerate(matrices.flatten(0, 1)):
        i, j = linear_sum_assignment(matrix.numpy(), maximize=True)
        hard.flatten(0, 1)[row, i, j] = 1.0
    return hard


def best_of_row(matrices: torch.Tensor) -> torch.Tensor:
    """The largest entry of each row as 1: (R, H, n, n) -> the same, of 0 and 1."""
    return torch.zeros_like(matrices).scatter(-1, matrices.argmax(-1, keepdim=True), 1.0)


def hardened(model: nn.Module, task: Task, harden: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Accuracy where every sort matrix is replaced by a hard one, after training."""
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: (harden(output[0]), *output[1:]))
        for module in model.modules()
        if isinstance(module, BlockSort)
    ]
    try:
        return accuracy(model, task)
    finally:
        for hook in hooks:
            hook.remove()


def sorted_once(make: Callable[[], Task], fields: dict[str, Any], hard: bool) -> dict[str, Any]:
    task = make()
    model = build("sinkhorn", task, **fields)
    history = train(model, task.draw, task.steps, rate=task.rate)
    result = {"accuracy": accuracy(model, task), "seconds": history["seconds"]}
    if hard:
        result |= {"assignment": hardened(model, task, assignment), "best of row": hardened(model, task, best_of_row)}
    return result


@study("balancing")
def balancing() -> Iterator[Run]:
    for temperature in TEMPERATURES:
        for iterations in SORT_ITERATIONS:
            fields = {"sinkhorn_iterations": iterations, "sinkhorn_temperature": temperature}
            yield f"sort/{iterations}/{temperature}", lambda fields=fields: sorted_once(sort_task, fields, hard=True)
        for name, own in COPY_BALANCINGS.items():
            fields = own | {"sinkhorn_temperature": temperature}
            yield f"copy/{name}/{temperature}", lambda fields=fields: sorted_once(copy_task, fields, hard=False)


def classified(family: str, seed: int = 0, steps: int = 120, **settings: Any) -> dict[str, Any]:
    """Train the family's subject on the reviews with settings of `train` or of the model."""
    task = review_task(steps=steps)
    own = {name: settings.pop(name) for name in list(settings) if name in ("hidden_dropout",)}
    model = build(SUBJECTS[family], task, seed, **own)
    history = train(model, task.draw, steps, seed, watched=WATCHED[family], **{"rate": task.rate} | settings)
    return {"accuracy": accuracy(model, task)} | history


@study("rates")
def rates() -> Iterator[Run]:
    for family in SUBJECTS:
        for rate in RATES:
            for clip in CLIPS:
                settings = {"rate": rate, "clip": clip, "steps": RATED}
                yield f"{family}/{rate}/{clip}", lambda family=family, s=settings: classified(family, **s)


@study("choices")
def choices() -> Iterator[Run]:
    for seed in range(CHOICE_SEEDS):
        for name, settings in CHOICES.items():
            yield f"{name}/{seed}", lambda s=seed, x=settings: chosen_once("synthesizer", s, x)


def chosen_once(family: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    result = classified(family, seed, CHOSEN, **settings)
    return {"accuracy": result["accuracy"], "loss": round(sum(result["loss"][-20:]) / 20, 4)}


def pretrained(family: str, objective: str) -> nn.Module:
    """A language model of the family, or with `warm` a masked BERT of the same sizes made into one."""
    length, steps = 64, PRETRAINING
    fields = TEXT | {"vocab_size": 2000, "max_position_embeddings": length, "pad_token_id": 256}
    if objective == "warm":
        sizes = {name: size for name, size in (SIZES | fields).items() if name != "hidden_dropout"}
        torch.manual_seed(0)
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        source = BertForMaskedLM(config)
        train(source, masked_draw(length), steps, rate=2e-3)
        own = {"synthesizers": ["dense", "dot_product"]} if family == "synthesizer" else {"block_size": 8}
        return convert(source, family, **own).model
    task = Task(LANGUAGE_HEADS[objective], fields | {"is_causal": objective == "causal"}, *[None] * 3, steps)
    model = build(SUBJECTS[family], task)
    train(model, (masked_draw if objective == "masked" else causal_draw)(length), steps, rate=2e-3)
    return model


def started(family: str, start: str) -> dict[str, Any]:
    """Fine-tune on few labels from one of the `STARTS`."""
    task = review_task(train=LABELLED)
    own: dict[str, Any] = {}
    source = None if start == "scratch" else pretrained(family, start)
    if start == "warm":
        own = {"norm_first": False, "embedding_norm": True, "type_vocab_size": source.config.type_vocab_size}
        own |= {"layer_norm_eps": source.config.layer_norm_eps}
    model = build(SUBJECTS[family], task, **own)
    if source is not None:
        base = source.base_model.state_dict()
        missing = model.base_model.load_state_dict(base, strict=False)
        if missing.missing_keys or missing.unexpected_keys:
            raise ValueError(f"{start}: {missing}")
    history = train(model, task.draw, task.steps, rate=task.rate)
    right = answers(model, task, encoded("test", 0, TEST, 64))
    return {"accuracy": round(right.mean().item(), 4), "tested": TEST, "loss": history["loss"]}


@study("starts")
def starts() -> Iterator[Run]:
    for family in SUBJECTS:
        for start in STARTS:
            yield f"{family}/{start}", lambda family=family, start=start: started(family, start)
