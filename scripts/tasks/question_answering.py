"""The span of a document that answers a question, as in SQuAD."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering

from ..measuring.metrics import Scores, span_scores
from .task import FinetuneTask, Row, auto_use
from .windows import best_spans, window_stride


@dataclass
class QuestionAnsweringArguments:
    """The columns of the data, by default those of SQuAD, and how answers are found."""

    _argument_group_name = "question answering"

    question_column: str = field(default="question", metadata={"help": "Column of the question."})
    context_column: str = field(default="context", metadata={"help": "Column of the document."})
    answers_column: str = field(
        default="answers",
        metadata={"help": "Column of the right answers: {'text': [...], 'answer_start': [characters]}, as in SQuAD."},
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the windows over a document longer than the model share; a quarter of a window if not "
            "given. An answer longer than this may fall between two windows."
        },
    )
    max_question_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a question that are read; a quarter of what the model takes if not given."},
    )
    max_answer_length: int = field(
        default=30, metadata={"help": "Tokens that an answer may have. Take more for a tokenizer of bytes."}
    )
    n_best: int = field(default=5, metadata={"help": "Answers for each question in the file of predictions."})
    no_answer: bool = field(default=False, metadata={"help": "Questions may have no answer, as in SQuAD 2.0."})
    no_answer_threshold: float = field(
        default=0.0,
        metadata={"help": "No answer is given where its score is higher than the best answer's by more than this."},
    )

    def __post_init__(self):
        for name in ("max_question_length", "max_answer_length", "n_best"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


class QuestionAnswering(FinetuneTask):
    """
    The span of a document that answers a question. A document longer than the model is read in windows that overlap,
    each with the question. A window without the answer, or without the whole of it, is trained to point at its first
    token, which is also how the model says that there is no answer.
    """

    arguments_class = QuestionAnsweringArguments
    auto_class = AutoModelForQuestionAnswering
    pipeline_tag = "question-answering"
    best_metric = "f1"
    cuts_documents = False
    cut_notice = "questions have more tokens than --max_question_length; the rest of each is cut off"

    @classmethod
    def columns(cls, arguments: QuestionAnsweringArguments) -> list[str]:
        return [arguments.question_column, arguments.context_column, arguments.answers_column]

    @classmethod
    def texts(cls, arguments: QuestionAnsweringArguments, examples: Dataset) -> Iterator[str]:
        return chain(examples[arguments.context_column], examples[arguments.question_column])

    def prepare(self, examples: Dataset, split: str, num_proc: int | None = None) -> Dataset:
        feature = examples.features[self.arguments.answers_column]
        if not isinstance(feature, dict) or not feature.keys() >= {"text", "answer_start"}:
            raise ValueError(
                f"column {self.arguments.answers_column!r} must hold {{'text': [...], 'answer_start': [...]}} in every "
                f"row, as in SQuAD; it holds {feature}"
            )
        return super().prepare(examples, split, num_proc)

    def encode(self, batch, indices):
        limit = self.arguments.max_question_length or self.max_length // 4
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        stride = window_stride(self.arguments.stride, self.max_length, special + limit)
        questions, cut = self.cut_questions(batch[self.arguments.question_column], limit)
        encoded = self.tokenizer(
            questions,
            batch[self.arguments.context_column],
            truncation="only_second",
            max_length=self.max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        samples, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        answers = [
            self.answer_span(indices[row], answer, context)
            for row, (answer, context) in enumerate(
                zip(batch[self.arguments.answers_column], batch[self.arguments.context_column], strict=True)
            )
        ]
        # the offsets of the document's own tokens; (-1, -1) at any other
        spans = [
            [
                tuple(span) if part == 1 else (-1, -1)
                for span, part in zip(row, encoded.sequence_ids(window), strict=True)
            ]
            for window, row in enumerate(offsets)
        ]
        positions = [answer_tokens(row, answers[sample]) for row, sample in zip(spans, samples, strict=True)]
        return {
            **encoded,
            "start_positions": [start for start, _ in positions],
            "end_positions": [end for _, end in positions],
            "offsets": spans,
            "length": [len(row) for row in spans],
            "example": [indices[sample] for sample in samples],
            "cut": [cut[sample] for sample in samples],
        }

    def cut_questions(self, questions: Sequence[str], limit: int) -> tuple[list[str], list[bool]]:
        """The questions, none with more than `limit` tokens, and whether each was cut."""
        encoded = self.tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        kept = [
            question if length <= limit else question[: offsets[limit - 1][1]]
            for question, length, offsets in zip(questions, lengths, encoded["offset_mapping"], strict=True)
        ]
        return kept, [length > limit for length in lengths]

    def answer_span(self, index: int, answers: dict[str, list], context: str) -> tuple[int, int] | None:
        """
        The characters (first, behind the last) of the first right answer, or `None` where there is none.

        Raises:
            ValueError: if there is none but must be, or it does not stand there in the document.
        """
        if not answers["text"]:
            if self.arguments.no_answer:
                return None
            raise ValueError(f"row {index} has no answer: pass --no_answer if questions may have none, as in SQuAD 2.0")
        text, start = answers["text"][0], answers["answer_start"][0]
        found = context[start : start + len(text)] if start >= 0 else ""
        if not text or found != text:
            raise ValueError(
                f"row {index} has the answer {text!r} at character {start} of the document, but {found!r} stands there"
            )
        return start, start + len(text)

    def use(self, model_name: str) -> str:
        return auto_use(
            self.auto_class,
            model_name,
            'inputs = tokenizer("A question?", "A document.", return_tensors="pt")\n'
            "outputs = model(**inputs)\n"
            "first, last = outputs.start_logits.argmax(), outputs.end_logits.argmax()\n"
            "print(tokenizer.decode(inputs.input_ids[0, first : last + 1]))",
        )

    def predict(self, examples: Dataset, inputs: Dataset, outputs: Any) -> list[Row]:
        windows = defaultdict(list)
        for window, example in enumerate(inputs["example"]):
            windows[example].append(window)
        starts, ends = (np.asarray(logits, dtype=np.float64) for logits in outputs)
        offsets = inputs["offsets"]
        rows = []
        for index, example in enumerate(examples):
            context = example[self.arguments.context_column]
            candidates, null_score = [], np.inf
            for window in windows[index]:
                spans = offsets[window]
                outside = np.array([start < 0 for start, _ in spans])
                start, end = (np.where(outside, -np.inf, side[window, : len(spans)]) for side in (starts, ends))
                null_score = min(null_score, float(starts[window, 0] + ends[window, 0]))
                best = best_spans(start, end, self.arguments.max_answer_length, self.arguments.n_best)
                candidates += [(score, spans[first][0], spans[last][1]) for score, first, last in best]
            rows.append(self.row(example, context, candidates, null_score))
        return rows

    def row(self, example: Row, context: str, candidates: list[tuple[float, int, int]], null_score: float) -> Row:
        """The prediction for one question from the spans of all its windows."""
        scores: dict[str, float] = {}
        # windows overlap: a text counts with its best score
        for score, start, end in sorted(candidates, key=lambda span: (-span[0], *span[1:])):
            text = context[start:end].strip()
            if text:
                scores.setdefault(text, score)
        best = dict(list(scores.items())[: self.arguments.n_best])
        if self.arguments.no_answer or not best:
            is_answered = max(best.values(), default=-np.inf) + self.arguments.no_answer_threshold >= null_score
            best[""] = null_score
        else:
            is_answered = True
        weights = np.exp(np.array(list(best.values())) - max(best.values()))
        n_best = [
            {"text": text, "probability": float(weight / weights.sum())}
            for text, weight in zip(best, weights, strict=True)
        ]
        return {
            "question": example[self.arguments.question_column],
            "prediction": next(iter(best)) if is_answered else "",
            "answers": list(example[self.arguments.answers_column]["text"]),
            "n_best": sorted(n_best, key=lambda answer: -answer["probability"]),
        }

    def measure(self, rows: Sequence[Row]) -> Scores:
        return span_scores([row["prediction"] for row in rows], [row["answers"] for row in rows])


def answer_tokens(offsets: Sequence[tuple[int, int]], answer: tuple[int, int] | None) -> tuple[int, int]:
    """
    The first and the last token of an answer in a window, or (0, 0) where the window does not hold all of it.

    Args:
        offsets: characters (first, behind the last) of each token of the document; (-1, -1) at other tokens.
        answer: characters of the answer, or `None`.
    """
    inside = [position for position, (start, _) in enumerate(offsets) if start >= 0]
    if answer is None or not inside:
        return 0, 0
    first_character, behind_last = answer
    if offsets[inside[0]][0] > first_character or offsets[inside[-1]][1] < behind_last:
        return 0, 0
    covering = [
        position for position in inside if offsets[position][0] < behind_last and offsets[position][1] > first_character
    ]
    return covering[0], covering[-1]
