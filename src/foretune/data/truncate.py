"""Fitting a row into a context: what is cut, what is never cut.

A prompt is ``[head | body | tail]``. The head is what the template writes before the first question (bos, system
turn, header), the tail what it writes after the last one (end of turn, header of the answer). The body is cut on
the left, so the words nearest to the answer stay; if the head does not fit either, all of it but bos goes. The
answer is kept whole as long as bos, the tail and it fit. Only a longer answer is cut, on the right, and then a
quarter of the context is kept for the prompt; such a row does not train the end of its turn.

The rule depends on the prompt and on the number of tokens it may have, so inference, given the same number, cuts
to the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROMPT_SHARE = 4
"""A row whose answer alone fills the context gives one part in this many to its prompt."""


@dataclass(frozen=True)
class Prompt:
    """An uncut prompt and its parts, in tokens."""

    length: int
    head: int
    tail: int
    begin: int
    """Leading bos tokens: 0 or 1."""

    @property
    def smallest(self) -> int:
        """The fewest tokens the prompt can be cut to: bos and tail."""
        return self.begin + self.tail

    def cut(self, limit: int, ids: Sequence[int], bos: int | None) -> tuple[int, int]:
        """``(head, start)``: the first ``head`` tokens and those from ``start`` on are kept, ``limit`` at most.

        Where bos also begins turns (ChatML's ``<|im_start|>`` in some models) and the kept rest begins with it, the
        head gives up its own, so that there are never two.
        """
        if self.length <= limit:
            return self.length, self.length
        head = self.head if self.head + self.tail <= limit else self.begin
        start = self.length - (limit - head)
        if bos is not None and 0 < head <= start < len(ids) and ids[head - 1] == bos == ids[start]:
            head -= 1
        return head, start


def parts_of(ids: Sequence[int], blanked: Sequence[int] | None, bos: int | None) -> Prompt:
    """Find head and tail by comparing ``ids`` with the ids of the same prompt with its contents replaced.

    ``blanked`` is None when the template does not accept the replaced contents; then nothing but bos is protected.
    """
    begin = 1 if ids and bos is not None and ids[0] == bos else 0
    if blanked is None:
        return Prompt(len(ids), begin, 0, begin)
    shortest = min(len(ids), len(blanked))
    head = next((i for i in range(shortest) if ids[i] != blanked[i]), shortest)
    tail = next((i for i in range(shortest - head) if ids[-1 - i] != blanked[-1 - i]), shortest - head)
    return Prompt(len(ids), max(head, begin), tail, begin)


def room(prompt: Prompt, answer: int, context: int) -> tuple[int, int] | None:
    """Tokens for the prompt and for an answer of ``answer`` tokens; None when ``context`` cannot hold both at all."""
    if prompt.length + answer <= context:
        return prompt.length, answer
    if prompt.smallest + answer <= context:
        return context - answer, answer
    for_prompt = min(prompt.length, max(prompt.smallest, context // PROMPT_SHARE))
    return (for_prompt, context - for_prompt) if for_prompt < context else None
