"""Dealing units of rows out to splits or folds: what belongs together stays together, labels stay balanced.

A *unit* is a set of rows that may not be separated: one group, one cluster of duplicates, the answers to one prompt,
or what these join. A prompt that is a large part of the data (`_MOST_ANSWERS`) is an instruction, and joins none.
Which split a unit goes to depends on its content and the seed, not on where its rows stand in the file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foretune.data.deduplicate import Clusters, UnionFind, asked_by
from foretune.data.example import Example
from foretune.seeding import derive

_NUMBER_BANDS = 5
"""Regression labels are balanced over fifths of their range of ranks."""
_FEWEST_FOR_BANDS = 50
_MOST_ANSWERS, _MOST_ANSWERS_SHARE = 10, 0.05
"""A prompt that more rows than both have in common asks for something new each time (write a poem)."""
_LARGEST_PROMPT_SHARE = 0.1
"""Nor does a prompt of more of few rows join its answers: what is left could not be split."""
_FEWEST_OF_A_LABEL = 3
"""A label with fewer units stays in training: it cannot be both learned and measured."""


@dataclass(frozen=True)
class Unit:
    """Rows that stay together. ``key`` orders units at random but reproducibly; ``stratum`` is what is balanced:
    what most of the rows have of ``strata``, which all of them have together."""

    rows: tuple[int, ...]
    stratum: str
    key: tuple[int, str]
    strata: frozenset[str] = frozenset()


def units_of(examples: Sequence[Example], cluster: Clusters, *, seed: int) -> list[Unit]:
    """The units of ``examples`` in the order of their keys. ``cluster``: (rows,) int64."""
    sets = UnionFind(len(examples))
    first_of_cluster: dict[int, int] = {}
    first_of_group: dict[str, int] = {}
    for row, example in enumerate(examples):
        sets.union(first_of_cluster.setdefault(int(cluster[row]), row), row)
        if example.group is not None:
            sets.union(first_of_group.setdefault(example.group, row), row)
    for rows in _of_one_prompt(examples):
        for row in rows[1:]:
            sets.union(rows[0], row)
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        members[sets.find(row)].append(row)
    strata = _strata(examples)
    units = []
    for rows in members.values():
        name = min(examples[row].id for row in rows)
        stratum = min(Counter(strata[row] for row in rows).items(), key=lambda item: (-item[1], item[0]))[0]
        own = frozenset(strata[row] for row in rows)
        units.append(Unit(tuple(rows), stratum, (derive(seed, "split", name), name), own))
    return sorted(units, key=lambda unit: unit.key)


def _of_one_prompt(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Rows that ask the same; none of a prompt that very many rows share."""
    asking: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        asking[asked_by(example)].append(row)
    most = max(_MOST_ANSWERS, _MOST_ANSWERS_SHARE * len(examples))
    most = min(most, max(2.0, _LARGEST_PROMPT_SHARE * len(examples)))
    return (rows for rows in asking.values() if len(rows) <= most)


def _strata(examples: Sequence[Example]) -> list[str]:
    """What each row is balanced by: its class, the fifth its number is in, else its task."""
    numbers = [example.label for example in examples if isinstance(example.label, float)]
    if numbers and len(numbers) == len(examples):
        if len(numbers) < _FEWEST_FOR_BANDS:
            return [""] * len(examples)
        edges = np.quantile(numbers, np.linspace(0, 1, _NUMBER_BANDS + 1)[1:-1])
        return [str(int(np.searchsorted(edges, number, side="right"))) for number in numbers]
    return [str(example.label) if example.label is not None else example.task or "" for example in examples]


def deal(units: Sequence[Unit], wanted: Mapping[str, int]) -> dict[str, list[Unit]]:
    """Units for each split of ``wanted`` (rows per split), the rest under ``train``.

    Each stratum gives its proportional share; a unit that is larger than what its stratum still owes a split goes
    to the next split or stays in training, so no split exceeds what is wanted.
    """
    result: dict[str, list[Unit]] = {**{name: [] for name in wanted}, "train": []}
    by_stratum: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        by_stratum[unit.stratum].append(unit)
    sizes = {
        stratum: sum(len(unit.rows) for unit in members)
        for stratum, members in by_stratum.items()
        if len(by_stratum) == 1 or len(members) >= _FEWEST_OF_A_LABEL
    }
    owed = {name: _shares(sizes, rows) for name, rows in wanted.items()}
    for stratum, members in sorted(by_stratum.items()):
        for position, unit in enumerate(members):
            last = position == len(members) - 1 and not any(u.stratum == stratum for u in result["train"])
            fits = [name for name in wanted if len(unit.rows) <= owed[name].get(stratum, 0)]
            target = "train" if last or not fits else fits[0]
            if target != "train":
                owed[target][stratum] -= len(unit.rows)
            result[target].append(unit)
    _keep_for_training(result, wanted)
    return result


def _keep_for_training(result: dict[str, list[Unit]], measured: Iterable[str]) -> None:
    """Take units back into training whose rows have a label that no training row has: it could not be predicted."""
    learnt = frozenset[str]().union(*(unit.strata for unit in result["train"]))
    for name in measured:
        for unit in tuple(result[name]):
            if not unit.strata <= learnt:
                result[name].remove(unit)
                result["train"].append(unit)
                learnt |= unit.strata


def _shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """``total`` shared out in proportion to ``sizes``, in whole rows (largest remainders first)."""
    everything = sum(sizes.values())
    if not everything:
        return {}
    exact = {name: total * size / everything for name, size in sizes.items()}
    shares = {name: int(value) for name, value in exact.items()}
    left = total - sum(shares.values())
    for name in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:left]:
        shares[name] += 1
    return shares


def deal_folds(units: Sequence[Unit], folds: int) -> list[list[Unit]]:
    """``folds`` lists of units, balanced in each stratum and in rows; large units are placed first."""
    result: list[list[Unit]] = [[] for _ in range(folds)]
    rows = [0] * folds
    of_stratum: dict[str, list[int]] = defaultdict(lambda: [0] * folds)
    for unit in sorted(units, key=lambda unit: (-len(unit.rows), unit.stratum, unit.key)):
        have = of_stratum[unit.stratum]
        fold = min(range(folds), key=lambda f: (have[f], rows[f], f))
        have[fold] += len(unit.rows)
        rows[fold] += len(unit.rows)
        result[fold].append(unit)
    return result
