"""The parts that heads are made of: pooling of rows, classifiers, and labels of tokens."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..configuration.configuration_backbone import BackboneConfig
from .rows import Rows
from .softmax_attention import precise


def pool(hidden_states: torch.Tensor, rows: Rows, pooling: str) -> torch.Tensor:
    """Tokens -> (R, d): mean of each row's tokens, the first (`cls`) or the `last`; 0 for an empty row."""
    pooled = []
    sizes = [count * length for count, length in rows.groups]
    for tokens, (count, length) in zip(hidden_states.flatten(0, 1).split(sizes), rows.groups, strict=True):
        tokens = tokens.unflatten(0, (count, length))  # (rows, length, d)
        if not length:
            pooled.append(tokens.sum(1))
        elif pooling == "mean":
            valid = precise(tokens[:, :, 0].new_ones(1, length) if rows.mask is None else rows.mask.to(tokens.dtype))
            # no product of matrices, which autocast would round
            weights = valid / valid.sum(-1, keepdim=True)
            pooled.append((weights[..., None] * tokens).sum(1).to(tokens.dtype))
        elif pooling == "cls" or rows.mask is None:
            pooled.append(tokens[:, 0 if pooling == "cls" else -1])
        else:
            last = rows.mask.sum(-1) - 1
            pooled.append(tokens[torch.arange(count, device=last.device), last])
    in_order = rows.in_order(torch.cat(pooled))
    # a static row without valid tokens counts as one of them
    return in_order if rows.valid is None else in_order * rows.valid.any(-1, keepdim=True)


def check_pooling(config: BackboneConfig) -> None:
    """Raise a `ValueError` where the classifier would read a token that has seen nothing but itself."""
    if config.is_causal and config.classifier_pooling == "cls":
        raise ValueError(
            "classifier_pooling='cls' with is_causal=True reads a token that has seen nothing: choose last or mean"
        )


class ClassificationHead(nn.Module):
    """Dense layer and activation (with tanh BERT's pooler), dropout, and the classifier: (..., d) -> (..., labels)."""

    def __init__(self, config: BackboneConfig, num_labels: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.classifier_act]
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.out_proj = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(hidden_states)))))


class MaskedLMHead(nn.Module):
    """Dense layer, activation and norm, as in BERT: (..., d) -> (..., d), what the decoder reads."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.activation(self.dense(hidden_states)))


def token_labels(labels: torch.Tensor | None, rows: Rows) -> torch.Tensor | None:
    """(B, L) labels -> those of the tokens; -100 at masked tokens, which static rows keep."""
    if labels is None:
        return None
    if tuple(labels.shape) != tuple(rows.shape):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, but must be {tuple(rows.shape)}, one for each token")
    return rows.gather(labels if rows.valid is None else labels.masked_fill(~rows.valid, -100))


def classifier_dropout(config: BackboneConfig) -> float:
    """Dropout probability before a classifier."""
    return config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout
