"""Seconds and memory of a configuration beside those of the default LoRA, learnt from earlier runs.

log seconds = log(work / speed of the machine) + trees + bias of task and machine. The first term comes from outside
(the probe's speeds in a fit, tokens and parameters in a replay), the bias follows every observed step (`search.pace`).
What is learnt here is the middle: which methods, ranks and targets are slower or larger, as a factor. Machines with an
accelerator and machines without one say nothing of each other: where kernels are launched one by one, a wider layer
costs no time and a larger batch saves some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from foretune.catalogue.methods.measured import step_factor
from foretune.search.encoding import NOTHING, Encoding, Floats
from foretune.search.past_tasks import KEPT, PastCurve, PastTask
from foretune.search.trees import Trees, grow
from foretune.seeding import derive

METHOD = "method"
FEWEST_RUNS = 20
LARGEST_FACTOR = 8.0
"""Factors beyond are noise of a busy machine."""
PASSES = 3
"""Of settings and of what is left of each task and machine, in turn"""

Quantity = Callable[[PastCurve], float]


def seconds_per_token(curve: PastCurve) -> float:
    """Of training; NaN where it is not known."""
    return curve.train_s / curve.tokens if curve.tokens > 0 and curve.train_s > 0 else math.nan


def peak_bytes(curve: PastCurve) -> float:
    """Peak memory; NaN where it is not known."""
    return float(curve.peak_bytes) if curve.peak_bytes > 0 else math.nan


def relative(
    tasks: Sequence[PastTask],
    encoding: Encoding,
    quantity: Quantity,
    rows: Sequence[Mapping[str, float | str]],
    against: Mapping[str, float | str],
    seed: int,
    *,
    accelerated: bool = False,
) -> Floats:
    """(rows,): factor of ``quantity`` of each described configuration over that of ``against``; 1 where unknown.

    ``accelerated`` says what kind of machine is asked about.
    """
    trees = _learnt(tuple(tasks), encoding, quantity, seed, accelerated)
    if trees is None:
        return np.ones(len(rows))
    found, limit = trees.predict(encoding.table([*rows, against])), math.log(LARGEST_FACTOR)
    return np.asarray(np.exp(np.clip(found[:-1] - found[-1], -limit, limit)))


@lru_cache(maxsize=2 * KEPT)
def _learnt(
    tasks: tuple[PastTask, ...], encoding: Encoding, quantity: Quantity, seed: int, accelerated: bool
) -> Trees | None:
    """Trees from settings to the log of ``quantity``; None where too few runs tell.

    What a task and machine take on the whole is taken out, so that only what the settings change is left: first the
    median, then, because each may have run other settings, the median of what the settings do not explain.
    """
    inputs, logs = [], []
    for curves in _together(tasks, accelerated):
        values = np.asarray([quantity(curve) for curve in curves])
        known = np.isfinite(values) & (values > 0)
        if not known.any():
            continue
        inputs.append(encoding.table([curve.row for curve in curves])[known])
        logs.append(np.log(values[known]))
    if sum(map(len, logs)) < FEWEST_RUNS:
        return None
    x, limit = np.concatenate(inputs), math.log(LARGEST_FACTOR)
    ends = np.cumsum([len(part) for part in logs])[:-1]
    explained = [np.zeros(len(part)) for part in logs]
    for _ in range(PASSES):
        y = np.concatenate([part - np.median(part - own) for part, own in zip(logs, explained, strict=True)])
        trees = grow(x, np.clip(y, -limit, limit), encoding.categorical, derive(seed, "search", "cost"))
        explained = np.split(trees.predict(x), ends)
    return trees


def untried_methods(
    rows: Sequence[Mapping[str, float | str]], encoding: Encoding | None, *, accelerated: bool = False
) -> Floats:
    """(rows,): factor of the seconds of methods that no earlier run has tried over the first row's, as a benchmark
    knows them; 1 where both were tried. Without ``encoding`` nothing was."""
    known = () if encoding is None else dict(encoding.categories).get(METHOD, ())
    methods = [str(row.get(METHOD, NOTHING)) for row in rows]
    factors = [1.0 if method in known else step_factor(method, accelerated=accelerated) for method in methods]
    return np.asarray(factors) / factors[0]


def _together(tasks: Sequence[PastTask], accelerated: bool) -> Iterator[list[PastCurve]]:
    """The runs of each task and machine of a kind."""
    for task in tasks:
        by_machine: dict[str, list[PastCurve]] = {}
        for curve in task.curves:
            if curve.accelerated == accelerated:
                by_machine.setdefault(curve.machine, []).append(curve)
        yield from by_machine.values()
