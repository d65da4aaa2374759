"""Axes and charts: round ticks, monotone scales, labels that never overlap, right decisions about logarithms."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.report.charts import WIDE, forecast_chart
from foretune.report.curves import curves_chart, curves_of
from foretune.report.record import CurvePoint, ForecastRow, Measure, RunRecord, Trial
from foretune.report.scales import Scale, log_ticks, nice_ticks, spread_labels, tick_labels

finite = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


def test_ticks_by_hand() -> None:
    assert nice_ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert nice_ticks(1.3, 3.83, 5) == [1.5, 2.0, 2.5, 3.0, 3.5]
    assert nice_ticks(2, 2, 5) == [2]
    assert log_ticks(0.9, 120, 9) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(1, 1e8, 5) == [1, 100, 1e4, 1e6, 1e8]
    assert tick_labels([0, 2.5, 5]) == ["0", "2.5", "5.0"]
    assert tick_labels([0, 50_000, 100_000]) == ["0", "50k", "100k"]
    assert tick_labels([-1, 0, 1]) == ["−1", "0", "1"]


@given(finite, st.floats(min_value=1e-9, max_value=1e12), st.integers(min_value=2, max_value=9))
def test_ticks_are_inside_even_and_few(low: float, span: float, count: int) -> None:
    high = low + span
    if high <= low or span < 1e-6 * abs(low):
        return
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * span
    assert 1 <= len(ticks) <= 2 * count + 2
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks) or max(abs(low), abs(high)) / span > 100


@given(st.floats(min_value=1e-6, max_value=1e6), st.floats(min_value=1.01, max_value=1e6), st.booleans())
def test_scales_keep_order_and_ends(low: float, factor: float, log: bool) -> None:
    scale = Scale(low, low * factor, 10.0, 500.0, log=log)
    assert scale.at(low) == pytest.approx(10) and scale.at(low * factor) == pytest.approx(500)
    assert scale.at(low * math.sqrt(factor)) <= scale.at(low * factor)
    assert scale.at(-1.0) == 10.0


@given(st.lists(st.floats(min_value=0, max_value=300), max_size=12))
def test_labels_never_overlap(wanted: list[float]) -> None:
    placed = spread_labels(wanted, 15.0, 0.0, 300.0)
    ordered = sorted(placed)
    assert all(b - a >= 15.0 - 1e-6 for a, b in pairwise(ordered))
    assert all(-1e-6 <= y <= 300.0 + 1e-6 for y in placed)
    if len(wanted) == 1:
        assert placed == wanted


def _trial(points: list[tuple[int, int, float]], **fields: object) -> Trial:
    curve = tuple(CurvePoint(s, t, 0.0, Measure(loss)) for s, t, loss in points)
    return Trial("r", {}, "", fields.pop("status", "ok"), 10, curve, **fields)  # type: ignore[arg-type]


def test_curves_are_over_tokens_where_all_know_them() -> None:
    known = _trial([(0, 0, 3.0), (10, 5000, 2.0)])
    unknown = _trial([(0, 0, 3.0), (10, 0, 2.0)])
    assert curves_of([known])[1] == "training tokens"
    curves, name = curves_of([known, unknown])
    assert name == "training steps" and curves[0].points[-1][0] == 10.0


def test_axes_turn_logarithmic_only_for_wide_ranges() -> None:
    short, long = _trial([(1, 1, 2.0), (10, 10, 1.9)]), _trial([(1, 1, 2.0), (1000, 1000, 1.5)])
    near = curves_chart([short], None)
    far = curves_chart([short, long], None)
    deep = curves_chart([_trial([(1, 1, 9.0), (10, 10, 0.2)])], None)
    assert near and far and deep
    assert "(log)" not in near(WIDE)
    assert "training tokens (log)" in far(WIDE) and "nats per token (log)" not in far(WIDE)
    assert "nats per token (log)" in deep(WIDE)


def test_the_curves_carry_the_unit_of_the_tasks_loss() -> None:
    drawn = curves_chart([_trial([(1, 1, 2.0), (10, 10, 1.9)])], None, "nats per row")
    assert drawn and "validation loss, nats per row" in drawn(WIDE) and "per token" not in drawn(WIDE)


def test_a_diverged_trial_does_not_flatten_the_others() -> None:
    good = _trial([(0, 0, 3.0), (10, 10, 1.0)], is_winner=True)
    bad = _trial([(0, 0, 3.0), (5, 5, 4000.0)], status="diverged")
    draw = curves_chart([good, bad], None)
    assert draw is not None
    chart = str(draw(WIDE))
    assert 'class="cross"' in chart and 'class="cut"' in chart and 'class="best"' in chart
    winner = chart.split("curve winner")[1].split('class="line"')[0]
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", winner)]
    assert max(heights) - min(heights) > 100


def test_no_scored_trial_means_no_chart(record: RunRecord) -> None:
    assert curves_chart([replace(record.trials[9])], None) is None
    assert curves_chart([], None) is None


def test_all_coordinates_are_finite(record: RunRecord) -> None:
    flat = [_trial([(0, 0, 1.0)]), _trial([(0, 0, 1.0), (1, 1, 1.0)], is_winner=True)]
    for trials in (flat, list(record.trials)):
        draw = curves_chart(trials, record.base_validation)
        assert draw is not None and not re.search(r"\b(nan|inf)\b", str(draw(WIDE)) + str(draw(340)))


def test_forecast_beyond_the_axis_is_clipped() -> None:
    draw = forecast_chart([ForecastRow("time", "s", 5.0, 10.0, 20.0, 5000.0), ForecastRow("zero", "s", 0.0, 0.0, 0.0)])
    assert draw is not None
    chart = str(draw(WIDE))
    assert "forecast above" in chart and "zero" not in chart
    assert forecast_chart([]) is None
