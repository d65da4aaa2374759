"""What is kept of a time budget for its end: all of it where there is room, less where nothing could be trained."""

from __future__ import annotations

from typing import Any

from foretune.fit.schedule import (
    EXPORT_S,
    FEWEST_AT_ALL,
    FEWEST_TEST_ROWS,
    LEFT_SHARE,
    Speeds,
    before_export,
    plan_end,
)

SPEEDS = Speeds(train_rows_per_s=2.0, score_rows_per_s=5.0, answer_s=1.5)
ASKED: dict[str, Any] = {"rows": {"validation": 24, "test": 60}, "most_rows": 200, "shots": 3, "generation": True}


def test_a_roomy_budget_holds_everything() -> None:
    for time_s in (None, 3600.0):
        end = plan_end(SPEEDS, **ASKED, time_s=time_s, used_s=90.0)
        assert (end.validation_rows, end.test_rows, end.shots, end.general, end.note) == (24, 60, 3, True, "")
        assert end.reserve_s == 2 * 24 / 5 + 3 * 60 * 1.7 + 4 * 64 / 5 + 60 * 1.7 * 4 + EXPORT_S


def test_a_small_one_leaves_room_for_training() -> None:
    smaller = plan_end(SPEEDS, **ASKED, time_s=600.0, used_s=60.0)
    assert smaller.shots == 0 and smaller.test_rows == FEWEST_TEST_ROWS and smaller.general
    tight = plan_end(SPEEDS, **ASKED, time_s=330.0, used_s=80.0)
    assert tight.test_rows < FEWEST_TEST_ROWS and not tight.general and "of 60 test rows" in tight.note
    assert tight.reserve_s <= LEFT_SHARE * (330.0 - 80.0) and "forgotten" in tight.note
    least = plan_end(SPEEDS, **ASKED, time_s=90.0, used_s=80.0)
    assert least.test_rows == FEWEST_AT_ALL and least.reserve_s == 2 * 24 / 5 + 3 * 8 * 1.7 + EXPORT_S


def test_time_already_used_counts() -> None:
    early, late = (plan_end(SPEEDS, **ASKED, time_s=600.0, used_s=used) for used in (0.0, 400.0))
    assert early.reserve_s > late.reserve_s


def test_comparing_leaves_the_time_that_the_export_needs() -> None:
    assert before_export(None) is None
    assert before_export(100 + EXPORT_S) == 100
    assert before_export(EXPORT_S) == EXPORT_S / 2, "some rows have to be compared, or nothing can be said"
    assert before_export(0.0) == 0.0
