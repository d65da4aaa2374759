"""Forecast beside truth: what a fit was said to take, before the probe and after it, and what it took.

The rows go into the report; the store keeps what the next forecast on this machine learns from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.cost.correction import Correction
from foretune.cost.forecast import MEMORY
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
        found = _default_run(made, seen.runs)
        if found is not None:
            quantities.append((f"default LoRA run{suffix}", "s", *found))
        quantities.append((f"whole run{suffix}", "s", made.forecast.seconds, seen.used_s))
    quantities.append((f"peak memory{AFTER_PROBE}", "bytes", seen.refined.forecast.memory_bytes, peak))
    return tuple(
        ForecastRow(name, unit, interval.low, interval.value, interval.high, measured)
        for name, unit, interval, measured in quantities
    )


def _default_run(plan: Plan, runs: Sequence[Run]) -> tuple[Interval, float] | None:
    """Forecast and measured seconds of the default LoRA as far as it was trained; None where it was not."""
    run = next((run for run in runs if run.arm == "default" and run.step), None)
    if run is None or run.train_s + run.eval_s <= 0:
        return None
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
    if (found := _default_run(uncorrected, seen.runs)) is not None:
        keep(RUN_SECONDS, *found)
    for work, name in (("train", "training speed"), ("score", "scoring speed")):
        row, factor = rows[name], operations_per_token(plan, work)
        measured = None if row.measured is None else row.measured * factor
        keep(
            f"{SPEED}:{work}:{layout.device}:{layout.dtype}",
            Interval(row.low, row.value, row.high).times(factor),
            measured,
        )
    return kept
