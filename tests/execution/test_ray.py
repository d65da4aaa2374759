"""The same trials on a local Ray cluster as in local processes, with a worker killed in the middle of one."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foretune.collect.run import collect
from foretune.errors import UsageError
from foretune.execution.ray import RayExecutor
from foretune.experience.past import past_runs
from tests.collect.test_collect import write_list
from tests.inline import InlineExecutor

pytestmark = pytest.mark.alone

RUNS = 10


@dataclass
class Murderer:
    """A Ray executor whose first trial is killed once it has trained a rung."""

    executor: RayExecutor
    pid: int = 0
    failures: list[dict] = field(default_factory=list)

    def poll(self, timeout_s: float):
        found = self.executor.poll(timeout_s)
        for event in found:
            if event.kind == "started":
                self.pid = event.payload["pid"]
            if event.kind in ("rung", "step") and not self.failures and self.pid:
                os.kill(self.pid, signal.SIGKILL)
                self.pid = 0
            if event.kind == "failed":
                self.failures.append(dict(event.payload))
        return found

    def __getattr__(self, name: str):
        return getattr(self.executor, name)


def losses(store: Path) -> dict[str, list[tuple[str, int, float]]]:
    return {
        run.run: [(point.split, point.step, point.metrics["loss"][0]) for point in run.points]
        for run in past_runs(store)
    }


def test_ray_trains_the_same_trials_and_outlives_a_killed_worker(tmp_path):
    pytest.importorskip("ray")
    listed = write_list(tmp_path, design="core")
    made = []

    def executor(logs: Path) -> Murderer:
        made.append(Murderer(RayExecutor(logs, workers=1)))
        return made[0]

    result = collect(listed, tmp_path / "ray", store=tmp_path / "ray.sqlite", executor=executor)
    assert (result.finished, result.failed, result.left) == (RUNS, 0, 0)
    assert [failure["status"] for failure in made[0].failures] == ["crashed"]
    assert "died" in made[0].failures[0]["detail"]
    collect(listed, tmp_path / "here", store=tmp_path / "here.sqlite", executor=InlineExecutor)
    on_ray, here = losses(tmp_path / "ray.sqlite"), losses(tmp_path / "here.sqlite")
    assert set(on_ray) == set(here)
    for run, points in here.items():
        assert [point[:2] for point in on_ray[run]] == [point[:2] for point in points]
        assert [point[2] for point in on_ray[run]] == pytest.approx([point[2] for point in points], abs=1e-5)


def test_without_ray_the_remedy_is_said(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install foretune\[ray\]"):
        RayExecutor(tmp_path)
