"""A run's folder: what is where, the clock that survives a kill, and results that are computed once.

request.json    what was asked for, word for word                   clock.json   seconds used so far, by phase
task/           the splits                                          journal.jsonl every ask and tell
trials/<run>/   checkpoints                                         answers/     what systems answered
adapter/ …      what is handed over                                 result.json, report.html, resolved.yaml
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from foretune.errors import OutputError, Place, UsageError
from foretune.files import is_leftover, read_json, remove_leftovers, write_json

SAVE_S = 2.0
"""How often the clock is written: the most that a kill can make the budget forget."""
Result = TypeVar("Result")


class Clock:
    """Seconds of the time budget used, by phase; time while no process runs does not count."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self.phases: dict[str, float] = dict(read_json(path)["phases"]) if path.exists() else {}
        self._phase: str | None = None
        self._since = now()
        self._saved = now()

    def used(self) -> float:
        """Seconds used in all phases."""
        running = self._now() - self._since if self._phase is not None else 0.0
        return sum(self.phases.values()) + running

    def spent(self, *phases: str) -> float:
        """Seconds used in ``phases``."""
        return sum(self.phases.get(name, 0.0) for name in phases)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to ``name``."""
        if self._phase is not None:
            raise ValueError(f"{name} inside {self._phase}")
        self._phase, self._since = name, self._now()
        try:
            yield
        finally:
            self._book()
            self._phase = None
            self.save()

    def tick(self) -> None:
        """Write the clock if it has not been written for a while."""
        if self._now() - self._saved > SAVE_S:
            self._book()
            self.save()

    def _book(self) -> None:
        now = self._now()
        if self._phase is not None:
            self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
            self._since = now

    def save(self) -> None:
        """Write the clock."""
        write_json(self._path, {"phases": self.phases})
        self._saved = self._now()


class RunFolder:
    """The paths of one run, and results that are computed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.request = root / "request.json"
        self.task = root / "task"
        self.journal = root / "journal.jsonl"
        self.trials = root / "trials"
        self.answers = root / "answers"
        self.logs = root / "logs"
        self.adapter = root / "adapter"
        self.result = root / "result.json"
        self.report = root / "report.html"
        self.resolved = root / "resolved.yaml"

    @property
    def started(self) -> bool:
        """Whether a run was begun here."""
        return self.request.exists()

    @property
    def finished(self) -> bool:
        """Whether the run here came to its end."""
        return self.result.exists()

    def check_free(self) -> None:
        """Refuse a folder that holds something else; raises `OutputError`."""
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(
                "this is a file, not a folder.", place=Place(self.root), remedy="Choose another --output."
            )
        if self.root.is_dir():
            others = [path.name for path in self.root.iterdir() if path.name != ".lock" and not is_leftover(path)]
            if others and not self.started:
                raise OutputError(
                    f"this folder holds other files ({', '.join(sorted(others)[:3])}).",
                    place=Place(self.root),
                    remedy="Choose an empty folder for --output.",
                )

    def clean(self) -> None:
        """Remove what a killed process left half written; only for who holds the folder's lock."""
        for folder in (self.root, self.task, self.answers):
            remove_leftovers(folder)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON result ``name``, computed at most once however often the run is resumed."""
        path = self.root / f"{name}.json"
        if path.exists():
            return read_json(path)
        value = compute()
        write_json(path, value)
        return value

    def trial(self, run: str) -> Path:
        """The folder of a run's checkpoints."""
        return self.trials / run


def finished_runs(where: Path) -> list[RunFolder]:
    """The finished runs in ``where``, a run's folder or a folder of them, newest first; `UsageError` for none."""
    folders = [RunFolder(path) for path in (where, *where.glob("*/")) if RunFolder(path).finished]
    if not folders:
        raise UsageError(
            "there is no finished run to begin at here.",
            place=Place(where),
            remedy="Name the --output folder of an earlier fit, or a folder of such folders.",
        )
    return sorted(folders, key=lambda folder: (-folder.result.stat().st_mtime, folder.root.name))
