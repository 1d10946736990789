"""Documents longer than the model: windows, spans and tags against what brute force finds."""

import itertools
import json

import numpy as np
import pytest
from datasets import Dataset

from synkhorn import byte_tokenizer, train_tokenizer
from synkhorn.scripts.tasks.question_answering import QuestionAnswering, QuestionAnsweringArguments, answer_tokens
from synkhorn.scripts.tasks.token_classification import TokenClassification, TokenClassificationArguments
from synkhorn.scripts.tasks.windows import best_spans, window_stride

WORDS = [f"{first}{second}" for first in "abcdefgh" for second in ["o", "um", "ära"]]
CONTEXT = " ".join(WORDS)
QUESTION = "where?"


def tokenizers():
    yield byte_tokenizer()
    yield train_tokenizer([CONTEXT] * 3 + [QUESTION] * 3, vocab_size=275, show_progress=False)


def squad(answers: list[str], question: str = QUESTION, context: str = CONTEXT) -> Dataset:
    return Dataset.from_list(
        [
            {
                "question": question,
                "context": context,
                "answers": {"text": [text] if text else [], "answer_start": [context.index(text)] if text else []},
            }
            for text in answers
        ]
    )


def question_answering(tokenizer, max_length=48, **arguments) -> QuestionAnswering:
    return QuestionAnswering(QuestionAnsweringArguments(**{"stride": 16} | arguments), tokenizer, max_length)


def logits_at(inputs: Dataset, positions: dict[int, tuple[int, int]], high: float = 9.0):
    """Logits of 0, but for a start and an end in some windows."""
    shape = len(inputs), max(inputs["length"])
    starts, ends = np.zeros(shape), np.zeros(shape)
    for window, (first, last) in positions.items():
        starts[window, first] = ends[window, last] = high
    return starts, ends


@pytest.mark.parametrize("seed", range(20))
def test_best_spans_are_those_of_brute_force(seed):
    generator = np.random.default_rng(seed)
    length, longest, count = (
        int(generator.integers(1, 14)),
        int(generator.integers(1, 20)),
        int(generator.integers(1, 9)),
    )
    starts, ends = generator.normal(size=(2, length))
    starts[generator.random(length) < 0.3] = -np.inf
    ends[generator.random(length) < 0.3] = -np.inf
    expected = sorted(
        (
            (starts[i] + ends[j], i, j)
            for i, j in itertools.product(range(length), repeat=2)
            if i <= j < i + longest and starts[i] + ends[j] > -np.inf
        ),
        key=lambda span: -span[0],
    )[:count]
    assert best_spans(starts, ends, longest, count) == expected


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["bytes", "bpe"])
def test_an_answer_anywhere_is_found_in_every_window_that_holds_it(tokenizer):
    # single words, and spans of three that cross the borders of windows
    answers = [" ".join(WORDS[i : i + size]) for size in (1, 3) for i in range(len(WORDS) - size + 1)]
    examples = squad(answers)
    task = question_answering(tokenizer, max_length=48 if len(tokenizer) == 260 else 36)
    inputs = task.prepare(examples, "test")
    windows_of = {
        index: [w for w, example in enumerate(inputs["example"]) if example == index] for index in range(len(answers))
    }
    assert all(len(windows) > 2 for windows in windows_of.values())
    crossing = 0
    for index, answer in enumerate(answers):
        start = CONTEXT.index(answer)
        held = {}
        for window in windows_of[index]:
            offsets = inputs["offsets"][window]
            inside = [span for span in offsets if span[0] >= 0]
            first, last = inputs["start_positions"][window], inputs["end_positions"][window]
            if inside[0][0] <= start and start + len(answer) <= inside[-1][1]:
                # brute force: the shortest run of tokens that covers the answer
                covers = [
                    (j - i, i, j)
                    for i, j in itertools.combinations_with_replacement(range(len(offsets)), 2)
                    if 0 <= offsets[i][0] <= start and start + len(answer) <= offsets[j][1]
                ]
                shortest = min(covers)[0]
                assert (last - first, first, last) in covers
                # a character of several bytes is several tokens: all of them, not the fewest
                assert last - first >= shortest
                assert CONTEXT[offsets[first][0] : offsets[last][1]].strip() == answer
                held[window] = first, last
            else:
                assert (first, last) == (0, 0)
                crossing += inside[0][0] < start + len(answer) and start < inside[-1][1]
        assert held, "the stride is as long as any answer"
        for window, positions in held.items():
            rows = task.predict(examples, inputs, logits_at(inputs, {window: positions}))
            assert rows[index]["prediction"] == answer
    assert crossing > 5


def test_the_best_window_wins_and_a_text_counts_once():
    task = question_answering(byte_tokenizer())
    examples = squad([WORDS[0]])
    inputs = task.prepare(examples, "test")
    word = CONTEXT.index(WORDS[2])
    places = {}
    for window, offsets in enumerate(inputs["offsets"]):
        if [word, word + 1] in offsets:
            places[window] = offsets.index([word, word + 1])
    window, position = next(iter(places.items()))
    starts, ends = logits_at(inputs, {window: (position, position + 1)}, high=5.0)
    other = len(inputs) - 1
    starts[other, 12] = ends[other, 12] = 7.0
    (row,) = task.predict(examples, inputs, (starts, ends))
    offsets = inputs["offsets"][other][12]
    assert row["prediction"] == CONTEXT[offsets[0] : offsets[1]]
    texts = [answer["text"] for answer in row["n_best"]]
    assert len(texts) == len(set(texts)) == 5


