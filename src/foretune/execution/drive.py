"""The loop between a searcher and an executor: ask, submit, poll, tell, until nothing more is handed out.

It decides nothing and measures nothing: proposals are the searcher's, scores the workers'. A stop (Ctrl-C, the end
of the budget) is passed on; jobs then end at their next step with a checkpoint, and what they report is told.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.errors import ForetuneError, OutputError, Place, TrainingError
from foretune.execution.types import Event, Executor, Job
from foretune.files import read_json, write_json
from foretune.search.ask_tell import AskTell
from foretune.search.types import Done, Lease, Observation, Wait

POLL_S = 0.25
STOP_PATIENCE_S = 60.0
"""How long a stopped job may take to write its checkpoint before its worker is abandoned."""
ATTEMPTS = 2
"""Tries of a job whose worker died; the second failure is final."""

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Watch:
    """What the loop is told from outside."""

    stop: Callable[[], bool]
    """Whether to stop: an interrupt."""
    tick: Callable[[], None]
    """Called often: keeps the clock on disk."""
    on_event: OnEvent
    """Sees every event, for display and store."""


class JobFailed(TrainingError):
    """A job that is no trial (probe, evaluation, export) failed for good."""


class Stopped(Exception):
    """The user asked to stop while a job ran."""


def run_job(executor: Executor, job: Job, watch: Watch) -> dict[str, Any]:
    """The result of one job; a dead worker gets a second try. Raises what the worker refused, or `JobFailed`."""
    found: list[dict[str, Any]] = []
    run_jobs(executor, [job], watch, lambda _, result: found.append(result))
    return found[0]


def run_jobs(
    executor: Executor,
    jobs: Iterable[Job],
    watch: Watch,
    told: Callable[[Job, dict[str, Any]], None],
    *,
    out_of_time: Callable[[], bool] = lambda: False,
) -> None:
    """Run ``jobs`` on all workers; ``told`` gets each one's result as it ends.

    A dead worker's job gets a second try. Out of time, no further job is begun. Raises what a worker refused,
    `JobFailed`, and `Stopped` once the jobs under way have ended.
    """
    waiting, active = deque(jobs), dict[str, tuple[Job, int]]()
    stopping_since: float | None = None
    while True:
        watch.tick()
        if stopping_since is None and watch.stop():
            stopping_since = time.monotonic()
            for job_id in active:
                executor.stop(job_id)
        if stopping_since is not None and (not active or time.monotonic() - stopping_since > STOP_PATIENCE_S):
            raise Stopped
        while waiting and stopping_since is None and len(active) < executor.capacity() and not out_of_time():
            job = waiting.popleft()
            active[job.id] = (job, 1)
            executor.submit(job)
        if not active:
            return
        for event in executor.poll(POLL_S):
            if event.job not in active:
                continue
            job, attempt = active[event.job]
            watch.on_event(event.kind, {"job": job.kind, **event.payload})
            if event.kind not in ("result", "failed"):
                continue
            del active[event.job]
            if stopping_since is not None:
                continue
            if event.kind == "result":
                told(job, dict(event.payload))
            else:
                active[job.id] = (job, _next_attempt(job, attempt, event))
                executor.submit(job)


def run_once(executor: Executor, jobs: Mapping[Path, Job], watch: Watch) -> list[dict[str, Any]]:
    """The results of ``jobs`` by the JSON files that keep them; jobs without their file are run, on all workers."""
    missing = {job.id: (path, job) for path, job in jobs.items() if not path.exists()}
    asked = [job for _, job in missing.values()]
    run_jobs(executor, asked, watch, lambda job, result: write_json(missing[job.id][0], result))
    return [read_json(path) for path in jobs]


def _next_attempt(job: Job, attempt: int, event: Event) -> int:
    """The number of the next try of a job that failed. Raises where there is none."""
    if event.payload["status"] == "refused":
        raise as_error(event.payload)
    if attempt == ATTEMPTS:
        raise JobFailed(
            f"the {job.kind} job failed ({event.payload['status']}): {event.payload['detail']}",
            remedy="The worker's log in the run folder has more; `foretune doctor` checks the machine.",
        )
    return attempt + 1


def as_error(payload: Mapping[str, Any]) -> ForetuneError:
    """The worker's own error, with its exit code, from the payload of its event."""
    place = None if payload["place"] is None else Place(str(payload["place"]))
    error = ForetuneError(str(payload["what"]), place=place, remedy=str(payload["remedy"]))
    error.exit_code = int(payload["exit_code"])
    return error


def drive(
    searcher: AskTell,
    executor: Executor,
    order: Callable[[Lease], Job],
    watch: Watch,
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    charge_overhead: bool = False,
) -> str:
    """Run trials until the searcher is done, time is over or a stop is ordered; the reason in words.

    ``order`` turns a lease into a job. With ``charge_overhead`` what a lease took beyond its measured training and
    evaluation (loading, checkpoints) is charged as well. Raises `Stopped`, and a `ForetuneError` when a worker
    cannot write.
    """
    active: dict[str, tuple[Lease, float]] = {}
    measured: dict[str, float] = {}
    stopping_since: float | None = None
    reason = ""
    while True:
        watch.tick()
        now = time.monotonic()
        if stopping_since is None and watch.stop():
            stopping_since = now
            for job_id in active:
                executor.stop(job_id)
        if stopping_since is not None and (not active or now - stopping_since > STOP_PATIENCE_S):
            raise Stopped
        over = out_of_time()
        if stopping_since is None and not over and len(active) < executor.capacity():
            reply = searcher.ask(executor.capacity() - len(active), now)
            if isinstance(reply, Done | Wait):
                reason = reply.why
            else:
                for lease in reply:
                    job = order(lease)
                    active[job.id] = (lease, now)
                    measured[job.id] = 0.0
                    watch.on_event("lease", {"lease": lease.to_json()})
                    executor.submit(job)
        if not active:
            return "the time for trials is over" if over else reason
        for event in executor.poll(POLL_S):
            if event.job not in active:
                continue
            lease, since = active[event.job]
            if event.payload.get("exit_code") == OutputError.exit_code:
                raise as_error(event.payload)  # a full disk is not the trial's fault: it stays open and is resumed
            observation = _observation(event, searcher, lease)
            if observation is None:
                searcher.heartbeat(lease.id, time.monotonic())
                watch.on_event(event.kind, {"run": lease.run, **event.payload})
                continue
            searcher.tell(lease.id, lease.attempt, observation, time.monotonic())
            measured[event.job] += observation.train_s + observation.eval_s
            watch.on_event("observation", {"lease": lease.to_json(), "observation": observation.to_json()})
            if observation.final:
                del active[event.job]
                overhead = time.monotonic() - since - measured.pop(event.job)
                if charge_overhead and overhead > 0:
                    searcher.charge(overhead, "loading, checkpoints and waiting", lease.id)


def _observation(event: Event, searcher: AskTell, lease: Lease) -> Observation | None:
    """The observation in an event; None for signs of life."""
    if event.kind in ("rung", "result"):
        return Observation.from_json(event.payload)
    if event.kind == "failed":
        step = searcher.run(lease.run).step
        return Observation(step=step, status=event.payload["status"], detail=str(event.payload["detail"]))
    return None
