"""P4: the same spec, seed, store and budget give the same trials; P5: no budget is exceeded by more than one grain."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import BudgetError, ForetuneError, Interrupted
from foretune.files import read_json

from ..whole_fits import Ground

STEP_S, CHUNK_S, BATCH_S = 4.0, 1.0, 2.0


def trials(result: Any) -> list[tuple[Any, ...]]:
    return [
        (trial.run, dict(trial.config), trial.status, [(p.step, p.loss.value, p.rows) for p in trial.curve])
        for trial in result.record.trials
    ]


def test_the_same_request_gives_the_same_trials(finished: Any, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    again = fast_fit(output=tmp_path / "again")
    assert trials(again) == trials(finished) and len(trials(again)) >= 3
    other = fast_fit(output=tmp_path / "other", options={"search.seed": 1})
    assert trials(other) != trials(finished)


@pytest.mark.parametrize(("kind", "total"), [("trials", 1), ("trials", 2), ("steps", 1), ("steps", 5)])
def test_counts_are_never_exceeded(kind: str, total: int, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    few = {"training.epochs": 1}
    result = fast_fit(output=tmp_path / "run", options={"budget.steps": None, f"budget.{kind}": total, **few})
    budget = result.record.budget
    assert (budget.kind, budget.total) == (kind, total) and 0 < budget.used <= total
    done = len(result.record.trials) if kind == "trials" else sum(t.curve[-1].step for t in result.record.trials)
    assert done == budget.used
    assert read_json(tmp_path / "run" / "search.json")["budget"]["spent"] == budget.used


@pytest.mark.parametrize("kind", ["time", "trials", "steps"])
def test_a_budget_of_nothing_is_refused_before_anything_is_written(
    kind: str, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(BudgetError) as raised:
        fast_fit(output=tmp_path / "run", options={"budget.steps": None, f"budget.{kind}": 0})
    assert raised.value.exit_code == 5 and raised.value.remedy
    assert not (tmp_path / "run").exists()


class VirtualTime:
    """A clock that only work moves: every optimiser step, scored chunk and answered batch takes its fixed seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@pytest.fixture
def virtual(finished: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualTime]:
    from foretune.evaluation import generation, likelihood
    from foretune.fit import folder, job
    from foretune.training.loop import Training

    clock = VirtualTime()

    def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            result = function(*arguments, **settings)
            clock.advance(seconds)
            return result

        return call

    monkeypatch.setattr(Training, "_gradients", slowed(Training._gradients, STEP_S))
    monkeypatch.setattr(likelihood, "lay_out", slowed(likelihood.lay_out, CHUNK_S))
    monkeypatch.setattr(generation, "_answer", slowed(generation._answer, BATCH_S))
    monkeypatch.setattr(job, "Clock", partial(folder.Clock, now=clock))
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "perf_counter", clock)
    yield clock


