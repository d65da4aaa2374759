"""What a row says about itself: its place, its label as a number or as an answer, whether it is plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foretune.data.example import Example, Task, Turn
from foretune.errors import DataError, Place

LABELLED: tuple[Task, ...] = ("classification", "regression")
"""Tasks whose rows carry a label."""
_WRITTEN_OUT = 1e15
"""Whole numbers below it are written without an exponent."""


def where(example: Example, index: int) -> Place:
    """The place of a row in its file, or its number."""
    return example.place or Place(f"row {index + 1}")


def label_text(label: str | float | None) -> str:
    """How a label is written as an answer: a class by its name, a number in full, without an exponent where it has few
    digits; one that a table keeps in single precision by the digits that it has there."""
    if label is None or isinstance(label, str):
        return label or ""
    if float(label).is_integer() and abs(label) < _WRITTEN_OUT:
        return str(int(label))
    with np.errstate(over="ignore"):
        single = np.float32(label)
    return str(single) if float(single) == label else repr(label)


def label_number(example: Example, index: int, task: str, labels: Sequence[str]) -> float | int | None:
    """The class number or the value that ``example`` is trained towards; None for other tasks. Raises `DataError`."""
    if task not in LABELLED:
        return None
    if task == "regression":
        if isinstance(example.label, bool) or not isinstance(example.label, int | float):
            raise DataError(f"{example.label!r} is not a number to regress on.", place=where(example, index))
        if not math.isfinite(example.label):
            raise DataError(f"the label {example.label} is not finite.", place=where(example, index))
        return float(example.label)
    name = None if example.label is None else label_text(example.label)
    if name is None or name not in labels:
        known = ", ".join(labels[:8])
        raise DataError(
            "the row has no label." if name is None else f"the label {name!r} is not among the classes ({known}).",
            place=where(example, index),
            remedy="Label the row, or leave it out.",
        )
    return list(labels).index(name)


def as_conversation(example: Example) -> Example:
    """A labelled row as a conversation whose trained answer is the label's name; other rows unchanged."""
    if example.targets or example.label is None:
        return example
    turns = asked(example.turns)
    return replace(example, turns=(*turns, Turn("assistant", label_text(example.label))), targets=(len(turns),))


def asked(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns as a question to a language model: plain text is asked by the user, a pair of texts in one turn."""
    made: list[Turn] = []
    for turn in turns:
        role = "user" if turn.role == "text" else turn.role
        if made and made[-1].role == role == "user":
            made[-1] = Turn("user", f"{made[-1].content}\n\n{turn.content}")
        else:
            made.append(Turn(role, turn.content))
    return tuple(made)


def is_text(example: Example) -> bool:
    """Whether the row is plain text, trained on whole."""
    return example.label is None and bool(example.turns) and example.turns[0].role == "text"
