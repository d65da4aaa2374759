"""Running the cells of a study: the fixed-list searcher, its journal, the workers, a line for every ended run.

Nothing is lost or repeated by a kill: what was asked and told is in the journal, a run continues from its checkpoint,
and a run that ended without its line gets it when the study is taken up again. The experience is fed from the same
journal, and its writes may be repeated.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.execution.drive import Watch, drive
from foretune.execution.types import Executor
from foretune.files import append_line
from foretune.fit.history import Recorder
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.fidelity import rungs
from foretune.search.grid import Grid
from foretune.search.journal import Journal
from foretune.search.runs import Run
from foretune.search.types import Lease, Observation, Score
from foretune.study.design import StudyCell, job
from foretune.study.results import ACCIDENTS, line, read_results, views
from foretune.study.row_scores import RowScores
from foretune.study.tasks import StudyTask

TEST = "test"
SHORT_RUN_S = 60.0
"""A run that is forecast to take less is not checkpointed: writing the state of all weights at every rung would take
longer than training. A stop then costs at most so much."""
Recorders = Mapping[tuple[str, str, str], Recorder]
"""The recorder of every block."""


@dataclass
class Cells:
    """A list of cells under way."""

    study: str
    root: Path
    cells: tuple[StudyCell, ...]
    tasks: Mapping[tuple[str, str], StudyTask]
    seconds: Callable[[StudyCell], float]
    """Forecast of a whole run"""
    journal: Path
    trials: Path
    answers: Path
    results: Path
    recorders: Recorders
    retry: bool = False
    """Whether runs that an accident ended are tried once more"""

    def __post_init__(self) -> None:
        self.by_key = {cell.cell.key: cell for cell in self.cells}
        self.written = {entry["cell"]: str(entry["status"]) for entry in read_results(self.results)}
        self.row_scores = RowScores(self.root)

    def run(self, executor: Executor, watch: Watch, left: Callable[[], float | None]) -> str:
        """Run all cells that have not ended, until none is left or time is over; the reason in words.

        Raises `Stopped` when the watch says so.
        """
        from foretune.training.checkpoint import steps

        core = self._core(executor.capacity())
        self._take_up(core)

        def see(kind: str, payload: Mapping[str, Any]) -> None:
            watch.on_event(kind, self._described(core, kind, payload))
            self._remember(core, kind, payload)

        def order(lease: Lease) -> Any:
            cell = self._cell(core, lease.run)
            task = self.tasks[cell.model, cell.task]
            folder = self.trials / lease.run
            saved = bool(steps(folder))
            if lease.from_step and not saved:  # never written, or left behind elsewhere: the whole run again
                lease = replace(lease, rungs=rungs(cell.horizon))
            keeps = saved or self.seconds(cell) > SHORT_RUN_S
            return job(task, cell, lease, folder, self._answers(cell), left(), checkpoints=keeps)

        def out_of_time() -> bool:
            seconds = left()
            return seconds is not None and seconds <= 0

        return drive(core, executor, order, Watch(watch.stop, watch.tick, see), out_of_time=out_of_time)

    def _core(self, workers: int) -> AskTell:
        step_s = sum(self.seconds(cell) for cell in self.cells) / sum(cell.horizon for cell in self.cells)

        def cost(config: Mapping[str, Any], start: int, stop: int) -> float:
            return step_s * (stop - start)  # for display: a budget in trials decides nothing by seconds

        asked = {e["lease"]["run"]: e["arm"] for e in Journal(self.journal).events() if e["event"] == "ask"}
        runs = Counter(asked.values())
        again = {key: runs[key] for key, status in self.written.items() if self.retry and status in ACCIDENTS}
        trials = len(self.cells) + len(again) + sum(runs.values()) - len(runs)
        grid = Grid(tuple(cell.cell for cell in self.cells), again)
        return AskTell(grid, Budget("trials", float(trials), workers=workers), cost, journal=self.journal)

    def _cell(self, core: AskTell, run: str) -> StudyCell:
        return self.by_key[core.run(run).arm]

    def _answers(self, cell: StudyCell) -> Path:
        return self.answers / f"{cell.cell.key}.json"

    def _take_up(self, core: AskTell) -> None:
        """What an earlier session told but may not have written down everywhere.

        A run with its line is written down; what ran on another machine is none of this one's experience.
        """
        run_of: dict[str, str] = {}
        for event in Journal(self.journal).events():
            if event["event"] == "ask":
                run_of[event["lease"]["id"]] = event["lease"]["run"]
            if event["event"] not in ("ask", "tell"):
                continue
            run = core.run(event["lease"]["run"] if event["event"] == "ask" else run_of[event["lease"]])
            if self._settled(run):
                continue
            if event["event"] == "ask":
                self._remember(core, "lease", {"lease": event["lease"]})
            else:
                cell = self.by_key[run.arm]
                self.recorders[cell.block].observation(run.id, Observation.from_json(event["observation"]))
        for run in core.runs:
            if run.ended and not self._settled(run):
                self._ended(run)

    def _settled(self, run: Run) -> bool:
        """Whether nothing that the run could say is news: its cell has a result, or its own accident is written."""
        status = self.written.get(run.arm)
        return status is not None and (status not in ACCIDENTS or run.status in ACCIDENTS)

    def _remember(self, core: AskTell, kind: str, payload: Mapping[str, Any]) -> None:
        if kind == "lease":
            lease = Lease.from_json(payload["lease"])
            cell = self._cell(core, lease.run)
            self.recorders[cell.block].run(
                lease.run, lease.config, seed=lease.seed, horizon=lease.horizon, arm=cell.arm, pair=cell.pair
            )
        elif kind == "observation":
            run = core.run(payload["lease"]["run"])
            cell = self.by_key[run.arm]
            self.recorders[cell.block].observation(run.id, Observation.from_json(payload["observation"]))
            if run.ended:
                self._ended(run)

    def _ended(self, run: Run) -> None:
        """The line of a run, its test scores in the experience, and its checkpoints gone."""
        cell = self.by_key[run.arm]
        task = self.tasks[cell.model, cell.task]
        recorder = self.recorders[cell.block]
        entry = line(self.study, cell, run, task, self._answers(cell) if cell.tested else None, self.root)
        entry["machine"] = recorder.hardware
        if TEST in entry["scores"]:
            scores = {name: Score(*parts) for name, parts in entry["scores"][TEST].items()}
            recorder.observation(run.id, Observation(int(entry["step"]), scores), split=TEST)
        recorder.finished([run])
        for view in views([entry]):  # before the line: a line says that the run is written down
            self.row_scores.keep(view)
        if not self._settled(run):
            append_line(self.results, entry)
            self.written[entry["cell"]] = str(entry["status"])
        shutil.rmtree(self.trials / run.id, ignore_errors=True)

    def _described(self, core: AskTell, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The event with what the run is in the study's words."""
        run = payload["lease"]["run"] if "lease" in payload else payload.get("run")
        if run is None:
            return dict(payload)
        cell = self._cell(core, run)
        of = {"arm": cell.arm, "pair": cell.pair, "cells": len(self.cells), "number": int(run[1:])}
        return {**payload, "run": run, **of}
