"""Several processes as one worker: all get the jobs, the first one speaks, and they end together."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foretune.catalogue.models import ModelReference
from foretune.execution.group import environments
from foretune.execution.local import LocalExecutor
from foretune.execution.types import Event, Job, TaskSpec

from ..whole_fits import *  # noqa: F403

pytestmark = pytest.mark.alone

MEMBER = """
import json, os, sys, time
rank = int(os.environ["RANK"])
for line in sys.stdin:
    job = json.loads(line)
    if "stop" in job:
        continue
    with open(os.path.join(sys.argv[1], f"rank-{rank}"), "a") as seen:
        seen.write(f"{os.getpid()} {job['id']}\\n")
    if job["id"] == "dies" and rank == 1:  # once the first one has the job: it may be ended before it reads it
        while "dies" not in open(os.path.join(sys.argv[1], "rank-0")).read():
            time.sleep(0.01)
        os._exit(3)
    kind = "failed" if job["id"] == "fails" else "result"
    payload = {"rank": rank} if kind == "result" else {"status": "crashed", "detail": "as told"}
    if job["id"] != "dies":
        print(json.dumps({"job": job["id"], "kind": kind, "payload": payload}), flush=True)
"""


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """An executor whose one worker is a group of three stand-ins."""
    script = tmp_path / "member.py"
    script.write_text(textwrap.dedent(MEMBER))
    member = [sys.executable, "-S", str(script), str(tmp_path)]
    command = [sys.executable, "-m", "foretune.execution.group", "3", *member]
    with LocalExecutor(tmp_path / "logs", command=command) as executor:
        yield executor


def outcome_of(executor: LocalExecutor, name: str, limit_s: float = 60.0) -> Event:
    executor.submit(Job(name, "probe", TaskSpec("/nowhere", "generation", ModelReference("/nowhere"), "loss")))
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        for event in executor.poll(0.1):
            if event.kind in ("result", "failed"):
                return event
    raise AssertionError(f"no word of {name}")


def members(folder: Path, rank: int, jobs: int = 0) -> list[list[str]]:
    """(process, job) of what a member was given, waiting until it has been given ``jobs``: only the first one is
    waited for by the overseer."""
    path, end = folder / f"rank-{rank}", time.monotonic() + 30.0
    while (not path.exists() or len(path.read_text().splitlines()) < jobs) and time.monotonic() < end:
        time.sleep(0.02)
    return [line.split() for line in path.read_text().splitlines()]


def test_all_processes_get_a_job_and_the_first_one_speaks(group: LocalExecutor, tmp_path: Path) -> None:
    assert outcome_of(group, "one").payload == {"rank": 0}
    assert outcome_of(group, "two").payload == {"rank": 0}
    seen = [members(tmp_path, rank, jobs=2) for rank in range(3)]
    group.close()
    assert all([job for _, job in jobs] == ["one", "two"] for jobs in seen)
    assert len({jobs[0][0] for jobs in seen}) == 3 and all(jobs[0][0] == jobs[1][0] for jobs in seen)
    assert not any(Path(f"/proc/{jobs[0][0]}").exists() for jobs in seen)


def test_after_a_failure_and_after_a_death_a_fresh_group_takes_the_next_job(
    group: LocalExecutor, tmp_path: Path
) -> None:
    assert outcome_of(group, "fails").payload["detail"] == "as told"
    assert outcome_of(group, "well").kind == "result"
    died = outcome_of(group, "dies")
    assert (
        died.payload["status"] == "crashed"
        and "a process of the group has died (exit code 3)" in died.payload["detail"]
    )
    assert outcome_of(group, "again").kind == "result"
    first = members(tmp_path, 0)
    assert [job for _, job in first] == ["fails", "well", "dies", "again"]
    assert first[0][0] != first[1][0] == first[2][0] != first[3][0]


def test_threads_are_shared_out_and_every_process_has_its_number() -> None:
    own = environments(4, threads=6)
    assert [one["RANK"] for one in own] == ["0", "1", "2", "3"] and {one["WORLD_SIZE"] for one in own} == {"4"}
    assert {one["OMP_NUM_THREADS"] for one in own} == {"1"} and len({one["MASTER_PORT"] for one in own}) == 1
    assert environments(2, threads=8)[0]["FORETUNE_THREADS"] == "4"


@pytest.mark.slow
def test_a_fit_in_two_processes_is_the_fit_in_one(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """Real processes: the same trials, and the same losses but for rounding."""
    brief = {"budget.steps": None, "budget.trials": 2, "training.epochs": 1}
    alone = fast_fit(output=tmp_path / "alone", options=brief).record
    executor = partial(LocalExecutor, threads=2)
    together = fast_fit(
        output=tmp_path / "together", options={**brief, "search.processes": 2}, executor=executor
    ).record
    for ours, theirs in zip(together.trials, alone.trials, strict=True):
        assert (ours.run, ours.config, ours.status) == (theirs.run, theirs.config, theirs.status)
        assert [point.step for point in ours.curve] == [point.step for point in theirs.curve]
        for one, other in zip(ours.curve, theirs.curve, strict=True):
            assert one.loss.value == pytest.approx(other.loss.value, abs=1e-4)
    log = (tmp_path / "together" / "logs" / "worker-1.log").read_text()
    assert "Traceback" not in log
