"""A folder holds one run: another request is refused there, whether the run is finished or only begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foretune.catalogue.models import ModelReference
from foretune.cost.request import Measured
from foretune.errors import DataError, OutputError
from foretune.execution.bench import Bench
from foretune.execution.types import TaskSpec
from foretune.fit import opening
from foretune.fit.begun import ROWS, with_offers_as_begun, with_rows_as_begun
from foretune.fit.effort import FULL
from foretune.fit.folder import RunFolder
from foretune.fit.job import run_fit
from foretune.fit.outlook import replan
from foretune.fit.plan import Plan, plan
from foretune.fit.prepare import Prepared
from foretune.fit.request import FitRequest
from foretune.fit.schedule import Schedule, Speeds
from foretune.fit.trials import Common, planned
from foretune.report.record import write_record
from foretune.search.budget import Budget
from tests import tiny
from tests.report.conftest import sample
from tests.whole_fits import Ground

ASKED = {"data.path": "mine.jsonl", "budget.time": "5m"}


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused(tmp_path, finished):
    FitRequest(ASKED).save(tmp_path)
    if finished:
        write_record(tmp_path, sample())
    no_plan: Any = None  # it is refused before the plan is looked at
    with pytest.raises(OutputError, match="another run was begun") as refused:
        run_fit(no_plan, FitRequest({**ASKED, "data.path": "other.jsonl"}), tmp_path)
    assert ("--resume" in refused.value.remedy) is not finished


def test_the_same_request_gets_the_finished_result(tmp_path):
    FitRequest(ASKED).save(tmp_path)
    write_record(tmp_path, sample())
    no_plan: Any = None
    more_time = FitRequest({**ASKED, "budget.time": "9m"})  # free to change: it decides nothing that was decided
    assert run_fit(no_plan, more_time, tmp_path).record == sample()


MEASURED = Measured(train_tokens_per_s=100.0, score_tokens_per_s=300.0, peak_bytes=10**9)


def test_more_time_settles_nothing_again(ground: Ground, tmp_path: Path) -> None:
    """The rows evaluated, the rankings offered and with them the runs are those that the first start settled."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.questions(2000))
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()

    def settled(time: str, remember: Callable[[str, Callable[[], Any]], Any]) -> tuple[Plan, Common]:
        options = {"search.keep": "auto", "evaluation.generation": False}
        fresh = with_rows_as_begun(
            plan(rows, model=str(ground.llama), time=time, options=options, matmul=lambda _: 2e7), remember
        )
        fresh = with_offers_as_begun(replan(fresh, MEASURED, 1.0), remember)
        task = TaskSpec("task", "generation", ModelReference("model", "causal"), "loss")
        prepared: Any = SimpleNamespace(task=task, rows={"train": 1600, "validation": 200})
        schedule = Schedule(task, folder, 200, Speeds(4.0, 20.0, 0.0), FULL, False)
        return fresh, planned(fresh, prepared, schedule, Budget("time", fresh.budget.total), remember)

    first, begun = settled("8m", folder.once)
    resumed, common = settled("2h", folder.once)
    anew, other = settled("2h", lambda _, compute: compute())
    assert anew.resolution[ROWS] > first.resolution[ROWS] and len(arms(anew)) > len(arms(first)), "with more time"
    assert other.first.settings() != begun.first.settings() and other.schedule.effort != begun.schedule.effort
    assert resumed.resolution[ROWS] == first.resolution[ROWS] and arms(resumed) == arms(first)
    assert common.first.settings() == begun.first.settings() and common.schedule.effort == begun.schedule.effort


def arms(made: Plan) -> list[dict[str, Any]]:
    return [arm for offer in made.keeping for arm in offer.arms]


def test_a_folder_that_was_moved_goes_on_with_its_own_rows(tmp_path: Path) -> None:
    task = TaskSpec(str(tmp_path / "before" / "task"), "generation", ModelReference("model", "causal"), "loss")
    kept = Prepared(task, {"train": 1}, {}).to_json()
    session: Any = SimpleNamespace(
        folder=RunFolder(tmp_path / "after"), once=lambda *asked: kept, on_event=lambda *said: None
    )
    found = opening._prepared(session).task
    assert found.folder == str(tmp_path / "after" / "task")
    with pytest.raises(DataError, match="rows of this run are gone"):
        Bench.split(SimpleNamespace(task=found, _splits={}), "train")  # type: ignore[arg-type]