def test_no_answer_is_given_by_the_threshold():
    examples = squad(["", WORDS[4]])
    scores = {}
    for threshold in (-20.0, 0.0, 20.0):
        task = question_answering(byte_tokenizer(), no_answer=True, no_answer_threshold=threshold)
        inputs = task.prepare(examples, "test")
        assert all(
            (first, last) == (0, 0)
            for example, first, last in zip(
                inputs["example"], inputs["start_positions"], inputs["end_positions"], strict=True
            )
            if example == 0
        )
        # every window points at its first token, by 4; one of the second question at the answer, by 9
        starts, ends = logits_at(inputs, dict.fromkeys(range(len(inputs)), (0, 0)), high=4.0)
        window = next(w for w, first in enumerate(inputs["start_positions"]) if first and inputs["example"][w] == 1)
        starts[window, inputs["start_positions"][window]] = ends[window, inputs["end_positions"][window]] = 9.0
        rows = task.predict(examples, inputs, (starts, ends))
        scores[threshold] = [row["prediction"] for row in rows], task.measure(rows)
    assert scores[0.0] == (["", WORDS[4]], {"exact_match": 1.0, "f1": 1.0})
    assert scores[-20.0][0] == ["", ""] and scores[-20.0][1]["exact_match"] == 0.5
    assert scores[20.0][0][1] == WORDS[4] and scores[20.0][0][0] != ""
    strict = question_answering(byte_tokenizer())
    with pytest.raises(ValueError, match="row 0 has no answer: pass --no_answer"):
        strict.prepare(examples, "test")


def test_a_span_of_spaces_is_no_answer():
    task = question_answering(byte_tokenizer())
    row = task.row({"question": "Where?", "answers": {"text": ["Rome"]}}, "In  Rome", [(9.0, 2, 4), (1.0, 4, 8)], 0.0)
    assert row["prediction"] == "Rome"
    with pytest.raises(ValueError, match="max_answer_length=0 must be at least 1"):
        QuestionAnsweringArguments(max_answer_length=0)


def test_a_long_question_is_cut_and_said(capsys):
    task = question_answering(byte_tokenizer(), max_question_length=5)
    inputs = task.prepare(squad([WORDS[0]], question="where is it to be found?"), "test")
    assert byte_tokenizer().decode(inputs["input_ids"][0]).startswith("<s>where</s>")
    assert "test: 1 of 1 (100%) questions have more tokens than --max_question_length" in capsys.readouterr().out
    assert all(length <= 48 for length in inputs["length"])


def test_answers_at_the_edges_of_a_window():
    offsets = [(-1, -1), (-1, -1), (4, 6), (6, 9), (9, 12), (-1, -1)]
    assert answer_tokens(offsets, (4, 6)) == (2, 2)
    assert answer_tokens(offsets, (9, 12)) == (4, 4)
    assert answer_tokens(offsets, (5, 10)) == (2, 4)
    assert answer_tokens(offsets, (3, 6)) == (0, 0)
    assert answer_tokens(offsets, (9, 13)) == (0, 0)
    assert answer_tokens(offsets, None) == (0, 0)
    assert answer_tokens([(-1, -1)], (0, 1)) == (0, 0)


def test_a_stride_that_does_not_come_forward_is_an_error():
    assert window_stride(None, 40, 8) == 8 and window_stride(31, 40, 8) == 31 and window_stride(0, 40, 8) == 0
    for stride, taken in ((32, 8), (-1, 8), (None, 40)):
        with pytest.raises(ValueError, match=f"stride={stride} must be 0 to"):
            window_stride(stride, 40, taken)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["bytes", "bpe"])
def test_every_word_is_tagged_once_at_its_first_token(tokenizer):
    labels = ["O", "B-X", "I-X"]
    documents = [WORDS, ["New York", "über", "x"], WORDS[:1]]
    tags = [[labels[i % 3] for i in range(len(words))] for words in documents]
    examples = Dataset.from_dict({"tokens": documents, "ner_tags": tags})
    task = TokenClassification(TokenClassificationArguments(stride=6), tokenizer, 24, labels)
    inputs = task.prepare(examples, "test")
    assert sum(example == 0 for example in inputs["example"]) > 2
    seen = [[], [], []]
    for example, ids, words, row in zip(
        inputs["example"], inputs["input_ids"], inputs["tagged"], inputs["labels"], strict=True
    ):
        assert len(ids) <= 24
        for token, word, label in zip(ids, words, row, strict=True):
            assert (label == -100) == (word == -1)
            if word >= 0:
                seen[example].append(word)
                assert label == labels.index(tags[example][word])
                # its token begins the word, with or without the space before it
                piece = tokenizer.decode([token]).strip().rstrip("\ufffd")
                assert documents[example][word].startswith(piece)
    assert seen == [list(range(len(words))) for words in documents]
    # what the model says at those tokens is what is predicted, whatever it says elsewhere
    outputs = np.full((len(inputs), 24), 2)
    for window, row in enumerate(inputs["labels"]):
        outputs[window, : len(row)] = [2 if label == -100 else label for label in row]
    rows = task.predict(examples, inputs, outputs)
    assert [row["prediction"] for row in rows] == tags
    assert task.measure(rows)["f1"] == 1.0
    assert json.loads(json.dumps(rows)) == rows


def test_a_word_of_no_tokens_is_outside():
    labels = ["B-X", "O"]
    examples = Dataset.from_dict({"tokens": [["a", "", "b"]], "ner_tags": [["B-X", "B-X", "B-X"]]})
    task = TokenClassification(TokenClassificationArguments(), byte_tokenizer(), 24, labels)
    inputs = task.prepare(examples, "test")
    (row,) = task.predict(examples, inputs, np.zeros((1, 24), dtype=int))
    assert row["prediction"] == ["B-X", "O", "B-X"]
