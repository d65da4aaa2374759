"""The journal of a search: every decision and every observation, one JSON line each, in logical order.

It is written ahead: a change is on the disk before it is made. Replaying the lines gives the search as it was. A torn
last line (a killed writer) is dropped; a line damaged elsewhere is an error that names it, because guessing would
change what the search had seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.files import append_line, read_lines

VERSION = 1


class Journal:
    """Lines in a file, or in memory when ``path`` is None."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = []

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one event and flush it. Raises `OutputError` (disk full, folder not writable)."""
        if self.path is None:
            self._lines.append(json.loads(json.dumps(event, allow_nan=False)))
        else:
            append_line(self.path, event)

    def events(self) -> list[dict[str, Any]]:
        """All complete lines. Raises `StoreError` naming a damaged one."""
        if self.path is None:
            return list(self._lines)
        try:
            lines = read_lines(self.path)
        except ValueError as error:
            raise self.damaged(_first_bad_line(self.path), "is not JSON") from error
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, dict) or "event" not in line:
                raise self.damaged(number, "is no event")
        return lines

    def notes(self) -> dict[str, Any]:
        """What `AskTell.record` kept: readable before the search is built, which may need it (the probe)."""
        return {line["name"]: line["value"] for line in self.events() if line["event"] == "note"}

    def damaged(self, line: int, how: str) -> StoreError:
        """The error for a line that cannot be replayed."""
        return StoreError(
            f"the search journal cannot be replayed: this line {how}.",
            place=Place(self.path or "journal", line),
            remedy="Restore the file from a copy, or start again in another --output.",
        )


def _first_bad_line(path: Path) -> int:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            return number
    return 1
