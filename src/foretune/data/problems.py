"""What is wrong with a row, how a handful of problems becomes one error, and how bad rows are set aside.

A bad row is never repaired and never dropped in silence: it stops the reading, or it goes to the quarantine file
with its place and the reason, and the counts add up (kept + quarantined = read).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.errors import DataError, Place
from foretune.files import write_bytes

PROBLEMS_SHOWN = 5
"""Problems listed in an error: enough to see the pattern, few enough to read."""


class Refused(Exception):
    """A row cannot be used: ``what`` says why, ``column`` (from 1) where in its line when that is known."""

    def __init__(self, what: str, column: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.column = column


NOT_UTF8 = "is not UTF-8"
"""Part of what is said of a byte of another encoding"""


def conversion(path: Path | str, encoding: str) -> str:
    """The command that writes a file again as UTF-8."""
    name = Path(path).name
    return f"iconv -f {encoding} -t UTF-8 '{name}' > utf8-{name}"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """A JSON form for reports."""
        return {
            "file": str(self.place.path),
            "line": self.place.line,
            "column": self.place.column,
            "what": self.what,
        }


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, with its bytes as they were in the file."""

    problem: Problem
    raw: bytes

    def to_line(self) -> bytes:
        """One JSON line for the quarantine file; bytes that are not UTF-8 go as ``raw_base64``, losing nothing."""
        value = self.problem.to_json()
        try:
            value["raw"] = self.raw.decode("utf-8")
        except UnicodeDecodeError:
            value["raw_base64"] = base64.b64encode(self.raw).decode("ascii")
        return json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n"


def refusal(path: Path | str, problems: Sequence[Problem], rows_read: int) -> DataError:
    """The error for bad rows: the first `PROBLEMS_SHOWN` with their places, the total, and the way on."""
    listed = "\n".join(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    rest = len(problems) - PROBLEMS_SHOWN
    more = f"\n  … and {rest:,} more" if rest > 0 else ""
    foreign = sum(NOT_UTF8 in problem.what for problem in problems) > len(problems) / 2
    convert = f"If the file is in another encoding, convert it: {conversion(path, 'WINDOWS-1252')}\n" if foreign else ""
    return DataError(
        f"{len(problems):,} of {rows_read:,} rows cannot be used:\n{listed}{more}",
        place=Place(path),
        remedy=f"\n{convert}Correct these rows, or set them aside with --on-bad-row quarantine.",
    )


def write_quarantine(path: Path, rows: Iterable[BadRow]) -> None:
    """Write the bad rows aside, one JSON object a line: file, line, column, what, raw. Atomic."""
    write_bytes(path, b"".join(row.to_line() for row in rows))
