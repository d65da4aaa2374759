"""What earlier tasks say about a configuration: gradient-boosted trees, bagged over tasks.

``end``: trees from (configuration, task features) to the scaled gain of a whole run, one ensemble for each bag of
tasks drawn with replacement; their disagreement is how uncertain it is that tasks are alike. A task that is not in a
bag is predicted by that bag as a new task would be: from these out-of-bag errors come the residual spread, the
spread of slopes and the length-scales of the on-task process, with no second training.

``path``: from (configuration, task features, rung) to how far the gain at a rung lies below the end's: two ensembles,
each from every second task, whose mean is the prediction and whose errors on the other's tasks are its spread.

Source: trees on normalised scores as in Auto-sklearn 2's and SMAC's surrogates; bagging over tasks is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from foretune.search.encoding import Encoding, Facts, Floats, described, features
from foretune.search.fidelity import LAST_LEVEL, LEVELS
from foretune.search.past_tasks import KEPT, PastTask
from foretune.search.trees import Trees, grow
from foretune.seeding import derive, generator

BAGS = 10
FEWEST_PATHS = 10
"""Fewer points before an end teach no course."""


@dataclass(frozen=True, eq=False)
class TransferMean:
    """Fitted trees; `fit` makes one."""

    encoding: Encoding
    tasks: tuple[PastTask, ...]
    ends: tuple[Trees, ...]
    """One ensemble a bag"""
    drawn: tuple[Floats, ...]
    """(tasks,) for each bag: how often each task is in it"""
    path: tuple[Trees, ...]
    """Two, from tasks of even and of odd number; none where no run has a point before its end"""
    tables: tuple[Floats, ...]
    """(runs, columns + features) of each task: its runs beside its features"""

    def end(self, rows: Sequence[dict[str, float | str]], facts: Facts) -> Floats:
        """(bags, n): scaled gain of whole runs of ``rows`` (`encoding.described`) on the task of ``facts``."""
        table = joined(self.encoding, rows, features(facts))
        return np.stack([tree.predict(table) for tree in self.ends])

    def deficits(self, rows: Sequence[dict[str, float | str]], facts: Facts) -> Floats:
        """(6, n): by how much the scaled gain at each rung lies below the end's; zero at the end."""
        found = np.zeros((LEVELS, len(rows)))
        if self.path:
            table = joined(self.encoding, rows, features(facts))
            for level in range(LAST_LEVEL):
                found[level] = np.mean([half.predict(_at(table, level)) for half in self.path], axis=0)
        return found

    def unseen_deficits(self, number: int) -> Floats:
        """(6, runs): those of task ``number`` as predicted from the tasks of the other half."""
        return self._unseen_deficits[number]

    @cached_property
    def _unseen_deficits(self) -> list[Floats]:
        found: list[Floats] = [np.zeros((LEVELS, len(table))) for table in self.tables]
        for place, half in enumerate(self.path):
            others = range((place + 1) % 2, len(self.tables), 2)
            tables = [_at(self.tables[number], level) for number in others for level in range(LAST_LEVEL)]
            at = iter(_predicted(half, tables))
            for number in others:
                for level in range(LAST_LEVEL):
                    found[number][level] = next(at)
        return found

    def unseen(self, number: int) -> Floats:
        """(runs,): scaled gains of task ``number`` as the bags without it predict them; NaN where there is none."""
        return self._unseen[number]

    @cached_property
    def _unseen(self) -> list[Floats]:
        found: list[list[Floats]] = [[] for _ in self.tables]
        for tree, drawn in zip(self.ends, self.drawn, strict=True):
            others = [number for number, count in enumerate(drawn) if not count]
            for number, own in zip(others, _predicted(tree, [self.tables[each] for each in others]), strict=True):
                found[number].append(own)
        nothing = [np.full(len(table), math.nan) for table in self.tables]
        return [np.mean(own, axis=0) if own else none for own, none in zip(found, nothing, strict=True)]


