"""Foretune's own error types: what happened, where, and what to do about it.

Every error a user can cause is one of these. The command line prints its one paragraph and leaves with
``exit_code``; a traceback is a defect of Foretune, never an answer to bad input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A place in a user's file. ``line`` and ``column`` count from 1; ``None`` where they mean nothing."""

    path: Path | str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts = [str(self.path)]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)


class ForetuneError(Exception):
    """The root. ``what`` says what happened, ``place`` where, ``remedy`` what to do."""

    exit_code = 1

    def __init__(self, what: str, *, place: Place | None = None, remedy: str = "") -> None:
        self.what = what
        self.place = place
        self.remedy = remedy
        super().__init__(self.paragraph())

    def paragraph(self) -> str:
        """The one paragraph shown to the user."""
        head = f"{self.place}: {self.what}" if self.place is not None else self.what
        return f"{head} {self.remedy}".strip()


class UsageError(ForetuneError):
    """An option, a setting or a combination of them that cannot be used."""

    exit_code = 2


class DataError(ForetuneError):
    """A data file that is missing, damaged, empty or of another shape than was said."""

    exit_code = 3


class ModelError(ForetuneError):
    """A model that cannot be found, verified or loaded."""

    exit_code = 4


class BudgetError(ForetuneError):
    """A budget too small for a single step, or a plan that cannot fit the machine."""

    exit_code = 5


class OutputError(ForetuneError):
    """An output folder in use, a full disk, a folder that cannot be written."""

    exit_code = 6


class StoreError(ForetuneError):
    """The experience store or a checkpoint cannot be read or written."""

    exit_code = 7


class TrainingError(ForetuneError):
    """No trial of a run produced a usable result."""

    exit_code = 8


class Interrupted(ForetuneError):
    """Stopped by the user (Ctrl-C, SIGTERM); the run can be resumed."""

    exit_code = 130


EXIT_CODES = {
    0: "done",
    1: "a defect of Foretune (please report it)",
    2: "an option or setting that cannot be used",
    3: "the data cannot be read or used",
    4: "the model cannot be found, verified or loaded",
    5: "the budget is too small, or the plan does not fit the machine",
    6: "the output folder cannot be used or the disk is full",
    7: "the experience store or a checkpoint cannot be used",
    8: "no trial produced a usable result",
    130: "interrupted; the run can be resumed",
}
