"""Metrics against values computed by hand."""

import math

import numpy as np
import pytest
import sacrebleu

from synkhorn.scripts.measuring.metrics import (
    answer_f1,
    classification_scores,
    confidence_intervals,
    entity_scores,
    generation_scores,
    multi_label_scores,
    normalize_answer,
    regression_scores,
    span_scores,
)

GENERATED = ("chrf", "bleu", "rouge1", "rouge2", "rougeL")


def test_accuracy_and_macro_f1():
    # class a: precision 2/3, recall 2/2; class b: 1/1, 1/2; class c: never right
    scores = classification_scores(list("aaabc"), list("aabbd"))
    assert scores["accuracy"] == pytest.approx(3 / 5)
    # c is only said and d only right: both have an F1 of 0
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0 + 0) / 4)


def test_several_classes():
    # a: said twice, right once of once; b: never said; c: never right
    said, right = [["a"], ["a"], ["c"], []], [["a", "b"], [], [], []]
    scores = multi_label_scores(said, right)
    assert scores == pytest.approx({"micro_f1": 2 / (3 + 2), "macro_f1": (2 / 3 + 0 + 0) / 3, "accuracy": 1 / 4})
    assert multi_label_scores([[], []], [[], []]) == {"micro_f1": 1.0, "macro_f1": 1.0, "accuracy": 1.0}


def test_numbers():
    # errors 1, -1, 2; squares 6; around their mean 3 the references vary by 4 + 0 + 4
    scores = regression_scores([2.0, 2.0, 7.0], [1.0, 3.0, 5.0])
    assert scores == pytest.approx(
        {"r2": 1 - 6 / 8, "mean_absolute_error": 4 / 3, "root_mean_squared_error": math.sqrt(2)}
    )


def test_entities_count_whole():
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"]]
    # a name cut short, a place found, one of two neighbours, and one too many
    said = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC", "I-LOC"]]
    scores = entity_scores(said, right)
    # said: (PER 0-0), (LOC 3-3), (PER 0-0), (LOC 1-2); right: (PER 0-1), (LOC 3-3), (LOC 1-1), (LOC 2-2)
    assert scores["precision"] == pytest.approx(1 / 4)
    assert scores["recall"] == pytest.approx(1 / 4)
    assert scores["f1"] == pytest.approx(1 / 4)
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert entity_scores(right, right) == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0}
    assert entity_scores([["O"] * 4, ["O"] * 3], right)["f1"] == 0.0


def test_tags_that_mark_no_entities_are_classes():
    scores = entity_scores([["NOUN", "VERB"], ["NOUN"]], [["NOUN", "NOUN"], ["NOUN"]])
    # NOUN: precision 1, recall 2/3; VERB: never right
    assert scores == pytest.approx({"accuracy": 2 / 3, "f1": 0.4})


def test_answers_are_compared_as_squad_does():
    assert normalize_answer("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    assert answer_f1("in the old town", "Old Town Square") == pytest.approx(2 * 2 / (3 + 3))
    assert answer_f1("", "") == 1.0 and answer_f1("", "Paris") == 0.0 and answer_f1("Paris", "") == 0.0
    # a word counts as often as it stands in both
    assert answer_f1("no no no", "no no") == pytest.approx(2 * 2 / 5)
    predictions = ["the Seine", "1889", "", "Rome"]
    references = [["Seine", "river Seine"], ["in 1889", "year 1889"], [], []]
    scores = span_scores(predictions, references)
    assert scores["exact_match"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    # an answer of nothing but an article counts only where there is no other
    assert span_scores([""], [["the"]])["exact_match"] == 1.0
    assert span_scores([""], [["the", "Rome"]])["exact_match"] == 0.0


def test_intervals_are_those_of_the_binomial():
    rows = [1] * 320 + [0] * 80

    def measure(rows):
        return {"share": float(np.mean(rows)), "ones": float(sum(rows))}

    intervals = confidence_intervals(measure, rows, resamples=2000, level=0.95, seed=0)
    error = math.sqrt(0.8 * 0.2 / 400)
    low, high = intervals["share"]
    assert (low, high) == pytest.approx((0.8 - 1.96 * error, 0.8 + 1.96 * error), abs=0.004)
    assert intervals["ones"] == pytest.approx((400 * low, 400 * high))
    narrow = confidence_intervals(measure, rows, resamples=2000, level=0.5, seed=0)["share"]
    assert narrow == pytest.approx((0.8 - 0.6745 * error, 0.8 + 0.6745 * error), abs=0.004)
    assert confidence_intervals(measure, rows, 50, 0.95, seed=1) == confidence_intervals(
        measure, rows, 50, 0.95, seed=1
    )
    assert confidence_intervals(measure, rows, 0, 0.95, seed=0) == {}


def test_written_texts_are_compared_as_sacrebleu_does_in_english_and_chinese():
    right = ["the cat sat on the mat", "open the file"]
    assert generation_scores(right, right) == pytest.approx(dict.fromkeys(GENERATED, 100.0) | {"exact_match": 1.0})
    said = ["the cat sat on a mat", "open file"]
    scores = generation_scores(said, right)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score)
    # five of six words, both ways; two of two said, of three
    assert scores["rouge1"] == pytest.approx(50 * (5 / 6 + 4 / 5)) and scores["exact_match"] == 0
    # each Chinese character is a word
    scores = generation_scores(["打开文件"], ["打开的文件"])
    assert scores["rouge1"] == pytest.approx(100 * 8 / 9)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(["打开文件"], [["打开的文件"]], tokenize="zh").score)