def _predicted(trees: Trees, tables: Sequence[Floats]) -> list[Floats]:
    """The predictions for each of ``tables``, asked for together: every call has a price of its own."""
    if not tables:
        return []
    return np.split(trees.predict(np.concatenate(tables)), np.cumsum([len(table) for table in tables])[:-1])


def joined(encoding: Encoding, rows: Sequence[Any], own: Floats) -> Floats:
    """(n, columns + features): configurations beside the features of their task."""
    table = encoding.table(rows)
    return np.column_stack([table, np.tile(own, (len(rows), 1))])


def fit(tasks: Sequence[PastTask], seed: int, *, bags: int = BAGS) -> TransferMean:
    """Trees over ``tasks``, of which there is at least one; the same ones for the same tasks."""
    return _fit(tuple(tasks), seed, bags)


@lru_cache(maxsize=KEPT)
def _fit(tasks: tuple[PastTask, ...], seed: int, bags: int) -> TransferMean:
    encoding = Encoding.of(curve.row for task in tasks for curve in task.curves)
    tables = [joined(encoding, [curve.row for curve in task.curves], task.features) for task in tasks]
    ends = [task.scaled(np.asarray([curve.final for curve in task.curves])) for task in tasks]
    categorical = [*encoding.categorical, *[False] * len(tasks[0].features)]
    drawn = [_draw(len(tasks), seed, bag) for bag in range(bags)]
    trees = tuple(
        _trees(tables, ends, counts, categorical, derive(seed, "search", "trees", bag))
        for bag, counts in enumerate(drawn)
    )
    return TransferMean(encoding, tasks, trees, tuple(drawn), _path(tasks, tables, categorical, seed), tuple(tables))


def _draw(tasks: int, seed: int, bag: int) -> Floats:
    chosen = generator(seed, "search", "bag", bag).integers(tasks, size=tasks)
    return np.bincount(chosen, minlength=tasks).astype(np.float64)


def _trees(
    tables: Sequence[Floats], ends: Sequence[Floats], counts: Floats, categorical: list[bool], seed: int
) -> Trees:
    """One ensemble; every task counts alike however many runs it has."""
    kept = [number for number, count in enumerate(counts) if count > 0]
    x = np.concatenate([tables[k] for k in kept])
    y = np.concatenate([ends[k] for k in kept])
    weight = np.concatenate([np.full(len(ends[k]), counts[k] / len(ends[k])) for k in kept])
    known = np.isfinite(y)
    return grow(x[known], y[known], categorical, seed, weight[known] / weight.mean())


def _at(table: Floats, level: int) -> Floats:
    return np.column_stack([table, np.full(len(table), float(level))])


def _path(tasks: Sequence[PastTask], tables: Sequence[Floats], categorical: list[bool], seed: int) -> tuple[Trees, ...]:
    parts: list[tuple[list[Floats], list[Floats]]] = [([], []), ([], [])]
    for number, (task, table) in enumerate(zip(tasks, tables, strict=True)):
        gains = np.stack([task.scaled(curve.gains) for curve in task.curves])
        for level in range(LAST_LEVEL):
            below = gains[:, LAST_LEVEL] - gains[:, level]
            known = np.isfinite(below)
            parts[number % 2][0].append(_at(table, level)[known])
            parts[number % 2][1].append(below[known])
    halves = [(np.concatenate(inputs), np.concatenate(below)) for inputs, below in parts if inputs]
    if min(len(below) for _, below in halves) < FEWEST_PATHS:
        return ()
    if len(halves) == 1:
        halves *= 2
    return tuple(
        grow(inputs, below, [*categorical, False], derive(seed, "search", "path", half))
        for half, (inputs, below) in enumerate(halves)
    )


def rows_of(configs: Sequence[Any], facts: Facts) -> list[dict[str, float | str]]:
    """The described form of ``configs`` on a task."""
    return [described(config, facts) for config in configs]
