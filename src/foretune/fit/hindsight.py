"""Forecast beside truth: what a fit was said to take, before the probe and after it, and what it took.

The rows go into the report; the store keeps what the next forecast on this machine learns from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.cost.correction import Correction
from foretune.cost.forecast import DEFAULT_RUN, MEMORY, ONLY_RUN
from foretune.cost.interval import Interval
from foretune.cost.phases import RUN_SECONDS, unit_times
from foretune.fit.history import SPEED
from foretune.fit.outlook import default_run
from foretune.fit.plan import Plan, operations_per_token
from foretune.report.record import ForecastRow
from foretune.search.runs import Run


@dataclass(frozen=True)
class Seen:
    """A finished fit as far as it was forecast."""

    plan: Plan
    refined: Plan
    """The plan with its forecast made again from what the probe measured"""
    probe: Mapping[str, Any]
    runs: Sequence[Run]
    used_s: float
    """Seconds of the whole fit"""


AFTER_PROBE = ", after the probe"
DEFAULT_RUN_NAME = f"{DEFAULT_RUN} run"


def forecast_rows(seen: Seen) -> tuple[ForecastRow, ...]:
    """Forecast beside truth: before anything was measured, and after the probe."""
    plan, probe = seen.plan, seen.probe
    units = unit_times(plan.request, plan.request.first_run)
    peak = float(max(probe["peak_bytes"], *(run.peak_bytes for run in seen.runs)))
    quantities = [
        ("peak memory", "bytes", plan.forecast.memory_bytes, peak),
        ("training speed", "tokens/s", units.train_tokens_per_s, float(probe["train_tokens_per_s"])),
        ("scoring speed", "tokens/s", units.score_tokens_per_s, float(probe["score_tokens_per_s"])),
    ]
    for made, suffix in ((plan, ""), (seen.refined, AFTER_PROBE)):
        for name, run in _first_runs(seen.runs):
            quantities.append((f"{name}{suffix}", "s", *_seconds(made, run)))
        quantities.append((f"whole run{suffix}", "s", made.forecast.seconds, seen.used_s))
    quantities.append((f"peak memory{AFTER_PROBE}", "bytes", seen.refined.forecast.memory_bytes, peak))
    return tuple(
        ForecastRow(name, unit, interval.low, interval.value, interval.high, measured)
        for name, unit, interval, measured in quantities
    )


def _first_runs(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """The run whose seconds were forecast, by what it is called: the default LoRA, or the only one; or none."""
    timed = [run for run in runs if run.step and run.train_s + run.eval_s > 0]
    default = [(DEFAULT_RUN_NAME, run) for run in timed if run.is_default]
    return default[:1] or [(ONLY_RUN, run) for run in timed if len(runs) == 1]


def _seconds(plan: Plan, run: Run) -> tuple[Interval, float]:
    """Forecast and measured seconds of the first run as far as it was trained."""
    return default_run(plan.request, run.horizon, run.step), run.train_s + run.eval_s


def learnt_rows(seen: Seen) -> dict[str, tuple[float, float, float, float]]:
    """What the store keeps for the next forecast: ``quantity: (low, value, high, measured)``.

    Forecasts are kept as they were before earlier runs corrected them, so that corrections do not undo one another;
    speeds as operations per second, which hold for other rows and settings as well.
    """
    plan = seen.plan
    layout = plan.placement.layout
    rows = {row.quantity: row for row in forecast_rows(seen)}
    kept: dict[str, tuple[float, float, float, float]] = {}

    def keep(quantity: str, interval: Interval, measured: float | None) -> None:
        if measured is not None:
            kept[quantity] = (interval.low, interval.value, interval.high, measured)

    keep(MEMORY, plan.placement.peak.interval, rows["peak memory"].measured)
    whole = rows["whole run"]
    keep("seconds", Interval(whole.low, whole.value, whole.high), whole.measured)
    uncorrected = replace(seen.refined, request=replace(seen.refined.request, correction=Correction()))
    for name, run in _first_runs(seen.runs):
        if name == DEFAULT_RUN_NAME:  # another method's seconds say nothing of it
            keep(RUN_SECONDS, *_seconds(uncorrected, run))
    for work, name in (("train", "training speed"), ("score", "scoring speed")):
        row, factor = rows[name], operations_per_token(plan, work)
        measured = None if row.measured is None else row.measured * factor
        keep(
            f"{SPEED}:{work}:{layout.device}:{layout.dtype}",
            Interval(row.low, row.value, row.high).times(factor),
            measured,
        )
    return kept
