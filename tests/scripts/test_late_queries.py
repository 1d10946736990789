"""The benchmark of late queries asks for what it says."""

import importlib.util
import random

import numpy as np
import pytest
from processes import ROOT

from synkhorn import byte_tokenizer

pytest.importorskip("sentence_transformers")
spec = importlib.util.spec_from_file_location("late_queries", ROOT / "benchmarks/embeddings/late_queries.py")
late_queries = importlib.util.module_from_spec(spec)
spec.loader.exec_module(late_queries)


def test_a_query_is_a_sentence_from_its_part_of_the_document():
    tokenizer = byte_tokenizer(10_000)
    text = " ".join(f"Sentence number {number} has these eight plain words here." for number in range(40))
    drawn = late_queries.queries(text, tokenizer, random.Random(0))
    assert list(drawn) == [(0, 512), (512, 1024), (1024, 2048)]
    for (first, stop), query in drawn.items():
        assert first <= text.index(query) < stop and query.endswith("here.")
    assert late_queries.queries("Too short.", tokenizer, random.Random(0)) == {}
    assert "".join(late_queries.windows(text, tokenizer)) == text
    assert max(len(piece) for piece in late_queries.windows(text, tokenizer)) == late_queries.WINDOW


def test_ranks_count_ties_against_the_model_and_what_was_found_is_kept(tmp_path):
    similarities = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert late_queries.reciprocal_ranks(similarities, np.array([0, 1, 2])).tolist() == [1, 1 / 2, 1 / 3]
    texts = ["a red house", "a blue car"], ["blue", "house"]
    words, seconds = late_queries.kept(tmp_path / "runs/words.npz", late_queries.word_counts, *texts)
    assert words["TF-IDF"].argmax(-1).tolist() == [1, 0] and seconds > 0
    again, same = late_queries.kept(tmp_path / "runs/words.npz", None)
    assert (again["TF-IDF"] == words["TF-IDF"]).all() and same == seconds
