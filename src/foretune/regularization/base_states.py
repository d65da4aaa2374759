"""What the base says of the training rows: hidden states and losses at the scored positions.

With the adapter switched off the model is the base, whose states of a row never change while base and inputs stay.
Where the states of all training rows fit the budget they are kept: computed once a row, on the row alone, so that
they do not depend on the batch it first came in and a resumed run repeats itself bit for bit. Otherwise nothing is
kept, and every micro-batch is shown to the base anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foretune.data.update import MicroBatch
from foretune.errors import UsageError
from foretune.regularization.base import Context


@dataclass(frozen=True)
class RowStates:
    """Of one row, in the order of its targets."""

    hidden: torch.Tensor
    """(targets, width)"""
    nll: torch.Tensor
    """(targets,) float32"""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.hidden.nbytes + self.nll.nbytes


def base_refusal(context: Context) -> str:
    """Why the base cannot be asked, or nothing."""
    try:
        with context.attachment.disabled():
            return ""
    except UsageError as error:
        return error.paragraph()


class BaseStates:
    """The base's states by data-set row."""

    def __init__(self, context: Context, budget_bytes: int) -> None:
        self.context = context
        self.used_bytes = 0
        self.passes = 0
        """Forward passes of the base so far"""
        self._rows: dict[int, RowStates] = {}
        embedding = context.model.get_input_embeddings().weight  # type: ignore[operator]
        each = embedding.shape[1] * embedding.element_size() + torch.float32.itemsize
        self.keeps = sum(row.targets for row in context.rows) * each <= budget_bytes

    def prepare(self, batch: MicroBatch) -> None:
        """Make sure that the rows of ``batch`` are there until `end`."""
        if not self.keeps:
            self._ask(batch)
            return
        assert self.context.lay_out is not None
        for row in batch.rows:
            if row not in self._rows:
                self._ask(self.context.lay_out([row]).micro_batches[0].to(batch.ids.device))
                self.used_bytes += self._rows[row].nbytes

    def _ask(self, batch: MicroBatch) -> None:
        forward = self.context.base_pass(batch)
        self.passes += 1
        counts = self._counts(batch.row)
        hidden_of, nll_of = torch.split(forward.hidden, counts), torch.split(forward.nll(), counts)
        for row, hidden, nll in zip(batch.rows, hidden_of, nll_of, strict=True):
            self._rows[row] = RowStates(hidden.detach().clone(), nll.detach().float().clone())

    def end(self) -> None:
        """Let go of states that are not kept."""
        if not self.keeps:
            self._rows.clear()

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:
        """(targets, width) of the rows, one after the other."""
        return torch.cat([self._rows[row].hidden for row in rows])

    def nll(self, rows: Sequence[int]) -> torch.Tensor:
        """(targets,) losses of the rows, one after the other."""
        return torch.cat([self._rows[row].nll for row in rows])

    @staticmethod
    def _counts(row: torch.Tensor) -> list[int]:
        """Targets of every row of a micro-batch, in its order."""
        found: list[int] = torch.unique_consecutive(row, return_counts=True)[1].tolist()
        return found
