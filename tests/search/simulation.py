"""A virtual executor: synthetic loss curves, a virtual clock, any number of workers, any failure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from foretune.search.ask_tell import AskTell
from foretune.search.types import Done, Lease, Observation, Score, Wait
from foretune.seeding import generator

STEP_S = 1.0
BEST_RATE = 6e-4


def cost(config: Mapping[str, Any], from_step: int, to_step: int) -> float:
    """Forecast: one second a step."""
    return STEP_S * (to_step - from_step)


def loss(config: Mapping[str, Any], step: int, horizon: int, best_rate: float = BEST_RATE) -> float:
    """A quadratic bowl in the log learning rate, approached along the run."""
    off = math.log10(config["learning_rate"] / best_rate)
    return 1.0 + 0.8 * off**2 + 1.2 * math.exp(-4.0 * step / horizon)


def observe(
    lease: Lease, step: int, previous: int, *, speed: float = 1.0, best_rate: float = BEST_RATE, noise: float = 0.0
) -> Observation:
    """What an honest worker reports at ``step``."""
    shift = noise * float(generator(lease.seed, lease.run, step).standard_normal())
    value = loss(lease.config, step, lease.horizon, best_rate) + shift
    return Observation(
        step=step,
        metrics={"loss": Score(value, 0.01, 64)},
        train_s=STEP_S * speed * (step - previous),
        tokens=100 * (step - previous),
        final=step == lease.to_step,
    )


Script = Callable[[Lease], list[Observation]]


def honest(lease: Lease, **options: float) -> list[Observation]:
    """One observation at every rung of a lease."""
    steps = [lease.from_step, *lease.rungs]
    return [observe(lease, step, before, **options) for before, step in itertools.pairwise(steps)]


def drive(searcher: AskTell, workers: int, script: Script = honest, limit: int = 10_000) -> tuple[float, list[Lease]]:
    """Run the search to its end under a virtual clock; returns the wall time and the leases as handed out."""
    now, busy, handed, order = 0.0, 0, [], 0
    queue: list[tuple[float, int, Lease, Observation]] = []
    for _ in range(limit):
        if busy < workers:
            answer = searcher.ask(workers - busy, now)
            if isinstance(answer, Done):
                return now, handed
            if not isinstance(answer, Wait):
                for lease in answer:
                    handed.append(lease)
                    busy += 1
                    at = now
                    for seen in script(lease):
                        at += seen.train_s + seen.eval_s
                        order += 1
                        heapq.heappush(queue, (at, order, lease, seen))
                continue
        now, _, lease, seen = heapq.heappop(queue)
        searcher.tell(lease.id, lease.attempt, seen, now)
        busy -= int(seen.final)
    raise AssertionError("the search does not end")
