"""The runs under a folder, each in one line: for ``foretune runs``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from foretune.errors import OutputError, Place, StoreError
from foretune.report.record import RESULT, RunRecord, read_record
from foretune.report.wording import outcome, verdict

DEEPEST = 4  # folders below the root that are looked into


@dataclass(frozen=True)
class Listed:
    """A run in a list. ``problem`` says why its record cannot be read; the other fields are then empty."""

    folder: str
    id: str = ""
    model: str = ""
    data: str = ""
    outcome: str = ""
    verdict: str = ""
    finished: str = ""
    seconds: float | None = None
    trials: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def run_folders(root: Path) -> Iterator[Path]:
    """Folders with a ``result.json`` at or under ``root``, not within another run, links and hidden ones left out."""
    if not root.is_dir():
        raise OutputError("there is no such folder.", place=Place(root), remedy="Name a run folder or one above it.")
    for name, folders, found in os.walk(root):
        here = Path(name)
        if RESULT in found:
            folders.clear()
            yield here
        elif len(here.relative_to(root).parts) >= DEEPEST:
            folders.clear()
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def list_runs(root: Path) -> list[Listed]:
    """The runs at or under ``root``, the latest first; damaged ones last, with the reason."""
    listed = [_listed(folder) for folder in run_folders(root)]
    return sorted(listed, key=lambda run: (run.finished, run.folder), reverse=True)


def _listed(folder: Path) -> Listed:
    try:
        record = read_record(folder)
    except StoreError as error:
        return Listed(str(folder), problem=error.what)
    return Listed(
        folder=str(folder),
        id=record.id,
        model=record.model.source,
        data=record.data.name,
        outcome=outcome(record),
        verdict=verdict(record),
        finished=record.finished,
        seconds=_seconds(record),
        trials=len(record.trials),
    )


def _seconds(record: RunRecord) -> float | None:
    try:
        return (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
    except (ValueError, TypeError):
        return None
