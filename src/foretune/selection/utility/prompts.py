"""Rows as prompts with and without an example before them, cut where the example ends.

``chat`` and ``plain`` show the example as an earlier question and answer in the model's own layout
(`foretune.data.template`); ``delift-ref`` writes what the reference code of DELIFT (Agarwal et al. 2024) writes.

Everything up to the question is the same for all questions behind one example (and one system turn), so it is
tokenised and computed once: the *head*. A head is the longest common beginning of the example's tokens behind
several made-up questions; the *tail* of a row is what follows the head. Head plus tail equals the joint tokens for
every row and two examples, which is checked, and for random pairs beyond; a row where it does not has no tail, and
its pairs are tokenised whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foretune.data.encode import EncodedRow, encode_rows, shared_head
from foretune.data.example import Example, Turn
from foretune.data.layout import encode_texts
from foretune.data.row_label import as_conversation
from foretune.data.template import prompt_with_examples
from foretune.data.tools import as_text
from foretune.errors import UsageError
from foretune.seeding import generator

Template = Literal["chat", "plain", "delift-ref"]
TEMPLATES: tuple[Template, ...] = ("chat", "plain", "delift-ref")

ALONE = "Instruction: Please generate a response to the following query.\n\n\nQuery: {prompt}\n"
BEHIND = (
    "Instruction:\nUse the following example as a guide to answer the query in the same format and style, providing a "
    "clear and concise response.\n\n\nExample:\n{example}\n{answer}\n\n\nQuery:\n{prompt}\n"
)
"""The reference prompts of DELIFT."""

PROBES = ("0", "Which?", "\u00a7 a")
"""Questions that begin with nothing in common, to find where heads end."""
AUDITED_PAIRS = 64
"""Random pairs whose head and tail are compared with their joint tokens; a boundary that depends on the example would
show in most of them."""
UNBOUNDED_TOKENS = 1 << 30
"""Nothing is cut here: pairs that are too long are left out, not shortened."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Writer:
    """Turns rows into tokens under one template."""

    tokenizer: Any
    template: Template
    task: str = "generation"
    labels: tuple[str, ...] = ()

    def alone(self, rows: Sequence[Example]) -> list[EncodedRow]:
        """Each row without an example. Raises `DataError` for a row that the template refuses."""
        if self.template == "delift-ref":
            return self._reference([ALONE.replace("{prompt}", row.prompt) for row in rows], rows)
        return encode_rows(
            rows, self.tokenizer, kind="causal", task=self.task, labels=self.labels, context_tokens=UNBOUNDED_TOKENS,
            plain=self.template == "plain",
        )  # fmt: skip

    def behind(self, pairs: Sequence[tuple[Example, Example]]) -> list[EncodedRow]:
        """Each (row, example): the row with the example before it."""
        if self.template == "delift-ref":
            return self._reference([_reference_prompt(row, shown) for row, shown in pairs], [row for row, _ in pairs])
        return self.alone([prompt_with_examples(row, [shown]) for row, shown in pairs])

    def _reference(self, prompts: Sequence[str], rows: Sequence[Example]) -> list[EncodedRow]:
        end = int(self.tokenizer.eos_token_id)
        ids = encode_texts(
            self.tokenizer, [text for pair in zip(prompts, map(_answer, rows), strict=True) for text in pair]
        )
        encoded = []
        for prompt, answer in zip(ids[::2], ids[1::2], strict=True):
            whole = np.asarray([*prompt, end, *answer, end], dtype=np.int32)
            mask = np.arange(len(whole)) > len(prompt)
            encoded.append(EncodedRow(whole, mask, len(prompt) + 1, 0))
        return encoded


def _answer(row: Example) -> str:
    return as_conversation(row).answer


def _reference_prompt(row: Example, shown: Example) -> str:
    parts = {"{example}": shown.prompt, "{answer}": _answer(shown), "{prompt}": row.prompt}
    text = ""
    rest = BEHIND
    for mark, value in parts.items():  # in their order, so that a value may hold a later mark
        before, _, rest = rest.partition(mark)
        text += before + value
    return text + rest


def system_of(row: Example, template: Template) -> str:
    """The system turn that stands before the example in the prompt of ``row``; rows that share it share heads."""
    if template == "delift-ref" or not row.turns or row.turns[0].role != "system":
        return ""
    return row.turns[0].content


