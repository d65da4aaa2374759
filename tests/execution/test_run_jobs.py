"""Jobs beside the search: on all workers at once, a second try for each, and an end in order."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.errors import ForetuneError
from foretune.execution.drive import JobFailed, Stopped, Watch, run_job, run_jobs
from foretune.execution.types import Event, Job

JOBS = [Job(f"j{number}", "select", None, {}) for number in range(5)]  # type: ignore[arg-type]


class Workers:
    """Two workers that answer with what was scripted for a job, in the order of the tries."""

    def __init__(self, **scripts: list[Event]) -> None:
        self.scripts, self.under_way, self.most, self.stopped = scripts, [], 0, []

    def capacity(self) -> int:
        return 2

    def submit(self, job: Job) -> None:
        self.under_way.append(job.id)
        self.most = max(self.most, len(self.under_way))

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def poll(self, timeout_s: float) -> list[Event]:
        job = self.under_way.pop(0)
        script = self.scripts.get(job)
        return [script.pop(0) if script else Event(job, "result", {"of": job})]


def watch(stop: Any = lambda: False) -> Watch:
    return Watch(stop, lambda: None, lambda kind, payload: None)


def died(job: str) -> Event:
    return Event(job, "failed", {"status": "crashed", "detail": "gone"})


def ran(workers: Workers, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run_jobs(workers, JOBS, more.pop("watch", watch()), lambda job, result: found.update({job.id: result}), **more)
    return found


def test_all_workers_have_a_job_and_every_result_is_told() -> None:
    workers = Workers()
    assert ran(workers) == {job.id: {"of": job.id} for job in JOBS}
    assert workers.most == 2


def test_a_dead_worker_costs_its_job_one_try_and_no_other() -> None:
    assert len(ran(Workers(j1=[died("j1")]))) == 5
    with pytest.raises(JobFailed, match="gone"):
        ran(Workers(j1=[died("j1"), died("j1")]))
    facts = {
        "status": "refused",
        "detail": "",
        "what": "no target",
        "remedy": "Give one.",
        "exit_code": 2,
        "place": None,
    }
    with pytest.raises(ForetuneError, match="no target"):
        ran(Workers(j1=[Event("j1", "failed", facts)]))


def test_nothing_is_begun_when_time_is_over() -> None:
    times = iter([False, False, True, True, True, True, True, True])
    assert set(ran(Workers(), out_of_time=lambda: next(times))) == {"j0", "j1"}


def test_a_stop_reaches_all_that_are_under_way_and_their_results_are_not_told() -> None:
    told: list[str] = []
    stops = iter([False, True, True, True, True])
    workers = Workers()
    with pytest.raises(Stopped):
        run_jobs(workers, JOBS, watch(lambda: next(stops)), lambda job, _: told.append(job.id))
    assert told == ["j0"] and workers.stopped == ["j1"]


def test_one_job_gives_its_result() -> None:
    assert run_job(Workers(), JOBS[3], watch()) == {"of": "j3"}
