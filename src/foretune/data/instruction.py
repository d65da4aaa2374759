"""What stands before every question or text: a user's own words, or what a translator is told.

Rows are changed once, where a task is prepared, so that training, scoring and answering see the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from foretune.data.example import Example, Turn

GAP = "\n\n"
"""Between an instruction and what it is about"""


def before_texts(instruction: str | None, prefix: str, *, replaces: bool) -> str:
    """What is written before every text: the user's ``instruction``, and the ``prefix`` that translates.

    ``replaces`` says that an instruction of one's own stands instead of the prefix (a decoder reads either).
    An instruction that ends in white space is written as it is, else an empty line follows it.
    """
    if not instruction:
        return prefix
    own = instruction if instruction[-1].isspace() else instruction + GAP
    return own if replaces else own + prefix


def instructed(examples: Iterable[Example], prefix: str) -> tuple[Example, ...]:
    """The examples with ``prefix`` before the first user turn; plain text has none and stays as it is."""
    return tuple(_instructed(example, prefix) for example in examples) if prefix else tuple(examples)


def _instructed(example: Example, prefix: str) -> Example:
    turns = list(example.turns)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return example
    turns[first] = Turn("user", prefix + turns[first].content)
    return replace(example, turns=tuple(turns))
