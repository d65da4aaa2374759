"""The forecast of a fit: seconds for each phase, memory, disk and money, each as an interval.

It reserves the re-evaluation and the final comparison from the time budget, gives the default LoRA its share, and
says how many trials the rest pays for. Sources of the rates, best first: a probe, earlier runs on this machine, a
short calibration, a table (see `rates`). Corrections learnt from earlier forecasts are applied to the seconds per
token and to the peak memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.cost.interval import Interval, total
from foretune.cost.memory import peak
from foretune.cost.phases import Phase, UnitTimes, export_bytes, fixed_phases, run_seconds, unit_times
from foretune.cost.placement import Placement
from foretune.cost.request import ForecastRequest
from foretune.errors import BudgetError
from foretune.units import format_duration

DEFAULT_RUN_SHARE = 0.35
"""Where the default LoRA would take more of the time budget than this, every run gets a shortened horizon."""

MEMORY = "memory_bytes"
"""The quantity under which a forecast peak and its truth are remembered."""

DEFAULT_RUN, ONLY_RUN, OTHER_RUNS = "default LoRA", "the one run", "other trials"
SEARCH_PHASES = (DEFAULT_RUN, ONLY_RUN, OTHER_RUNS)
"""The phases that train; the others of the time budget are reserved from it."""

_TRIAL_SHARE = Interval(0.35, 0.6, 1.0)  # of a full run: bad configurations stop at an early rung
_CHECKPOINTS_KEPT = Interval(2.0, 4.0, 8.0)  # best, last, and the paused that promise something
_ROUNDING = 1e-6  # a share of steps that is whole but for the last bit
_CHECKPOINT_BYTES = 12.0  # a float32 master and two moments of each trained parameter
_MEASURED_MEMORY = 1.05
_SECONDS_PER_HOUR = 3600.0
_TOKEN_CACHE_BYTES = 12.0  # ids, target mask and offsets of one token


@dataclass(frozen=True)
class Forecast:
    """What a fit will take."""

    units: UnitTimes
    steps_per_run: int
    """Optimiser steps of one run, after shortening"""
    horizon_share: float
    """1 when a run gets all its epochs; less when the time budget shortens every run"""
    phases: tuple[Phase, ...]
    trials: Interval
    seconds: Interval
    """From start to end"""
    memory_bytes: Interval
    disk_bytes: Interval
    money: Interval | None
    source: str
    """Where the speed comes from"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form: every interval as [low, value, high]."""
        return {
            "seconds": self.seconds.to_json(),
            "phases": [{"name": p.name, "seconds": p.seconds.to_json(), "in_budget": p.in_budget} for p in self.phases],
            "seconds_per_step": self.units.step.to_json(),
            "train_tokens_per_s": self.units.train_tokens_per_s.to_json(),
            "score_tokens_per_s": self.units.score_tokens_per_s.to_json(),
            "steps_per_run": self.steps_per_run,
            "horizon_share": self.horizon_share,
            "trials": self.trials.to_json(),
            "memory_bytes": self.memory_bytes.to_json(),
            "disk_bytes": self.disk_bytes.to_json(),
            "money": None if self.money is None else self.money.to_json(),
            "source": self.source,
        }


def forecast(request: ForecastRequest, placement: Placement) -> Forecast:
    """The forecast for ``request`` laid out as ``placement`` says. Raises `BudgetError` for a budget below one step."""
    units = unit_times(request)
    before, after = fixed_phases(request, units)
    first = unit_times(request, request.first_run)
    full_steps = request.first_run.steps(request.data.train_rows)
    share = _horizon_share(request, first, full_steps, before, after)
    steps = max(1, int(full_steps * share + _ROUNDING))
    run_s = run_seconds(request, first, steps)
    trials, others = _search(request, steps, run_s, run_seconds(request, units, steps), before, after)
    first_run = Phase(ONLY_RUN if one_alone(trials) else DEFAULT_RUN, run_s)
    phases = (*before, first_run, Phase(OTHER_RUNS, others), *after)
    whole = total(phase.seconds for phase in phases)
    if request.budget.kind == "time":
        whole = _stopped_by_clock(request, phases, whole)
    money = None
    if request.price_per_hour is not None:
        money = whole.times(request.price_per_hour / _SECONDS_PER_HOUR)
    return Forecast(
        units=units,
        steps_per_run=steps,
        horizon_share=share,
        phases=phases,
        trials=trials,
        seconds=whole,
        memory_bytes=_memory(request, placement),
        disk_bytes=_disk(request),
        money=money,
        source="a probe with the weights loaded" if request.measured is not None else request.rates.source,
    )


def one_alone(trials: Interval) -> bool:
    """Whether a single configuration is trained, which need not be the default LoRA."""
    return round(trials.high) == 1


def minimum_seconds(request: ForecastRequest, units: UnitTimes) -> float:
    """The smallest useful time budget: probe, base model, one step, re-evaluation and comparison at their values."""
    before, after = fixed_phases(request, units)
    return total(p.seconds for p in (*before, *after) if p.in_budget).value + units.step.value