class Prompts:
    """Heads and tails of rows behind examples."""

    def __init__(self, writer: Writer, rows: Sequence[Example], examples: Sequence[Example]) -> None:
        """``rows`` are asked, ``examples`` shown. Raises `UsageError` for plain text, which asks nothing."""
        if any(row.turns and row.turns[0].role == "text" and row.label is None for row in (*rows, *examples)):
            raise UsageError(
                "plain text has no questions, so no row can be shown as an example for another.",
                remedy="Choose a selector that reads rows by themselves (such as k-centre or longest).",
            )
        self.writer = writer
        self.keys = [row.id for row in rows]
        """By which blocks know the rows asked: their ids before tools become text"""
        self.rows = [as_text(row) for row in rows]
        self.examples = [as_text(row) for row in examples]
        self.systems = [system_of(row, writer.template) for row in self.rows]
        self._heads: dict[tuple[int, str], Ids] = {}

    @cached_property
    def alone(self) -> list[EncodedRow]:
        """The rows without an example."""
        return self.writer.alone(self.rows)

    def head(self, example: int, system: str = "") -> Ids:
        """The tokens of an example up to the question behind it, for rows with that ``system`` turn."""
        if (example, system) not in self._heads:
            shown = self.examples[example]
            begin = (Turn("system", system),) if system else ()
            asked = [
                Example((*begin, Turn("user", probe), Turn("assistant", "a")), targets=(1 + len(begin),))
                for probe in PROBES
            ]
            writer = replace(self.writer, task="generation")
            joint = writer.behind([(row, shown) for row in asked])
            self._heads[example, system] = _common_beginning(joint)
        return self._heads[example, system]

    @cached_property
    def tails(self) -> list[EncodedRow | None]:
        """What follows the head, for every row; None where that depends on the example."""
        if not self.examples:
            return [None] * len(self.rows)
        tails: list[EncodedRow | None] = [None] * len(self.rows)
        for number, example in enumerate(sorted({0, len(self.examples) - 1})):
            joint = self.writer.behind([(row, self.examples[example]) for row in self.rows])
            found = [
                _rest(whole, self.head(example, system)) for whole, system in zip(joint, self.systems, strict=True)
            ]
            tails = found if number == 0 else [a if _same(a, b) else None for a, b in zip(tails, found, strict=True)]
        return self._audited(tails)

    def whole(self, row: int, example: int) -> EncodedRow:
        """The joint tokens of a pair, as the template writes them."""
        return self.writer.behind([(self.rows[row], self.examples[example])])[0]

    def _audited(self, tails: list[EncodedRow | None]) -> list[EncodedRow | None]:
        random = generator(0, "selection", "audit")
        count = min(AUDITED_PAIRS, len(self.rows) * len(self.examples))
        drawn = {(int(random.integers(len(self.rows))), int(random.integers(len(self.examples)))) for _ in range(count)}
        pairs = sorted(drawn, key=lambda pair: (pair[1], pair[0]))
        joint = self.writer.behind([(self.rows[row], self.examples[example]) for row, example in pairs])
        for (row, example), whole in zip(pairs, joint, strict=True):
            tail = tails[row]
            if tail is not None and not _same(tail, _rest(whole, self.head(example, self.systems[row]))):
                tails[row] = None
        return tails


def _common_beginning(joint: Sequence[EncodedRow]) -> Ids:
    """The longest beginning that all rows share, none of it trained."""
    first = joint[0]
    longest = min(int(row.target_mask.argmax()) for row in joint)
    for row in joint[1:]:
        differing = np.flatnonzero(row.ids[:longest] != first.ids[:longest])
        longest = int(differing[0]) if len(differing) else longest
    return first.ids[:longest]


def parted(rows: Sequence[EncodedRow]) -> tuple[Ids, list[EncodedRow]]:
    """What all ``rows`` begin with (a template's constant head), and the rest of each."""
    length = shared_head(rows)
    rest = [_without(row, length) for row in rows]
    return rows[0].ids[:length], rest


def _rest(whole: EncodedRow, head: Ids) -> EncodedRow | None:
    """``whole`` without its ``head``; None where it does not begin so, or where nothing would predict its answer."""
    length = len(head)
    if (
        len(whole.ids) <= length
        or whole.target_mask[: length + 1].any()
        or not np.array_equal(whole.ids[:length], head)
    ):
        return None
    return _without(whole, length)


def _without(row: EncodedRow, length: int) -> EncodedRow:
    return replace(
        row, ids=row.ids[length:], target_mask=row.target_mask[length:], prompt_length=row.prompt_length - length
    )


def _same(one: EncodedRow | None, other: EncodedRow | None) -> bool:
    if one is None or other is None:
        return False
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.target_mask, other.target_mask)


def joined(head: Ids, tail: EncodedRow) -> EncodedRow:
    """The whole row again."""
    return replace(
        tail,
        ids=np.concatenate([head, tail.ids]),
        target_mask=np.concatenate([np.zeros(len(head), np.bool_), tail.target_mask]),
        prompt_length=tail.prompt_length + len(head),
    )


def settings_of(writer: Writer) -> Mapping[str, Any]:
    """What, beside the tokenizer, decides the tokens."""
    return {"template": writer.template, "task": writer.task, "labels": list(writer.labels)}
