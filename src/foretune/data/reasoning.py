"""Reasoning before an answer: how data sets hold it, and how it reads as text.

An assistant's turn may have reasoned before it answered: under a key of its own (``reasoning_content`` as servers give
it, ``reasoning``, ``thinking``), or in front of the content between marks,

    <think>
    Two and two is four.
    </think>

    It is four.

Both are read alike. It is trained on, but is no part of the answer: answers are compared, shown and scored without it,
and what a model writes is cut behind it. A chat template that has a place for reasoning is handed it by its key and
writes it its own way (`foretune.data.layout`); most leave it out of answers to earlier questions. Everywhere else it is
text between the marks above, left out likewise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from foretune.data.example import Example, Turn

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn under which data sets hold reasoning."""
OPENING, BETWEEN = "<think>\n", "\n</think>\n\n"
"""What stands before reasoning written as text, and between it and the answer."""
TO_COME = "…"
"""Stands for the reasoning of an answer that is still to be written: what is fed then asks for reasoning."""
REASONING_LEFT_OUT = "the chat template writes reasoning in no place that can be found: it is left out"
_MARKED = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Reasoning:
    """How a chat template writes reasoning."""

    key: str
    """The key of a message that the template reads; empty: it is part of the content, between our marks"""
    variables: Mapping[str, object]
    """Template variables with which a turn that reasons is rendered"""
    opening: str
    """What stands between the inference prompt and the reasoning"""
    between: str
    """What stands between the reasoning and the answer"""

    def written(self, turn: Turn) -> str:
        """A turn's reasoning and content as the template writes them."""
        if not turn.reasoning or not self.key:
            return turn.content
        return f"{self.opening}{turn.reasoning}{self.between}{turn.content}"

    def note(self, usual: Mapping[str, object]) -> str:
        """What a reader of the report should know; ``usual`` are the variables of rows that do not reason."""
        if not self.key:
            return (
                "reasoning is trained as text between <think> and </think>; answers to earlier questions are written "
                "without it, and then not trained, and answers are compared without it"
            )
        said = "reasoning is trained as the chat template writes it; answers are compared without it"
        if dict(usual) == dict(self.variables):
            return said
        shown = ", ".join(f"{name}={value}" for name, value in self.variables.items()) or "its default variables"
        return f"{said}; rows that reason are rendered with {shown}: serve it likewise"

    def answer_in(self, text: str) -> str:
        """The part of a model's ``text`` behind its reasoning; nothing where the reasoning has no end."""
        mark, opening = self.between.strip(), self.opening.strip()
        if mark and mark in text:
            return text.split(mark, 1)[1]
        return "" if opening and text.lstrip().startswith(opening) else text


AS_TEXT = Reasoning("", {}, OPENING, BETWEEN)
"""Where a template has no place for reasoning, or there is no template."""


def apart(content: str) -> tuple[str, str]:
    """(reasoning, answer) of a content that begins with marked reasoning; ("", content) of any other."""
    found = _MARKED.fullmatch(content)
    if found is None or not found[1].strip() or not found[2].strip():
        return "", content
    return found[1].strip(), found[2]


def reasoned(turn: Turn) -> Turn:
    """An assistant's turn with marked reasoning taken out of its content; any other turn as it is."""
    if turn.role != "assistant" or turn.reasoning or turn.calls:
        return turn
    reasoning, content = apart(turn.content)
    return replace(turn, content=content, reasoning=reasoning) if reasoning else turn


def with_reasoning(turn: Turn) -> str:
    """The content of a turn with its reasoning before it as text."""
    return f"{OPENING}{turn.reasoning}{BETWEEN}{turn.content}" if turn.reasoning else turn.content


def reasoned_answer(example: Example) -> str:
    """All that a row's last target turn says, its reasoning before its answer; the label where there is no turn."""
    return with_reasoning(example.turns[example.targets[-1]]) if example.targets else example.answer


def any_reasoning(example: Example) -> bool:
    """Whether any turn of a row reasons."""
    return any(turn.reasoning for turn in example.turns)


def reasoning_as_text(example: Example) -> Example:
    """The row with reasoning as part of what the assistant says since the last question; other rows unchanged.

    Answers to earlier questions lose theirs, as in most chat templates and in what a chat sends back, and are then not
    trained on: they would answer at once what has to be thought about.
    """
    if not any_reasoning(example):
        return example
    end = example.targets[-1] if example.targets else len(example.turns)
    asked = max((n for n, turn in enumerate(example.turns[:end]) if turn.role == "user"), default=-1)
    turns = (
        replace(turn, content=with_reasoning(turn) if n > asked else turn.content, reasoning="")
        for n, turn in enumerate(example.turns)
    )
    targets = (n for n in example.targets if n > asked or not example.turns[n].reasoning)
    return replace(example, turns=tuple(turns), targets=tuple(targets))


def without_reasoning(example: Example) -> Example:
    """The row without the reasoning of its turns; other rows unchanged."""
    if not any_reasoning(example):
        return example
    return replace(example, turns=tuple(replace(turn, reasoning="") for turn in example.turns))
