"""A folder holds one run: another request is refused there, whether the run is finished or only begun."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.errors import OutputError
from foretune.fit.job import run_fit
from foretune.fit.request import FitRequest
from foretune.report.record import write_record
from tests.report.conftest import sample

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
