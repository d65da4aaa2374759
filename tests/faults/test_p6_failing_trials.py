"""P6: NaN, memory, crash and hang end a trial with a status, never with a score; the others go on."""

from __future__ import annotations

import math
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foretune.catalogue.models import ModelReference
from foretune.errors import OutputError, StoreError, TrainingError
from foretune.execution.drive import JobFailed, Watch, run_job
from foretune.execution.local import LocalExecutor
from foretune.execution.types import Event, Job, TaskSpec
from foretune.files import read_json

from ..whole_fits import Ground
from .test_p1_killed import outcome

pytestmark = pytest.mark.alone

PROBE_STEPS = 3
DEFAULT_RATE = 0.0002


def badly(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], float]) -> None:
    """Every update of the default LoRA from its second on ends in ``fault``; the probe is spared."""
    from foretune.training.loop import Training

    healthy = Training._micro_batch

    def micro_batch(self: Any, *order: Any) -> float:
        settings = self.settings.optimizer
        if settings.learning_rate == DEFAULT_RATE and settings.total_steps > PROBE_STEPS and self.step >= 1:
            return fault()
        return healthy(self, *order)

    monkeypatch.setattr(Training, "_micro_batch", micro_batch)


def out_of_memory() -> float:
    raise MemoryError


def crash() -> float:
    raise ZeroDivisionError("a defect")


