"""A conversation with a trained system: turns are remembered, and the untouched base can be asked the same.

Serves ``foretune chat``. When the history no longer fits the context, its oldest exchanges are left out, whole; a
single question that does not fit is cut as training cuts prompts. An encoder–decoder and a translator were trained on
single texts, so they get each one alone. What stood before every text in training stands before the first question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foretune.data.encode import inference_ids
from foretune.data.example import Example, Turn
from foretune.data.instruction import instructed
from foretune.data.layout import layout_of
from foretune.data.reasoning import TO_COME
from foretune.data.template import stop_ids
from foretune.errors import UsageError
from foretune.evaluation.streaming import write_one
from foretune.execution.bench import Bench
from foretune.seeding import torch_generator

UNFINISHED = "\ufffd"
"""What a tokenizer writes for the first bytes of a character whose rest is still to come."""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    question: str
    answer: str
    by: Literal["adapter", "base", "model"]
    """``base`` is the untouched base of an adapter; ``model`` a system without one"""
    tokens: int
    complete: bool
    """False: cut at the longest allowed answer"""
    forgotten: int
    """Exchanges that the context had no room for"""


class Conversation:
    """Turns so far, with one system."""

    def __init__(
        self,
        bench: Bench,
        adapted: Any,
        *,
        system: str = "",
        instruction: str = "",
        temperature: float = 0.0,
        seed: int = 0,
        task: int | None = None,
        reasons: bool = False,
    ) -> None:
        """``bench`` and ``adapted`` come from `systems.opened`; ``system`` is the system turn, ``instruction`` stands
        before the first question (`systems.instruction_of`), ``task`` is the number of the task that an adapter of
        several answers for. With ``reasons`` what is fed asks for reasoning.

        Raises `UsageError` for a system turn to an encoder–decoder, which has no place for it.
        """
        if system and bench.kind == "seq2seq":
            raise UsageError("an encoder–decoder takes no system text.", remedy="Write it into the question.")
        self._bench, self._adapted = bench, adapted
        self._instruction = instruction
        self._system = (Turn("system", system),) if system else ()
        self._temperature, self._task = temperature, task
        self._generator = torch_generator(seed, "chat")
        self._layout = layout_of(bench.tokenizer, plain=bench.task.plain_template) if bench.kind == "causal" else None
        self._thought = TO_COME if reasons else ""
        self._exchanges: list[tuple[str, str]] = []

    def ask(self, question: str, on_text: Callable[[str], None] = lambda piece: None) -> Reply:
        """Answer ``question`` after what was said so far, and remember both; ``on_text`` gets the answer in pieces."""
        by: Literal["adapter", "model"] = "model" if self._adapted is None else "adapter"
        reply = self._answer(question, self._exchanges, by, on_text)
        self._exchanges.append((question, reply.answer))
        return reply

    def ask_base(self, on_text: Callable[[str], None] = lambda piece: None) -> Reply:
        """The untouched base's answer to the last question, after the same turns; it is not remembered.

        Raises `UsageError` without an adapter or without a question.
        """
        if self._adapted is None:
            raise UsageError("this system has no adapter to switch off.", remedy="Chat with its base by its own name.")
        if not self._exchanges:
            raise UsageError("there is no question yet.", remedy="Ask one first.")
        with self._adapted.disable_adapter():
            return self._answer(self._exchanges[-1][0], self._exchanges[:-1], "base", on_text)

    def reset(self) -> None:
        """Forget all turns."""
        self._exchanges.clear()

    def _answer(
        self,
        question: str,
        before: list[tuple[str, str]],
        by: Literal["adapter", "base", "model"],
        on_text: Callable[[str], None],
    ) -> Reply:
        bench = self._bench
        limit = bench.most_answer_tokens
        remembers = bench.kind == "causal" and bench.task.model.languages is None  # translators learnt single texts
        prompt, forgotten = self._prompt(question, before if remembers else [], limit)
        stops = (
            stop_ids(bench.tokenizer, plain=bench.task.plain_template)
            if bench.kind == "causal"
            else (int(bench.tokenizer.eos_token_id),)
        )
        shown = ""

        def on_token(ids: list[int]) -> None:
            nonlocal shown
            text = self._text(ids)
            if text.startswith(shown) and not text.endswith(UNFINISHED) and not self._opens(text):
                on_text(text[len(shown) :])
                shown = text

        with bench.network.answering_for(self._task):
            ids, complete = write_one(
                bench.network.model, prompt, max_new_tokens=limit, stop_ids=stops,
                on_token=on_token, temperature=self._temperature, generator=self._generator,
            )  # fmt: skip
        answer = self._text(ids)
        # what was shown may turn out to be reasoning, where the prompt has opened it and its end has come by now
        on_text(answer[len(shown) :] if answer.startswith(shown) else f"\n\n{answer}")
        return Reply(question, answer, by, len(ids), complete, forgotten)

    def _prompt(self, question: str, before: list[tuple[str, str]], limit: int) -> tuple[NDArray[np.int32], int]:
        """What is fed, with room for ``limit`` tokens, and how many of the oldest exchanges were left out for it."""
        bench, context = self._bench, self._bench.task.context_tokens
        for first in range(len(before)):
            ids = inference_ids(
                self._example(question, before[first:]), bench.tokenizer, kind=bench.kind, layout=self._layout
            )
            if len(ids) + limit <= context:
                return ids, first
        ids = inference_ids(
            self._example(question, []), bench.tokenizer, kind=bench.kind, context_tokens=context,
            answer_tokens=limit if bench.kind == "causal" else 0, layout=self._layout,
        )  # fmt: skip
        return ids, len(before)

    def _example(self, question: str, before: list[tuple[str, str]]) -> Example:
        said = [turn for asked, told in before for turn in (Turn("user", asked), Turn("assistant", told))]
        turns = (*self._system, *said, Turn("user", question), Turn("assistant", "", reasoning=self._thought))
        return instructed([Example(turns, targets=(len(turns) - 1,))], self._instruction)[0]

    def _text(self, ids: list[int]) -> str:
        return self._bench.text_of(ids, self._layout)

    def _opens(self, text: str) -> bool:
        """Whether ``text`` may be the beginning of what stands before an answer: the template's own, or reasoning."""
        if self._layout is None:
            return False
        marks = [self._layout.lead, "" if self._layout.reasoning is None else self._layout.reasoning.opening]
        return any(mark.strip().startswith(text) for mark in marks if mark.strip())
