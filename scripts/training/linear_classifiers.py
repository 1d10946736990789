"""Linear classifiers of texts: of their words' TF-IDF, and of what a model that is not trained makes of its tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from transformers import PreTrainedModel

from ..common.comparison_spec import ENTRANT_FIELDS


def is_linear(entrant: dict[str, Any]) -> bool:
    """Whether a linear classifier is all that is trained of an entrant: its rates are then the classifier's C."""
    return "baseline" in entrant or entrant.get("frozen", False)


def of_words(entrant: dict[str, Any], rate: float) -> Pipeline:
    """TF-IDF with the options of an entrant, and a linear SVM."""
    options = {field: value for field, value in entrant.items() if field not in (*ENTRANT_FIELDS, "words")}
    if "ngram_range" in options:
        options["ngram_range"] = tuple(options["ngram_range"])
    return make_pipeline(TfidfVectorizer(**{"sublinear_tf": True} | options), LinearSVC(C=rate))


def of_states(rate: float) -> Pipeline:
    """A logistic regression of `mean_states`."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=rate, max_iter=2000))


@torch.no_grad()
def mean_states(
    model: PreTrainedModel, tokenizer: Any, texts: list[str], max_length: int, batch_size: int
) -> Iterator[np.ndarray]:
    """The mean of a text's tokens in the embeddings and in each layer, side by side: ((layers + 1) d,) for each."""
    base: Any = model.base_model.eval()
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        rows = tokenizer(some, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        rows = rows.to(model.device)
        layers = torch.stack(base(**rows, output_hidden_states=True).hidden_states, dim=1)  # (B, layers + 1, L, d)
        valid = rows["attention_mask"][:, None, :, None]
        yield from ((layers * valid).sum(2) / valid.sum(2)).flatten(1).float().cpu().numpy()