@pytest.mark.parametrize(
    ("fault", "status"),
    [(lambda: math.nan, "diverged"), (lambda: math.inf, "diverged"), (out_of_memory, "oom"), (crash, "crashed")],
    ids=["nan", "inf", "oom", "crash"],
)
def test_a_bad_trial_has_a_status_and_the_others_go_on(
    fault: Callable[[], float], status: str, fast_fit: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    badly(monkeypatch, fault)
    result = fast_fit(output=tmp_path / "run", options={"budget.steps": None, "budget.trials": 4})
    default, *others = result.record.trials
    assert default.is_default and default.status == status and default.detail and not default.is_winner
    # updates that are not finite are skipped, four in a row end the run: what was scored until then is sound
    assert all(point.step <= (3 if status == "diverged" else 1) for point in default.curve)
    assert all(math.isfinite(point.loss.value) for trial in result.record.trials for point in trial.curve)
    assert len(others) == 3 and all(trial.status in ("ok", "paused") for trial in others)
    assert any(trial.status == "ok" for trial in others) and result.record.winner.run != default.run
    assert any(default.run in warning and status in warning for warning in result.record.warnings)
    assert {system.role for system in result.record.comparison.systems} >= {"base", "winner"}


def test_when_every_trial_fails_the_run_says_so(
    fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foretune.training.loop import Training

    probing = Training._micro_batch

    def micro_batch(self: Any, *order: Any) -> float:
        return probing(self, *order) if self.settings.optimizer.total_steps == PROBE_STEPS else math.nan

    monkeypatch.setattr(Training, "_micro_batch", micro_batch)
    with pytest.raises(TrainingError, match=r"no trial produced a result.*diverged") as raised:
        fast_fit(output=tmp_path / "run", options={"budget.steps": 40})
    assert raised.value.exit_code == 8 and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("bad", [math.nan, None, "raise"])
def test_a_metric_without_a_value_is_no_score(
    bad: Any, fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rung of the second run only: its trial crashes, the others are compared."""
    from foretune.execution import trial

    healthy = trial.loss_of
    calls = 0

    def loss_of(scores: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 4:
            return healthy(scores)
        if bad == "raise":
            raise ValueError("no value")
        return trial.Score(bad, 0.0, 1)

    monkeypatch.setattr(trial, "loss_of", loss_of)
    result = fast_fit(output=tmp_path / "run")
    statuses = [t.status for t in result.record.trials]
    assert statuses.count("crashed") == 1 and "ok" in statuses
    assert all(math.isfinite(p.loss.value) for t in result.record.trials for p in t.curve)


def test_a_full_disk_in_a_worker_stops_the_fit_and_is_resumed(
    finished: Any, fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foretune.training import checkpoint

    healthy = checkpoint.save
    saves = 0

    def save(*arguments: Any) -> Path:
        nonlocal saves
        saves += 1
        if saves == 5:
            raise OutputError("the disk is full (0 MiB free); nothing was written half.")
        return healthy(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Exception, match="disk is full") as raised:
        fast_fit(output=tmp_path / "run")
    assert raised.value.exit_code == 6  # type: ignore[attr-defined]
    fast_fit(output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished.folder)


def test_lost_checkpoints_are_trained_again(finished: Any, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """P3 in a whole run: all checkpoints of the paused runs are damaged while nobody looks."""
    seen: list[str] = []

    def interrupt(kind: str, payload: Any) -> None:
        seen.append(kind)
        if seen.count("lease") == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Exception, match="interrupted"):
        fast_fit(output=tmp_path / "run", on_event=interrupt)
    _, *paused = sorted((tmp_path / "run" / "trials").iterdir())  # the default LoRA is finished already
    damaged = [path for folder in paused for path in folder.glob("step-*/state.safetensors")]
    assert len(damaged) >= 2
    for path in damaged:
        os.truncate(path, path.stat().st_size // 2)
    fast_fit(output=tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(finished.folder)
    assert list((tmp_path / "run" / "trials").glob("*/damaged-step-*"))


def test_a_finalist_whose_checkpoint_is_damaged_leaves_its_place_to_the_next(
    finished: Any, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    """The best run of the undisturbed fit is damaged after the search: another one is handed over, and it is said."""
    best = finished.record.winner.run
    assert not finished.record.winner.is_default

    def damage(kind: str, payload: Any) -> None:
        if kind == "searched":
            for path in (tmp_path / "run" / "trials" / best).glob("step-*/state.safetensors"):
                os.truncate(path, path.stat().st_size // 2)

    record = fast_fit(output=tmp_path / "run", on_event=damage).record
    assert record.winner.run not in (best, None)
    assert any(best in note and "missing or damaged" in note for note in record.notes)
    assert best not in {candidate.run for candidate in record.candidates} and len(record.candidates) == 2


def test_when_no_checkpoint_can_be_read_the_fit_says_so(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    def damage(kind: str, payload: Any) -> None:
        if kind == "searched":
            for path in (tmp_path / "run" / "trials").glob("*/step-*/state.safetensors"):
                os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(StoreError, match="every checkpoint is missing or damaged"):
        fast_fit(output=tmp_path / "run", on_event=damage)


# -- worker processes: a stand-in speaks the protocol, so that no test waits for torch

STAND_IN = """
import json, os, signal, sys, time
behaviour = sys.argv[1]
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    job = json.loads(line)
    if "stop" in job:
        continue
    say = lambda kind, payload: print(json.dumps({"job": job["id"], "kind": kind, "payload": payload}), flush=True)
    say("started", {"pid": os.getpid()})
    say("beat", {})
    fresh = not os.path.exists(sys.argv[2])
    open(sys.argv[2], "a").close()
    if behaviour == "well" or (not fresh and behaviour.endswith("once")):
        say("result", {"done": True})
    elif behaviour.startswith("silent"):
        sys.exit(0)
    elif behaviour.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "garbage":
        print("this is no JSON", flush=True)
        print(json.dumps({"job": "another", "kind": "result", "payload": {}}), flush=True)
        say("result", {"done": True})
    else:
        print("about to hang", file=sys.stderr, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., LocalExecutor]:
    def build(behaviour: str, **settings: Any) -> LocalExecutor:
        script = tmp_path / "stand_in.py"
        script.write_text(textwrap.dedent(STAND_IN))
        command = [sys.executable, "-S", str(script), behaviour, str(tmp_path / "was-here")]
        return LocalExecutor(tmp_path / "logs", command=command, **settings)

    return build


JOB = Job("j1", "probe", TaskSpec("/nowhere", "generation", ModelReference("/nowhere"), "loss"))


def events_of(executor: LocalExecutor, job: Job, limit_s: float = 30.0) -> list[Event]:
    executor.submit(job)
    found: list[Event] = []
    end = time.monotonic() + limit_s
    while time.monotonic() < end and not any(event.kind in ("result", "failed") for event in found):
        found += executor.poll(0.1)
    return found


@pytest.mark.parametrize(
    ("behaviour", "status", "words"),
    [("silent", "crashed", "exit code 0"), ("killed", "oom", "signal 9"), ("deaf", "timeout", "about to hang")],
)
def test_a_worker_that_dies_or_hangs_fails_its_one_job(
    behaviour: str, status: str, words: str, stand_in: Callable[..., LocalExecutor]
) -> None:
    with stand_in(behaviour, silence_allowance_s=0.5) as executor:
        last = events_of(executor, JOB)[-1]
        assert last.kind == "failed" and last.payload["status"] == status and words in last.payload["detail"]
        pids = [process.process.pid for process in executor._processes]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_that_ignores_term_and_never_reads_is_ended_on_close(
    stand_in: Callable[..., LocalExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.execution.local.CLOSE_ALLOWANCE_S", 0.2)
    executor = stand_in("deaf")
    executor.submit(JOB)
    while not executor.poll(0.2):
        pass
    pid = executor._processes[0].process.pid
    executor.close()
    assert not Path(f"/proc/{pid}").exists()


def test_lines_that_are_no_events_are_passed_over(stand_in: Callable[..., LocalExecutor]) -> None:
    with stand_in("garbage") as executor:
        found = events_of(executor, JOB)
    assert [event.kind for event in found] == ["started", "beat", "result"]
    assert all(event.job == "j1" for event in found)


@pytest.mark.parametrize("behaviour", ["silent-once", "killed-once", "hang-once"])
def test_a_job_that_is_no_trial_gets_a_second_worker(behaviour: str, stand_in: Callable[..., LocalExecutor]) -> None:
    watch = Watch(lambda: False, lambda: None, lambda kind, payload: None)
    with stand_in(behaviour, silence_allowance_s=0.5) as executor:
        assert run_job(executor, JOB, watch) == {"done": True}


def test_a_job_that_kills_two_workers_is_given_up(stand_in: Callable[..., LocalExecutor]) -> None:
    watch = Watch(lambda: False, lambda: None, lambda kind, payload: None)
    with stand_in("silent") as executor, pytest.raises(JobFailed, match="exit code 0") as raised:
        run_job(executor, JOB, watch)
    assert raised.value.exit_code == 8 and "doctor" in raised.value.remedy


PLUGIN = """
import os, signal, time
from foretune.training.loop import Training

healthy = Training._update
fault = os.environ["FAULT"]


def update(self):
    settings = self.settings.optimizer
    if settings.learning_rate == 0.0002 and settings.total_steps > 3 and self.step >= 1:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return healthy(self)


Training._update = update
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "status"), [("kill", "oom"), ("hang", "timeout")])
def test_real_workers_that_are_killed_or_hang_cost_one_trial(
    fault: str, status: str, ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A plugin makes the default LoRA kill its worker, or hang in it; a fresh worker takes the rest."""
    from foretune.training.loop import Training

    monkeypatch.setattr(Training, "_update", Training._update)  # the plugin is loaded here, too: put back at the end
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("FAULT", fault)
    executor = partial(LocalExecutor, threads=1, silence_allowance_s=8.0)
    result = fast_fit(output=tmp_path / "run", plugins=[plugin], executor=executor)
    default, *others = result.record.trials
    assert default.is_default and default.status == status and "r001" in result.record.warnings[0]
    assert any(trial.status == "ok" for trial in others)
    assert not any(trial.failed for trial in others)
    assert result.record.winner is not None and result.record.winner.run != default.run
    assert read_json(tmp_path / "run" / "export.json")["verified"] is True
    assert (tmp_path / "run" / "logs" / "worker-2.log").exists()
