"""Multiple choice: a question with its choices written below it, answered by the letter of one.

Data sets hold choices as a list of texts (MMLU, RACE, HellaSwag), as texts with labels of their own (ARC,
CommonsenseQA) or by letter (MedQA), and the right one by its place, its label or its text. Here all become the same
kind of row.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.data.problems import Refused

COLUMNS = ("choices", "options", "endings")
ANSWERS = (
    "answerkey",
    "answer_key",
    "answer_idx",
    "answer_index",
    "answer",
    "label",
    "correct_answer",
    "correct",
    "gold",
)
QUESTIONS = ("question", "question_stem", "stem", "ctx", "query", "prompt", "input")
CONTEXTS = ("context", "passage", "article")


@dataclass(frozen=True)
class Choices:
    """What may be answered."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, value: Any) -> Choices | None:
        """The choices in a row's value, or in its JSON text as tables hold it; None where there are no two texts."""
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            texts, labels = value["text"], value.get("label")
        elif isinstance(value, Mapping):
            there = {name: text for name, text in value.items() if text is not None}  # tables fill rows up with nulls
            texts, labels = list(there.values()), list(there)
        else:
            texts, labels = value, None
        if not isinstance(texts, list) or not 2 <= len(texts) <= len(string.ascii_uppercase):
            return None
        if not all(isinstance(text, str | int | float) and str(text).strip() for text in texts):
            return None
        if not isinstance(labels, list) or len({str(label) for label in labels}) != len(texts):
            labels = list(string.ascii_uppercase[: len(texts)])
        return cls(tuple(str(label).strip() for label in labels), tuple(str(text).strip() for text in texts))

    def right(self, answer: Any) -> int | None:
        """The place of the choice that ``answer`` means: a place counted from 0, a label, a letter, or a text."""
        if isinstance(answer, bool) or answer is None:
            return None
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, int) and str(answer) not in self.labels:
            return answer if 0 <= answer < len(self.texts) else None
        said = str(answer).strip()
        for names in (self.labels, self.texts, tuple(string.ascii_uppercase), tuple(map(str, range(len(self.texts))))):
            if said in names and (place := names.index(said)) < len(self.texts):
                return place
        return None

    def asked(self, question: str) -> str:
        """The question with its choices, and how to answer."""
        lines = (f"{label}. {text}" for label, text in zip(self.labels, self.texts, strict=True))
        return "\n".join((question, "", *lines, "", self._how()))

    def _how(self) -> str:
        *others, last = self.labels
        return f"Answer with {', '.join(others)} or {last}."

    @classmethod
    def asked_in(cls, prompt: str) -> Choices | None:
        """The choices that `asked` wrote at the end of ``prompt``; None where it did not."""
        parts = prompt.rsplit("\n\n", 2)
        if len(parts) < 3:
            return None
        pairs = [line.partition(". ") for line in parts[1].split("\n")]
        found = cls(tuple(label for label, _, _ in pairs), tuple(text for _, _, text in pairs))
        return found if len(pairs) > 1 and parts[2] == found._how() else None


def answered(choices: Choices, answer: Any, column: str) -> str:
    """The label of the right choice. Raises `Refused` where ``answer`` means none."""
    place = choices.right(answer)
    if place is None:
        raise Refused(f"{column!r} is {str(answer)[:40]!r}, which is none of its {len(choices.texts)} choices")
    return choices.labels[place]
