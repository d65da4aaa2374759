"""The loop of a collector: claim the next run, train it, write it down whole; until none is left.

A worker that dies costs a second try of its run, and the second failure is the run's status. An error that is not the
configuration's fault (a full disk, a missing model) ends the session instead of failing run after run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.collect.cells import Cell, job
from foretune.collect.scores import BaseAnswers, seen_of, tested
from foretune.errors import TrainingError, UsageError
from foretune.execution.drive import ATTEMPTS, POLL_S, STOP_PATIENCE_S, Stopped, Watch, as_error
from foretune.execution.types import Event, Executor, Job
from foretune.experience.past import FINISHED
from foretune.experience.records import RunRecord
from foretune.experience.store import Store
from foretune.files import lives
from foretune.fit.folder import RunFolder
from foretune.search.types import Observation
from foretune.study.results import read_answers

LEASE_S = 180.0
"""How long a claim holds without renewal: after this a dead collector's runs are free again."""
RENEW_S = 30.0


@dataclass(frozen=True)
class Collected:
    """What a session did."""

    finished: int
    failed: int
    left: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return dict(vars(self))


@dataclass
class _Active:
    """A run under way."""

    cell: Cell
    attempt: int
    job: Job
    tries: int = 1
    seen: list[Observation] = field(default_factory=list)
    renewed: float = field(default_factory=time.monotonic)


@dataclass
class Queue:
    """The runs of a list on their way into a store."""

    study: str
    cells: Sequence[Cell]
    base: Mapping[str, BaseAnswers]
    """By task name"""
    folder: RunFolder
    store: Store
    hardware: str
    versions: Mapping[str, str]
    answered_rows: int
    owner: str

    def __post_init__(self) -> None:
        self.open = {cell.run: cell for cell in self.cells}
        self.active: dict[str, _Active] = {}
        self.finished = self.failed = 0

    def work(self, executor: Executor, watch: Watch, over: Callable[[], bool]) -> Collected:
        """Train until nothing is left, ``over`` says that time is up, or the watch says stop (raises `Stopped`)."""
        self._free_claims_of_the_dead()
        while True:
            if watch.stop():
                self._stop(executor)
            reason = "the time is up" if over() else ""
            while not reason and len(self.active) < executor.capacity() and (taken := self._take()) is not None:
                watch.on_event("started", self._about(taken))
                self.active[taken.job.id] = taken
                executor.submit(taken.job)
            if not self.active and (reason or not self.open):
                return Collected(self.finished, self.failed, len(self.open), reason or "every run is in the store")
            if not self.active:
                watch.on_event("waiting", {"runs": len(self.open)})
                self._wait(watch, over)
            for event in executor.poll(POLL_S):
                self._handle(event, executor, watch)
            self._renew()

    def _free_claims_of_the_dead(self) -> None:
        """Give back what killed collectors of this machine held, so that going on needs no waiting."""
        host = self.owner.rpartition("-")[0]
        columns, rows = self.store.table("lease")
        for lease in (dict(zip(columns, row, strict=True)) for row in rows):
            owner_host, _, process = str(lease["owner"]).rpartition("-")
            if owner_host == host and process.isdigit() and not lives(int(process)):
                self.store.release(lease["run"], lease["owner"])

    def _wait(self, watch: Watch, over: Callable[[], bool]) -> None:
        """Other collectors hold what is left: look again in a while."""
        end = time.monotonic() + RENEW_S
        while time.monotonic() < end and not watch.stop() and not over():
            time.sleep(POLL_S)

    def _take(self) -> _Active | None:
        """The next run that nobody has and that has not ended, claimed; None when there is none now."""
        for run in self.store.ended(self.study) & set(self.open):
            del self.open[run]
        for run, cell in list(self.open.items()):
            attempt = self.store.claim(run, self.owner, LEASE_S)
            if attempt is not None:
                del self.open[run]
                return _Active(cell, attempt, job(cell, attempt, self.folder, self.answered_rows))
        return None

    def _handle(self, event: Event, executor: Executor, watch: Watch) -> None:
        active = self.active.get(event.job)
        if active is None:
            return
        if event.kind == "rung":
            active.seen.append(Observation.from_json(event.payload))
        elif event.kind == "result":
            del self.active[event.job]
            self._ended(active, Observation.from_json(event.payload), watch)
        elif event.kind == "failed":
            if event.payload.get("exit_code", UsageError.exit_code) != UsageError.exit_code:
                raise as_error(event.payload)
            if event.payload["status"] != "refused" and active.tries < ATTEMPTS:
                active.tries, active.seen = active.tries + 1, []
                executor.submit(active.job)
                return
            del self.active[event.job]
            failure = Observation(0, status=event.payload["status"], detail=str(event.payload["detail"]))
            self._ended(active, failure, watch)

    def _ended(self, active: _Active, last: Observation, watch: Watch) -> None:
        """Write the run to the store, whole."""
        cell, collected = active.cell, active.cell.task
        seen = [*active.seen, last]
        base = self.base[collected.task.name]
        points = seen_of(cell, seen, base, self.answered_rows)
        answers = self.folder.answers / f"{cell.run}.json"
        status = FINISHED if last.status == "ok" else last.status
        if last.status == "ok":
            step, rows = read_answers(answers)
            points.append(tested(collected.task, int(step or last.step), rows, base))
        record = RunRecord(
            id=cell.run,
            task=collected.fingerprint,
            model=collected.model,
            hardware=self.hardware,
            config="",
            seed=cell.draw.seed,
            horizon=cell.horizon,
            arm=cell.draw.name,
            study=self.study,
            pair=cell.draw.pair,
            versions=self.versions,
        )
        lease = (self.owner, active.attempt)
        peak = max(part.peak_bytes for part in seen)
        if last.status == "paused":
            raise TrainingError(f"run {cell.run} was stopped, and nobody asked for it.")
        if self.store.record_ended(record, cell.config, points, status, peak_bytes=peak, lease=lease):
            self.finished += last.status == "ok"
            self.failed += last.status != "ok"
        answers.unlink(missing_ok=True)
        shutil.rmtree(self.folder.trial(cell.run), ignore_errors=True)
        watch.on_event("ended", {**self._about(active), "status": status, "detail": last.detail, **_summary(points)})

    def _about(self, active: _Active) -> dict[str, Any]:
        done = len(self.cells) - len(self.open) - len(self.active)
        names = {"run": active.cell.run, "task": active.cell.task.task.name, "arm": active.cell.draw.name}
        return {**names, "done": done, "runs": len(self.cells)}

    def _renew(self) -> None:
        now = time.monotonic()
        for active in self.active.values():
            if now - active.renewed > RENEW_S:
                self.store.renew(active.cell.run, self.owner, active.attempt, LEASE_S)
                active.renewed = now

    def _stop(self, executor: Executor) -> None:
        """Have the workers stop at their next step, give the claims back, and raise `Stopped`."""
        for job_id in self.active:
            executor.stop(job_id)
        end = time.monotonic() + STOP_PATIENCE_S
        waiting = set(self.active)
        while waiting and time.monotonic() < end:
            waiting -= {event.job for event in executor.poll(POLL_S) if event.kind in ("result", "failed")}
        for active in self.active.values():
            self.store.release(active.cell.run, self.owner)
        raise Stopped


def _summary(points: Sequence[Any]) -> dict[str, Any]:
    """Loss and gain of the last point, for display."""
    if not points:
        return {}
    scores = points[-1].scores
    return {
        "split": points[-1].split,
        "scores": {name: scores[name][0] for name in scores if not name.startswith("base.")},
        "seconds": sum(point.train_s + point.eval_s for point in points),
    }
