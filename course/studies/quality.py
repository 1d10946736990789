"""Every model on every task at one budget, three seeds each."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .record import Run, study
from .tiny import BLOCK, MODELS, TASKS, Task, accuracy, build, encoded, train

SEEDS = 3
# a measure of classification only
PEERS = ("floor", "bert", "longformer")
# SortCut has no causal form; a passage of four blocks needs neither it nor full attention beside the sort
LEFT_OUT = {"copy": ("sortcut",), "find": ("sortcut", "mix"), "reviews": ("fixed_random", "factorized_dense")}
EXAMPLE_TOKENS = 8 * BLOCK


def can(name: str, task: str) -> bool:
    """Whether a model takes part in a task."""
    return task == "reviews" if name in PEERS else name not in LEFT_OUT.get(task, ())


def trained(name: str, make: Callable[[], Task], seed: int) -> dict[str, Any]:
    task = make()
    model = build(name, task, seed)
    history = train(model, task.draw, task.steps, seed, rate=task.rate)
    return {
        "accuracy": accuracy(model, task),
        "loss": round(sum(history["loss"][-20:]) / 20, 4),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": history["seconds"],
    }


def runs_of(task: str, make: Callable[[], Task]) -> Callable[[], Iterator[Run]]:
    def runs() -> Iterator[Run]:
        for seed in range(SEEDS):
            for name in MODELS:
                if can(name, task):
                    yield f"{name}/{seed}", lambda name=name, seed=seed: trained(name, make, seed)

    return runs


for task_name, make_task in TASKS.items():
    study(task_name)(runs_of(task_name, make_task))


def example_ids() -> torch.Tensor:
    """The running example, (1, 64): the beginning of the first held-out review with as many tokens, 8 blocks of 8."""
    batch = encoded("test", 0, 50, EXAMPLE_TOKENS)
    whole = batch["attention_mask"].sum(-1) == EXAMPLE_TOKENS
    return batch["input_ids"][whole][:1]


@torch.no_grad()
def effective_weights(model: Any, ids: torch.Tensor) -> list[Any]:
    """Weights of all layers over the tokens, the mean of the heads, rounded."""
    model.eval().set_attn_implementation("eager")
    attentions = model(ids, output_attentions=True).attentions
    return [[[round(x, 4) for x in row] for row in layer[0].mean(0).tolist()] for layer in attentions]
