"""Experience spoiled on purpose: what a searcher that trusts it must survive.

Each takes tasks and gives tasks; the task that is searched is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from foretune.search.encoding import Facts, features
from foretune.search.fidelity import LAST_LEVEL
from foretune.search.past_tasks import PastTask
from foretune.seeding import generator

CORRUPTED_SHARE = 0.1
CORRUPTION = 10.0
"""Corrupted seconds are ten times too many or too few."""

Spoil = Callable[[Sequence[PastTask], int], tuple[PastTask, ...]]


def shuffled_labels(tasks: Sequence[PastTask], seed: int) -> tuple[PastTask, ...]:
    """Within each task the curves belong to other configurations."""
    found = []
    for number, task in enumerate(tasks):
        order = generator(seed, "replay", "shuffled", number).permutation(len(task.curves))
        curves = tuple(
            replace(task.curves[int(other)], config=curve.config, row=curve.row)
            for curve, other in zip(task.curves, order, strict=True)
        )
        found.append(replace(task, curves=curves))
    return tuple(found)


def flipped_sign(tasks: Sequence[PastTask], seed: int) -> tuple[PastTask, ...]:
    """What was above a task's median lies as far below it."""
    return tuple(
        replace(
            task,
            curves=tuple(
                replace(curve, gains=curve.gains - 2 * (curve.gains[LAST_LEVEL] - task.centre)) for curve in task.curves
            ),
        )
        for task in tasks
    )


def one_task(tasks: Sequence[PastTask], seed: int) -> tuple[PastTask, ...]:
    """A single earlier task."""
    return (tasks[int(generator(seed, "replay", "one").integers(len(tasks)))],)


def no_features(tasks: Sequence[PastTask], seed: int) -> tuple[PastTask, ...]:
    """Tasks of which nothing is known but their runs."""
    found = []
    for task in tasks:
        facts = Facts({}, task.facts.model, task.facts.steps)
        found.append(replace(task, facts=facts, features=features(facts)))
    return tuple(found)


def corrupted_costs(tasks: Sequence[PastTask], seed: int) -> tuple[PastTask, ...]:
    """A tenth of the runs took ten times as long, or a tenth of the time, by their records."""
    found = []
    for number, task in enumerate(tasks):
        stream = generator(seed, "replay", "costs", number)
        factors = [
            float(np.exp(np.log(CORRUPTION) * stream.choice((-1.0, 1.0)))) if stream.random() < CORRUPTED_SHARE else 1.0
            for _ in task.curves
        ]
        curves = tuple(
            replace(curve, seconds=curve.seconds * factor, train_s=curve.train_s * factor)
            for curve, factor in zip(task.curves, factors, strict=True)
        )
        found.append(replace(task, curves=curves))
    return tuple(found)


ADVERSARIES: dict[str, Spoil] = {
    "shuffled-labels": shuffled_labels,
    "flipped-sign": flipped_sign,
    "one-task": one_task,
    "no-features": no_features,
    "corrupted-costs": corrupted_costs,
}