def _horizon_share(
    request: ForecastRequest, units: UnitTimes, full_steps: int, before: list[Phase], after: list[Phase]
) -> float:
    """The share of its epochs that every run gets; raises `BudgetError` when not even a step is paid for."""
    budget = request.budget
    if budget.kind == "steps":
        _refuse_count(budget.total, "steps")
        return min(1.0, (request.horizon_steps or budget.total) / full_steps)
    if budget.kind == "trials":
        _refuse_count(budget.total, "trials")
        return 1.0
    run_s = run_seconds(request, units, full_steps).value
    if budget.total <= 0 or budget.total < units.step.value:
        least = minimum_seconds(request, units)
        raise BudgetError(
            f"a time budget of {format_duration(max(0.0, budget.total))} does not pay for one training step"
            f" ({format_duration(units.step.value)} here).",
            remedy=f"Give at least --time {_round_up(least)}; a full run of the default takes"
            f" {format_duration(run_s)}.",
        )
    if request.horizon_steps is not None:
        return min(1.0, request.horizon_steps / full_steps)
    room = budget.total - total(p.seconds for p in (*before, *after) if p.in_budget).value
    allowed = min(DEFAULT_RUN_SHARE * budget.total, room) - run_seconds(request, units, 0).value
    return min(1.0, max(1 / full_steps, allowed / units.step.value / full_steps))


def _refuse_count(count: float, unit: str) -> None:
    if count < 1:
        raise BudgetError(f"a budget of {count:g} {unit} trains nothing.", remedy="Give at least 1.")


def _round_up(seconds: float) -> str:
    """A duration that the command line reads and that is not below ``seconds``."""
    return f"{int(seconds) + 1}s" if seconds < 120 else f"{int(seconds // 60) + 1}m"


def _search(
    request: ForecastRequest, steps: int, first_s: Interval, run_s: Interval, before: list[Phase], after: list[Phase]
) -> tuple[Interval, Interval]:
    """(number of trials, the default included; seconds of the others).

    The default takes ``first_s``, every other one a part of ``run_s``; a whole run has ``steps``.
    """
    one = Interval(
        run_s.low * _TRIAL_SHARE.low, run_s.value * _TRIAL_SHARE.value, run_s.high * _TRIAL_SHARE.high
    )  # fmt: skip
    if request.budget.kind == "steps":
        runs = max(0.0, request.budget.total / steps - 1)  # what is left pays for, in whole runs
        shares = (_TRIAL_SHARE.high, _TRIAL_SHARE.value, _TRIAL_SHARE.low)
        return Interval(*(1.0 + int(runs / share) for share in shares)), run_s.times(runs / request.workers)
    if request.budget.kind == "trials":
        others = request.budget.total - 1
        return Interval.exactly(request.budget.total), one.times(others / request.workers)
    reserved = total(p.seconds for p in (*before, *after) if p.in_budget) + first_s
    spare = [max(0.0, request.budget.total - used) for used in (reserved.high, reserved.value, reserved.low)]
    counts = (spare[0] / one.high, spare[1] / one.value, spare[2] / one.low)
    return (
        Interval(*(1.0 + int(count * request.workers) for count in counts)),
        Interval(spare[0], spare[1], spare[2]),
    )


def _stopped_by_clock(request: ForecastRequest, phases: tuple[Phase, ...], whole: Interval) -> Interval:
    """A time budget ends the search: what it pays for takes at most the budget, whatever the speed."""
    outside = total(phase.seconds for phase in phases if not phase.in_budget)
    inside = total(phase.seconds for phase in phases if phase.in_budget)
    limit = max(request.budget.total, request.spent_s)
    return outside + Interval(min(inside.low, limit), min(inside.value, limit), min(inside.high, limit))


def _memory(request: ForecastRequest, placement: Placement) -> Interval:
    """Peak of all workers on one device. A probe measures the first run: what the advised one takes more is added."""
    expected = placement.peak.interval
    if request.measured is not None and request.measured.peak_bytes > 0:
        run = request.first_run
        first = peak(request.shapes, placement.layout.of_default_lora, trainable=run.trainable, full=run.full)
        more = max(0.0, expected.value - first.total) if request.baseline else 0.0
        one = Interval.around(float(request.measured.peak_bytes), _MEASURED_MEMORY)
        one += Interval(0.0, more, more * expected.high / expected.value)
    else:
        one = request.correction.apply(MEMORY, expected)
    return one.times(request.workers)


def _disk(request: ForecastRequest) -> Interval:
    """Checkpoints that are kept, the export, cached tokens, and the model when it is still to be fetched."""
    checkpoint = request.run.trainable * _CHECKPOINT_BYTES
    data = request.data
    tokens = (data.train_rows + data.validation_rows + data.test_rows) * data.row.total * _TOKEN_CACHE_BYTES
    fetched = request.fetch_bytes + (request.shapes.parameters * 2 if request.fetch_bytes else 0)
    kept = Interval(
        _CHECKPOINTS_KEPT.low * checkpoint, _CHECKPOINTS_KEPT.value * checkpoint, _CHECKPOINTS_KEPT.high * checkpoint
    )
    return kept + Interval.exactly(export_bytes(request) + tokens + fetched)
