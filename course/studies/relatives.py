"""What became of the ideas: queries and keys that are not trained, and blocks chosen by their likeness."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from synkhorn.modeling.modeling_sinkhorn import BlockSort
from synkhorn.modeling.sinkhorn_sort import causal_sums, pool_blocks

from .record import Run, study
from .tiny import TASKS, accuracy, build, train


def freeze_queries_and_keys(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".dot_product." in name:
            parameter.requires_grad_(False)


def choose_by_likeness(model: nn.Module) -> None:
    """In place of the learned sort each block fetches the block whose pooled vector is most like its own."""

    def alike(module: BlockSort, inputs: tuple, outputs: tuple) -> tuple:
        states, blocks = inputs
        config, filled = module.config, blocks.fill(states)
        if config.is_causal:
            pooled = module.pooled_sums(causal_sums(filled, blocks, config.block_pooling))
        else:
            pooled = pool_blocks(filled, blocks, config.block_pooling)
        logits = pooled @ pooled.transpose(-1, -2)
        n = logits.shape[-1]
        allowed = torch.ones(n, n).tril(-1) if config.is_causal else 1 - torch.eye(n)
        best = logits.masked_fill(allowed == 0, float("-inf")).argmax(-1, keepdim=True)
        matrices = torch.zeros_like(logits).scatter(-1, best, 1.0) * allowed
        return matrices[:, None].expand_as(outputs[0]), *outputs[1:]

    for module in model.modules():
        if isinstance(module, BlockSort):
            module.register_forward_hook(alike)


CHANGES: dict[str, tuple[str, Callable[[nn.Module], None]]] = {
    "frozen queries and keys": ("dot_product", freeze_queries_and_keys),
    "block most alike": ("sinkhorn", choose_by_likeness),
}


def changed(name: str, task_name: str, seed: int) -> dict[str, Any]:
    base, change = CHANGES[name]
    task = TASKS[task_name]()
    model = build(base, task, seed)
    change(model)
    train(model, task.draw, task.steps, seed, rate=task.rate)
    return {"accuracy": accuracy(model, task)}


@study("relatives")
def relatives() -> Iterator[Run]:
    for seed in range(3):
        for task_name in ("copy", "sort"):
            for name in CHANGES:
                yield f"{name}/{task_name}/{seed}", lambda n=name, t=task_name, s=seed: changed(n, t, s)
