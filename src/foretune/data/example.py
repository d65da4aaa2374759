"""The one internal form of a row of data, whatever file format it came from.

An example is a conversation whose last turn is usually the answer; ``targets`` names the turns that are trained
on. Classification and regression rows hold one user turn, or two where the label is about a pair of texts, and a
``label``; translation rows are a user turn and an assistant turn. Plain text is a single turn with role ``text`` that
is trained on whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foretune.errors import Place
from foretune.files import fingerprint

Role = Literal["system", "user", "assistant", "tool", "text"]
Task = Literal["generation", "classification", "regression", "language-modelling"]
TASKS: tuple[Task, ...] = ("generation", "classification", "regression", "language-modelling")


@dataclass(frozen=True)
class Call:
    """A function that an assistant calls."""

    name: str
    arguments: str
    """JSON text of an object"""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()
    """Functions that an assistant's turn calls; its content ends with them as text (`foretune.data.tools`)"""
    reasoning: str = ""
    """What an assistant wrote for itself before its content (`foretune.data.reasoning`)"""


@dataclass(frozen=True)
class Example:
    """One row. ``label`` is a class name (str), a number (float) or None; ``group`` keeps related rows together."""

    turns: tuple[Turn, ...]
    targets: tuple[int, ...] = ()
    label: str | float | None = None
    task: str | None = None
    group: str | None = None
    split: str | None = None
    tools: str = ""
    """JSON text of the functions that may be called (`foretune.data.tools`); empty where there are none"""
    place: Place | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """A hash of what is trained on: turns, targets, label and tools (not of group, split or place)."""
        turns = [[t.role, t.content, t.reasoning] if t.reasoning else [t.role, t.content] for t in self.turns]
        said = [turns, list(self.targets), self.label]
        return fingerprint([*said, self.tools] if self.tools else said)

    @property
    def prompt(self) -> str:
        """Everything before the last target turn, joined; the text itself for plain text and labelled rows."""
        last = self.targets[-1] if self.targets else len(self.turns)
        if self.turns and self.turns[0].role == "text":
            return self.turns[0].content
        return "\n".join(turn.content for turn in self.turns[:last])

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two texts that a row's label is about; None where it is about one text and for rows with answers."""
        if self.targets or [turn.role for turn in self.turns[-2:]] != ["user", "user"]:
            return None
        return "\n".join(turn.content for turn in self.turns[:-1]), self.turns[-1].content

    @property
    def reasons(self) -> bool:
        """Whether the last target turn reasons before it answers."""
        return bool(self.targets) and bool(self.turns[self.targets[-1]].reasoning)

    @property
    def answer(self) -> str:
        """The last target turn, or the label; empty when there is neither."""
        if self.targets:
            return self.turns[self.targets[-1]].content
        return "" if self.label is None else str(self.label)

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back exactly (without the place)."""
        return {
            "turns": [_turn_json(turn) for turn in self.turns],
            "targets": list(self.targets),
            "label": self.label,
            "task": self.task,
            "group": self.group,
            "split": self.split,
            **({"tools": self.tools} if self.tools else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Example:
        """The inverse of `to_json`."""
        return cls(
            turns=tuple(_turn(*parts) for parts in value["turns"]),
            targets=tuple(value["targets"]),
            label=value["label"],
            task=value["task"],
            group=value["group"],
            split=value["split"],
            tools=value.get("tools", ""),
        )

    def with_split(self, split: str) -> Example:
        """The same example assigned to ``split``."""
        return replace(self, split=split)


def _turn_json(turn: Turn) -> list[Any]:
    calls = [[call.name, call.arguments] for call in turn.calls]
    if turn.reasoning:
        return [turn.role, turn.content, calls, turn.reasoning]
    return [turn.role, turn.content, calls] if calls else [turn.role, turn.content]


def _turn(role: Role, content: str, calls: Iterable[Iterable[str]] = (), reasoning: str = "") -> Turn:
    return Turn(role, content, tuple(Call(*call) for call in calls), reasoning)


def conversation(prompt: str, answer: str, **fields: Any) -> Example:
    """The common case: one question, one trained answer."""
    return Example((Turn("user", prompt), Turn("assistant", answer)), targets=(1,), **fields)


def normalised(text: str) -> str:
    """Lower case with runs of white space folded: the form in which duplicates are compared."""
    return re.sub(r"\s+", " ", text).strip().lower()


def task_of(examples: Iterable[Example]) -> Task:
    """The task that the rows themselves suggest: labels → classification or regression, else generation."""
    rows = list(examples)
    labels = [row.label for row in rows if row.label is not None]
    if labels and len(labels) == len(rows):
        return "regression" if all(isinstance(label, float) for label in labels) else "classification"
    if rows and all(row.turns and row.turns[0].role == "text" for row in rows):
        return "language-modelling"
    return "generation"
