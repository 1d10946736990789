"""Windows over documents longer than the model, and the best spans in them."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def window_stride(stride: int | None, max_length: int, taken: int) -> int:
    """
    Tokens that two neighbouring windows share: `stride`, or a quarter of what a window holds of a document.

    Args:
        stride: as asked for.
        max_length: tokens that the model takes.
        taken: tokens of each window that are not the document's: special ones, and a question.

    Raises:
        ValueError: if windows that share so many tokens would not come forward.
    """
    room = max_length - taken
    if room < 1 or (stride is not None and not 0 <= stride < room):
        raise ValueError(
            f"stride={stride} must be 0 to {room - 1}: of the {max_length} tokens that the model takes, {taken} are "
            "not the document's"
        )
    return room // 4 if stride is None else stride


def best_spans(
    start_logits: np.ndarray, end_logits: np.ndarray, max_answer_length: int, count: int
) -> list[tuple[float, int, int]]:
    """
    The best spans by the sum of two logits, exactly.

    Args:
        start_logits, end_logits: (length,), -inf where no span may begin or end.
        max_answer_length: tokens that a span may have.
        count: how many spans, at most.

    Returns:
        (score, first token, last token), the best first, none of them with a score of -inf.
    """
    ends = np.pad(end_logits, (0, max_answer_length - 1), constant_values=-np.inf)
    scores = start_logits[:, None] + sliding_window_view(ends, max_answer_length)  # span of tokens i to i + j
    count = min(count, scores.size)
    best = np.argpartition(-scores, count - 1, axis=None)[:count]
    spans = [
        (float(scores[i, j]), int(i), int(i + j)) for i, j in zip(*np.unravel_index(best, scores.shape), strict=True)
    ]
    return sorted((span for span in spans if span[0] > -np.inf), key=lambda span: (-span[0], *span[1:]))
