"""Metrics of the tasks, computed here: none is downloaded."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics import BLEU, CHRF
from seqeval import metrics as seqeval
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.preprocessing import MultiLabelBinarizer
from torch.nn.functional import cross_entropy

Scores = dict[str, float]
IGNORED = -100
ROUGE = ("rouge1", "rouge2", "rougeL")


def classification_scores(predictions: Sequence, references: Sequence) -> Scores:
    """`accuracy`, and `macro_f1`: the mean of the F1 of every class that occurs."""
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
    }


def multi_label_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """
    `micro_f1`, of all decisions whether a text has a class; `macro_f1`, the mean of the F1 of every class that occurs;
    and `accuracy`, the share of texts whose classes are all right. Where no class occurs at all, both F1 are 1.
    """
    binarizer = MultiLabelBinarizer().fit([*predictions, *references])
    right, said = binarizer.transform(references), binarizer.transform(predictions)
    has_classes = len(binarizer.classes_) > 0
    return {
        f"{average}_f1": float(f1_score(right, said, average=average, zero_division=0.0)) if has_classes else 1.0
        for average in ("micro", "macro")
    } | {"accuracy": float(np.mean((right == said).all(axis=1)))}


def regression_scores(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """
    `r2`, the share of the variance that is explained (at most 1; 0 for the mean of the references), and the mean
    absolute and the root mean squared error.
    """
    return {
        "r2": float(r2_score(references, predictions)),
        "mean_absolute_error": float(mean_absolute_error(references, predictions)),
        "root_mean_squared_error": float(root_mean_squared_error(references, predictions)),
    }


def entity_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """
    `precision`, `recall` and `f1` of whole entities as seqeval counts them, and the `accuracy` of the tags.

    An entity counts where its type, its first and its last word are right. Tags without a prefix such as `B-` or `I-`,
    as those of parts of speech, mark no entities: then `f1` is the mean of the F1 of every tag.
    """
    tags = {tag for sentence in references for tag in sentence}
    if not has_entities(tags):
        flat = [[tag for sentence in side for tag in sentence] for side in (predictions, references)]
        scores = classification_scores(*flat)
        return {"f1": scores["macro_f1"], "accuracy": scores["accuracy"]}
    return {
        "precision": float(seqeval.precision_score(references, predictions, zero_division=0)),
        "recall": float(seqeval.recall_score(references, predictions, zero_division=0)),
        "f1": float(seqeval.f1_score(references, predictions, zero_division=0)),
        "accuracy": float(seqeval.accuracy_score(references, predictions)),
    }


def has_entities(tags: set[str]) -> bool:
    """Whether tags mark entities: each is `O` or has the prefix of a place in an entity."""
    return all(re.fullmatch(r"O|[BIESLU]-.+", tag) for tag in tags)


def generation_scores(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """
    `chrf` and `bleu` of sacrebleu, and `rouge1`, `rouge2` and `rougeL` of rouge_score, the mean of the texts, all of
    them 0 to 100; `exact_match`, the share of texts that are the right ones. Where most of the right texts are Chinese,
    they are split into words as sacrebleu splits Chinese.
    """
    is_chinese = 2 * sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in references) > len(references)
    bleu = BLEU(tokenize="zh" if is_chinese else "13a")
    rouge = [rouge_scores(*pair, is_chinese) for pair in zip(predictions, references, strict=True)]
    return {
        "chrf": CHRF().corpus_score(predictions, [references]).score,
        "bleu": bleu.corpus_score(predictions, [references]).score,
        **{name: 100 * float(np.mean([scores[name] for scores in rouge])) for name in ROUGE},
        "exact_match": float(np.mean([said == right for said, right in zip(predictions, references, strict=True)])),
    }


@cache
def rouge_scores(prediction: str, reference: str, is_chinese: bool) -> Scores:
    """The F1 of each of `ROUGE`."""
    # it imports NLTK, two seconds that only generated texts need
    from rouge_score.rouge_scorer import RougeScorer

    words = BLEU(tokenize="zh").tokenizer if is_chinese else None
    tokenizer = words and SimpleNamespace(tokenize=lambda text: words(text.lower()).split())
    return {
        name: x.fmeasure for name, x in RougeScorer(ROUGE, tokenizer=tokenizer).score(reference, prediction).items()
    }


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces: SQuAD's definition of the same answer."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(prediction: str, reference: str) -> float:
    """F1 of the words of two answers (Rajpurkar et al., arXiv 1606.05250); no answer is right only for no answer."""
    words, right = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(words) & Counter(right)).values())
    if not words or not right:
        return float(words == right)
    return 2 * common / (len(words) + len(right))


def span_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """
    `exact_match` and `f1` of answers, each against the best of its right answers.

    Args:
        predictions: answers; the empty text for no answer.
        references: the right answers of each question; none where it has no answer (SQuAD 2.0).
    """
    # a right answer of articles or punctuation only counts only where there is no other, as in SQuAD 2.0
    right = [[answer for answer in answers if normalize_answer(answer)] or [""] for answers in references]
    pairs = list(zip(predictions, right, strict=True))
    exact = [
        max(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)
        for prediction, answers in pairs
    ]
    overlap = [max(answer_f1(prediction, answer) for answer in answers) for prediction, answers in pairs]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def nats_and_counts(
    logits: torch.Tensor, labels: torch.Tensor, is_causal: bool, special_ids: tuple[int, ...]
) -> torch.Tensor:
    """
    Logits (B, L, V) and labels (B, L) -> (B, 3), of each row: the sum of -ln p over its predicted tokens, how many
    these are, and how many of them are not special.
    """
    if is_causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    nats = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    predicted = labels != IGNORED
    ordinary = predicted & ~torch.isin(labels, labels.new_tensor(special_ids))
    return torch.stack((nats.view_as(labels).sum(-1), predicted.sum(-1), ordinary.sum(-1)), dim=-1)


def confidence_intervals(
    measure: Callable[[list[Any]], Mapping[str, float]], rows: Sequence[Any], resamples: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """
    Percentile bootstrap: `measure` of rows drawn with replacement, `resamples` times.

    Args:
        measure: metrics of a list of rows.
        rows: one a document.
        resamples: how often to draw; 0 for no interval.
        level: share of the drawn metrics that the interval holds, such as 0.95.
        seed: of the draws.

    Returns:
        Name of a metric -> lower and upper end.
    """
    generator = np.random.default_rng(seed)
    draws = [
        measure([rows[index] for index in generator.integers(len(rows), size=len(rows))]) for _ in range(resamples)
    ]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.quantile([draw[name] for draw in draws], tails).tolist()) for name in (draws or [{}])[0]}
