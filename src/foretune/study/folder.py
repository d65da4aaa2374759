"""A study's folder: what is where, and results that are computed once.

study.json      the grid as resolved, when it was begun          grid.yaml      the grid as written
before/         models trained on the data that comes first
tasks/          one prepared folder per model and task           journal.jsonl  every ask and tell of the cells
trials/<run>/   checkpoints, removed when a run is tested        answers/       what every run answered
results.jsonl   one line a run                                   rates.jsonl    one line a run of the sweep
selections.jsonl  what every ranking of rows took
design.json     what was announced before the first run
table.md, summary.json  paired differences with intervals        report.html    the same with charts
priors.yaml     the rules that were resolved                      logs/, clock.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foretune.errors import OutputError, Place
from foretune.files import read_json, remove_leftovers, write_json, write_text
from foretune.fit.folder import RunFolder
from foretune.study.grid import GridSpec

STUDY = "study.json"
IGNORED = """\
# A study may live in a repository: what is not ignored is small, holds no row of the data, and is enough to go on from
# elsewhere with `foretune study run NAME --output FOLDER --resume`.
.*
!.gitignore
/answers/
/before/
/logs/
/trials/
/rates-trials/
/tasks/*/*/*
!/tasks/*/*/prepared.json
!/tasks/*/*/rows.json
!/tasks/*/*/probe.json
!/tasks/*/*/base*.json
/tasks/*/*/*-answers.json
!/tasks/*/*/task/
/tasks/*/*/task/*
!/tasks/*/*/task/selections/
/tasks/*/*/task/selections/*/*
!/tasks/*/*/task/selections/*/ranking.json
"""
"""Rankings travel: they are numbers of rows, and took longer than the runs they are for. Their blocks stay behind."""


def base_name(tested_on: str) -> str:
    """What the base model's scores on a test set are called in a task's folder."""
    return f"base-{tested_on}" if tested_on else "base"


class StudyFolder:
    """The paths of one study."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.study = root / STUDY
        self.ignored = root / ".gitignore"
        self.answers = root / "answers"
        self.before = root / "before"
        self.logs = root / "logs"
        self.clock = root / "clock.json"
        self.results = root / "results.jsonl"
        self.rates = root / "rates.jsonl"
        self.selections = root / "selections.jsonl"
        self.journal = root / "journal.jsonl"
        self.sweep_journal = root / "rates-journal.jsonl"
        self.trials = root / "trials"
        self.sweep_trials = root / "rates-trials"
        self.design = root / "design.json"
        self.table = root / "table.md"
        self.summary = root / "summary.json"
        self.report = root / "report.html"
        self.priors = root / "priors.yaml"

    def sweep_journal_of(self, round_number: int) -> Path:
        """The journal of one round of the sweep; later rounds widen it."""
        if round_number == 0:
            return self.sweep_journal
        return self.root / f"rates-journal-{round_number}.jsonl"

    def task(self, model: str, task: str) -> RunFolder:
        """The folder of a prepared task, with what was measured on it before the first run."""
        return RunFolder(self.root / "tasks" / model / task)

    def begin(self, grid: GridSpec, text: str, started: str) -> dict[str, Any]:
        """Write down which study this is, or check that it is the one begun here; returns ``study.json``.

        Which arm another is compared with may be said otherwise than when the study was begun.
        Raises `OutputError` for a folder with another study.
        """
        if not self.study.exists():
            write_text(self.root / "grid.yaml", text)
            value = {"identity": grid.identity, "started": started, "grid": grid.model_dump(mode="json")}
            write_json(self.study, value)
        if not self.ignored.exists():
            write_text(self.ignored, IGNORED)
        found: dict[str, Any] = read_json(self.study)
        if saved_grid(self.root).identity != grid.identity:  # a setting that has come since has its default
            raise OutputError(
                f"another study was begun in this folder ({found['grid']['name']}, or the same one with other cells).",
                place=Place(self.root),
                remedy=f"Continue it with `foretune study run --output {self.root} --resume`, or choose another "
                "--output.",
            )
        arms = grid.model_dump(mode="json")["arms"]
        if found["grid"]["arms"] != arms:  # another control decides no result; a margin stays as it was fixed
            found["grid"]["arms"] = arms
            write_text(self.root / "grid.yaml", text)
            write_json(self.study, found)
        return found

    def check_free(self) -> None:
        """Refuse a folder that holds something else; raises `OutputError`."""
        if self.root.exists() and not self.root.is_dir():
            raise OutputError(
                "this is a file, not a folder.", place=Place(self.root), remedy="Choose another --output."
            )
        if not self.root.is_dir() or self.study.exists():
            return
        remove_leftovers(self.root)
        others = sorted(path.name for path in self.root.iterdir() if path.name not in (".lock", "grid.yaml"))
        if others:
            raise OutputError(
                f"this folder holds other files ({', '.join(others[:3])}).",
                place=Place(self.root),
                remedy="Choose an empty folder for --output.",
            )


def saved_grid(root: Path) -> GridSpec:
    """The grid of the study begun in ``root``. Raises `OutputError` when there is none."""
    path = root / STUDY
    if not path.is_file():
        raise OutputError(
            "no study was begun here.", place=Place(root), remedy="Begin one with `foretune study run GRID --output`."
        )
    try:
        return GridSpec.model_validate(read_json(path)["grid"])
    except ValidationError as error:
        first = error.errors()[0]
        raise OutputError(
            f"this study was begun by another version, with a setting that is not known here "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}).",
            place=Place(path),
            remedy="Go on with the version that began it, or begin it anew in another --output.",
        ) from None
