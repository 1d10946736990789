"""
ListOps as Long Range Arena draws it (Tay et al., arXiv 2011.04006): nested lists of digits under MIN, MAX, MED and SM
(sum modulo 10), whose value is one of ten classes. Nothing to install: it is drawn.
"""

from statistics import median

import torch

OPERATORS = {
    "[MAX": max,
    "[MED": lambda values: int(median(values)),
    "[MIN": min,
    "[SM": lambda values: sum(values) % 10,
}
# 0 to 9 are the digits; 15 begins each sequence
TOKENS = [*map(str, range(10)), *OPERATORS, "]", "<s>"]
# of a place in a list above the deepest
LIST_PROBABILITY = 0.25


def nested_list(
    min_length: int, max_length: int, max_depth: int, max_arguments: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One sequence of more than `min_length` and fewer than `max_length` tokens, `<s>` not counted, and its value:

        <s> [MAX 4 [MIN 2 3 ] 0 ]  ->  4

    Returns:
        Ids, (length,), and the class, a number.
    """
    while True:
        tokens: list[str] = []
        value = draw_into(tokens, 1, max_depth, max_arguments, generator)
        if min_length < len(tokens) < max_length:
            return torch.tensor([TOKENS.index(token) for token in ["<s>", *tokens]]), torch.tensor(value)


def draw_into(tokens: list[str], depth: int, max_depth: int, max_arguments: int, generator: torch.Generator) -> int:
    """Draw a digit or a list, add its tokens, and return its value."""
    if depth >= max_depth or torch.rand((), generator=generator) > LIST_PROBABILITY:
        digit = drawn(10, generator)
        tokens.append(str(digit))
        return digit
    operator = list(OPERATORS)[drawn(len(OPERATORS), generator)]
    tokens.append(operator)
    count = 2 + drawn(max_arguments - 1, generator)
    values = [draw_into(tokens, depth + 1, max_depth, max_arguments, generator) for _ in range(count)]
    tokens.append("]")
    return OPERATORS[operator](values)


def drawn(count: int, generator: torch.Generator) -> int:
    """A whole number below `count`."""
    return int(torch.randint(count, (), generator=generator))
