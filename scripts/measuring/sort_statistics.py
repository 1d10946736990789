"""How near the sort matrices of a trained Sinkhorn model are to permutations."""

from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

# batches that are enough for a mean
BATCHES = 4


def mixed(weights: torch.Tensor) -> float:
    """
    Of how many entries the last dimension's distributions are mixtures: the exponential of their entropy, 1 where each
    is a single entry, n where n are equal. The mean of it; rows without any weight are left out.
    """
    mass = weights.sum(-1, keepdim=True)
    shares = (weights / mass)[mass[..., 0] > 0]
    return float((-torch.xlogy(shares, shares).sum(-1)).exp().mean())


@torch.no_grad()
def sort_statistics(model: PreTrainedModel, batches: DataLoader) -> list[dict[str, float]]:
    """
    For each layer of a Sinkhorn model: of how many blocks a row of the sort is a mixture, in how many mixtures a block
    is (columns), and the largest difference of a column's sum from 1. Means over some batches; nothing for a model
    without a sort.
    """
    if getattr(model.config, "sort_net", "none") == "none":
        return []
    layers: list[list[dict[str, float]]] = []
    for batch in islice(batches, BATCHES):
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        matrices: Any = model.eval()(**inputs, output_attentions=True).sort_matrices
        layers.append([statistics_of(matrix.double()) for matrix in matrices])
    names = layers[0][0]
    return [{name: sum(x[name] for x in layer) / len(layer) for name in names} for layer in zip(*layers, strict=True)]


def statistics_of(matrices: torch.Tensor) -> dict[str, float]:
    """Of the (B, H m, n, n) sort matrices of a layer."""
    return {
        "rows": mixed(matrices),
        "columns": mixed(matrices.transpose(-1, -2)),
        "column_error": float((matrices.sum(-2) - 1).abs().amax(-1).mean()),
    }
