"""A strategy driven through a world by events in virtual time: asks, tells and workers as in a fit.

The searcher is the real one (`search.ask_tell`) with its budget in virtual seconds. What it forecasts is the strategy's
own belief about costs; what a run takes is what it took. With ``asks_take_time`` the processor seconds of asking and
telling are added to the clock: on tasks of minutes a slow searcher pays for its slowness.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.files import fingerprint
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.fidelity import LAST_LEVEL, LEVELS, level_step
from foretune.search.replay.world import Entry, World
from foretune.search.runs import Run, Strategy
from foretune.search.types import Done, Lease, Observation, Score, Wait

FAILURE_SHARE = 0.5
"""A run that fails before a rung has spent half of the stretch to it."""
MOST_EVENTS = 20_000
NEVER_S = 1e12
"""Virtual workers do not fall silent."""


@dataclass(frozen=True)
class Moment:
    """What was at hand from a time on."""

    seconds: float
    tested: float
    """Test gain of the run that is best on validation so far"""


@dataclass(frozen=True)
class Trace:
    """One search through a world."""

    moments: tuple[Moment, ...]
    runs: int
    asked_s: float
    """Processor seconds of asking and telling"""
    first: float
    """Test gain of the first run that was trained in whole; NaN where none was"""
    forecasts: tuple[tuple[float, float], ...] = ()
    """(forecast, measured) seconds of every lease"""

    def at(self, seconds: float) -> float | None:
        """The test gain at hand at a time; None before anything was."""
        known = [moment.tested for moment in self.moments if moment.seconds <= seconds]
        return known[-1] if known else None


def forecast_of(world: World, prior_cost: Mapping[str, float]) -> Callable[[Mapping[str, Any], int, int], float]:
    """Forecast seconds as in a fit: those of the world's median run, training times what the strategy believes of the
    configuration's speed, evaluation for all alike."""
    whole = [entry for entry in world.entries if entry.fails_at is None]
    training = np.median([entry.training for entry in whole], axis=0)
    evaluation = np.median([entry.seconds - entry.training for entry in whole], axis=0)
    levels = _levels(world)
    steps = [0, *levels]
    parts = [[0.0, *(float(part[level]) for level in levels.values())] for part in (training, evaluation)]

    def cost(config: Mapping[str, Any], from_step: int, to_step: int) -> float:
        trained, evaluated = (
            float(np.interp(to_step, steps, part) - np.interp(from_step, steps, part)) for part in parts
        )
        return trained * prior_cost.get(fingerprint(dict(config)), 1.0) + evaluated

    return cost


def _levels(world: World) -> dict[int, int]:
    """The level of every rung's step; where a run is a single step, it is the last."""
    return {level_step(world.horizon, level): level for level in range(LEVELS)}


def simulate(
    strategy: Strategy,
    world: World,
    *,
    workers: int = 1,
    seed: int = 0,
    asks_take_time: bool = False,
    prior_cost: Mapping[str, float] | None = None,
    budget_s: float | None = None,
) -> Trace:
    """The trace of ``strategy`` in ``world`` until its budget is spent."""
    total = budget_s or world.budget_s
    budget, cost = Budget("time", total, workers=workers), forecast_of(world, prior_cost or {})
    search = AskTell(strategy, budget, cost, seed=seed, silence_s=NEVER_S)
    entries, levels = {fingerprint(dict(entry.config)): entry for entry in world.entries}, _levels(world)
    clock, asked, busy, order = 0.0, 0.0, 0, itertools.count()
    queue: list[tuple[float, int, Lease, Observation]] = []
    moments: list[Moment] = []
    forecasts: list[tuple[float, float]] = []
    first = float("nan")
    for _ in range(MOST_EVENTS):
        if busy < workers:
            started = time.process_time()
            answer = search.ask(workers - busy, clock)
            passed = time.process_time() - started
            asked += passed
            clock += passed if asks_take_time else 0.0
            if isinstance(answer, Done):
                break
            if not isinstance(answer, Wait):
                for lease in answer:
                    busy += 1
                    script = _script(lease, entries[fingerprint(dict(lease.config))], levels, clock)
                    for at, seen in script:
                        heapq.heappush(queue, (at, next(order), lease, seen))
                    forecasts.append((lease.seconds, script[-1][0] - clock))
                continue
        if not queue:
            break
        at, _, lease, seen = heapq.heappop(queue)
        clock = max(clock, at)
        started = time.process_time()
        search.tell(lease.id, lease.attempt, seen, clock)
        asked += time.process_time() - started
        busy -= int(seen.final)
        if clock > total:
            continue
        best = _best(search.runs, entries, levels)
        if best is not None:
            moments.append(Moment(clock, best))
        run = search.run(lease.run)
        if run.status == "finished" and first != first:
            first = float(entries[fingerprint(dict(run.config))].tested[LAST_LEVEL])
    return Trace(tuple(moments), len(search.runs), asked, first, tuple(forecasts))


def _script(lease: Lease, entry: Entry, levels: Mapping[int, int], start: float) -> list[tuple[float, Observation]]:
    """(time, observation) of a lease as it really went."""
    found: list[tuple[float, Observation]] = []
    before, clock = levels.get(lease.from_step, -1), start
    for step in lease.rungs:
        level = levels[step]
        spent = float(entry.seconds[level] - (entry.seconds[before] if before >= 0 else 0.0))
        if entry.fails_at is not None and level >= entry.fails_at:
            spent *= FAILURE_SHARE
            clock += spent
            found.append((clock, Observation(step, train_s=spent, status="diverged")))
            return found
        clock += spent
        loss = float(np.exp(-entry.gains[level]))
        metrics = {"loss": Score(loss, entry.errors * loss, 64)}
        found.append((clock, Observation(step, metrics, train_s=spent, final=step == lease.to_step)))
        before = level
    return found


def _best(runs: tuple[Run, ...], entries: Mapping[str, Entry], levels: Mapping[int, int]) -> float | None:
    """Test gain of the run that is best on validation: at its last rung, as it would be handed over."""
    best: tuple[float, float] | None = None
    for run in runs:
        if run.failed or not run.curve:
            continue
        level = levels[max(run.curve)]
        entry = entries[fingerprint(dict(run.config))]
        pair = float(entry.gains[level]), float(entry.tested[level])
        best = max(best, pair) if best is not None else pair
    return None if best is None else best[1]