@pytest.mark.parametrize("total", [60.0, 90.0, 150.0, 400.0])
def test_a_time_budget_is_exceeded_by_one_grain_at_most(
    total: float, virtual: VirtualTime, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    try:
        result = fast_fit(output=tmp_path / "run", options={"budget.steps": None, "budget.time": total})
    except (BudgetError, ForetuneError) as error:
        assert total < 90.0, "from here on there is room for a run, whatever was spent before it"
        assert error.remedy and virtual.now - 1000.0 <= total + STEP_S, error
        return
    assert result.record.budget.used == pytest.approx(sum(p.seconds for p in result.record.budget.phases))
    assert result.record.budget.used <= total + STEP_S
    assert virtual.now - 1000.0 <= total + STEP_S


def test_more_time_on_resume_from_another_folder(
    ground: Ground, virtual: VirtualTime, fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted fit with a shortened horizon goes on with more time: its runs stay as long as they were."""
    monkeypatch.chdir(ground.rows.parent)
    seen: list[str] = []

    def interrupt(kind: str, payload: Any) -> None:
        seen.append(kind)
        if seen.count("observation") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"budget.steps": None, "budget.time": 150.0}
    with pytest.raises(Interrupted, match="--resume") as raised:
        fast_fit(Path(ground.rows.name), output=tmp_path / "run", options=options, on_event=interrupt)
    assert raised.value.exit_code == 130
    horizon = _horizon(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        from ..inline import InlineExecutor

        patch.setattr("foretune.fit.job.LocalExecutor", InlineExecutor)
        result = foretune.resume(tmp_path / "run", time="220s")
    assert result.record.budget.total == 220.0 and result.record.budget.used <= 220.0 + STEP_S
    assert {trial.horizon for trial in result.record.trials} == {horizon}


def test_what_is_spent_after_planning_shortens_runs_instead_of_leaving_none(
    virtual: VirtualTime, fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base takes a minute longer than foreseen to write its answers; the default LoRA no longer fits as planned."""
    from foretune.fit import opening

    healthy, asked = opening.answered, []

    def answered(evaluator: Any, rows: int, *written: Any) -> Any:
        asked.extend(written)
        if len(asked) == 1:
            virtual.advance(70.0)
        return healthy(evaluator, rows, *written)

    monkeypatch.setattr(opening, "answered", answered)
    result = fast_fit(output=tmp_path / "run", options={"budget.steps": None, "budget.time": 170.0})
    planned, left = (read_json(tmp_path / "run" / f"search-start{name}.json") for name in ("", "-left"))
    assert left["spent"] >= planned["spent"] + 70.0
    assert result.record.winner is not None and result.record.budget.used <= 170.0 + STEP_S


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_slower_pace_than_the_probe_measured_shortens_all_runs_once(
    interrupted: bool, virtual: VirtualTime, fast_fit: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The probe's three steps take a quarter of what all others take."""
    from foretune.training.loop import Training

    slow, steps = Training._gradients, []

    def step(*arguments: Any, **settings: Any) -> Any:
        steps.append(1)
        virtual.advance(0.0 if len(steps) <= 3 else 3 * STEP_S)
        return slow(*arguments, **settings)

    monkeypatch.setattr(Training, "_gradients", step)
    factors: list[float] = []

    def see(kind: str, payload: Any) -> None:
        factors.extend([payload["factor"]] if kind == "pace" else [])
        if interrupted and kind == "pace" and len(factors) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"budget.steps": None, "budget.time": 900.0}
    if interrupted:
        with pytest.raises(Interrupted):
            fast_fit(output=tmp_path / "run", options=options, on_event=see)
    result = fast_fit(output=tmp_path / "run", options=options, on_event=see)
    assert len(set(factors)) == 1 and 2.0 < factors[0] < 4.0
    horizon = _horizon(tmp_path / "run")
    assert {trial.horizon for trial in result.record.trials} == {horizon}
    (note,) = [note for note in result.record.notes if "planned again" in note]
    assert f"{horizon} steps instead of" in note
    first = result.record.trials[0]
    assert first.curve[-1].step == horizon  # its steps are those of the new length, not of the one given up
    assert result.record.budget.used <= 900.0 + 4 * STEP_S


def _horizon(folder: Path) -> int:
    from foretune.files import read_lines

    return next(
        int(line["lease"]["horizon"]) for line in read_lines(folder / "journal.jsonl") if line["event"] == "ask"
    )


def test_jumps_of_the_wall_clock_change_nothing(
    finished: Any, fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, [0.0]

    def jumping() -> float:
        jumps[0] += 86_400.0 * (-1) ** int(jumps[0] / 7 + real())
        return real() + jumps[0]

    monkeypatch.setattr(time, "time", jumping)
    result = fast_fit(output=tmp_path / "run")
    assert trials(result) == trials(finished)
    assert 0 < sum(phase.seconds for phase in result.record.budget.phases) < 600
