"""Which rows are the same thing twice: exact duplicates, near-duplicates, and labels that contradict each other.

Two rows are exact duplicates when prompt, answer and label agree after `normalised` (case and white space; accents
in one piece or two are the same). They are
near-duplicates when the prompts *and* the answers are alike (Jaccard similarity of character shingles at least
`NEAR`) and the numbers in them are the same: a changed number changes the question. Labelled rows need equal labels;
the same text under two labels is a conflict. Clusters are what union-find joins; they do not depend on the order of
the rows. Large buckets are compared with their first member and their neighbours only, so a near-duplicate in a
crowd of alike rows can be missed; an exact duplicate cannot.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from foretune.data.example import Example, normalised
from foretune.data.minhash import Shingles, buckets, signatures
from foretune.data.reasoning import reasoned_answer

NEAR = 0.8
"""Jaccard similarity from which texts are near-duplicates: one word changed in about twenty."""
_ALL_PAIRS = 8
"""Buckets up to this size are compared pair by pair."""
_SETS_KEPT = 20_000

Clusters = NDArray[np.int64]


@dataclass(frozen=True)
class Conflict:
    """One text with several labels, and the rows (indices) that carry it."""

    text: str
    labels: tuple[str, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Duplicates:
    """What `find` found. ``cluster`` gives each row the number of its cluster, in order of first appearance."""

    cluster: Clusters
    """(rows,) int64"""
    exact: int
    """Rows that repeat an earlier row exactly (normalised)."""
    near: int
    """Rows that are in a cluster with an earlier row without repeating one exactly."""
    conflicts: tuple[Conflict, ...]


class UnionFind:
    """Disjoint sets over 0 … size-1; the smallest member represents a set."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The representative of ``item``'s set."""
        root = item
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def union(self, first: int, second: int) -> None:
        """Join the sets of two items."""
        a, b = sorted((self.find(first), self.find(second)))
        self._parent[b] = a

    def numbered(self) -> Clusters:
        """(size,) int64: each item's set, numbered by first appearance."""
        numbers: dict[int, int] = {}
        return np.array([numbers.setdefault(self.find(i), len(numbers)) for i in range(len(self._parent))], np.int64)


def fields_of(example: Example) -> tuple[str, str, str]:
    """What is compared: normalised prompt, normalised answer, label. Plain text is all prompt."""
    label = "" if example.label is None else repr(example.label)
    if example.label is not None or (example.turns and example.turns[0].role == "text"):
        return asked_by(example), "", label
    return asked_by(example), _folded(reasoned_answer(example)), label


def asked_by(example: Example) -> str:
    """The normalised prompt."""
    return _folded(example.prompt)


def _folded(text: str) -> str:
    return normalised(unicodedata.normalize("NFC", text))


def clusters(examples: Sequence[Example], *, near: float | None = NEAR, seed: int = 0) -> Clusters:
    """(rows,) int64: the cluster of duplicates that each row belongs to; see `find`."""
    return find(examples, near=near, seed=seed).cluster


def find(examples: Sequence[Example], *, near: float | None = NEAR, seed: int = 0) -> Duplicates:
    """Exact duplicates, near-duplicates (none when ``near`` is None) and label conflicts of ``examples``."""
    fields = [fields_of(example) for example in examples]
    rows_of: dict[tuple[str, str, str], list[int]] = {}
    for row, value in enumerate(fields):
        rows_of.setdefault(value, []).append(row)
    sets = UnionFind(len(fields))
    for rows in rows_of.values():
        for row in rows[1:]:
            sets.union(rows[0], row)
    exact = len(fields) - len(rows_of)
    if near is not None:
        distinct = sorted(rows_of)  # sorted: what is compared does not depend on the order of the rows
        for a, b in _near_pairs(distinct, near, seed):
            sets.union(rows_of[distinct[a]][0], rows_of[distinct[b]][0])
    cluster = sets.numbered()
    repeated = len(cluster) - (int(cluster.max()) + 1 if len(cluster) else 0)
    return Duplicates(cluster, exact, repeated - exact, _conflicts(rows_of))


def _conflicts(rows_of: dict[tuple[str, str, str], list[int]]) -> tuple[Conflict, ...]:
    labels: dict[str, dict[str, list[int]]] = {}
    for (prompt, _, label), rows in rows_of.items():
        if label:
            labels.setdefault(prompt, {})[label] = rows
    return tuple(
        Conflict(
            text, tuple(label.strip("'") for label in by_label), tuple(sorted(chain.from_iterable(by_label.values())))
        )
        for text, by_label in labels.items()
        if len(by_label) > 1
    )


def _near_pairs(distinct: Sequence[tuple[str, str, str]], near: float, seed: int) -> list[tuple[int, int]]:
    """Pairs of positions in ``distinct`` that are near-duplicates and that connect their clusters."""
    if len(distinct) < 2:
        return []
    # the label goes into the answer's shingles, so that other labels fall into other buckets
    answers = [answer or label for _, answer, label in distinct]
    compare = _Comparison([prompt for prompt, _, _ in distinct], answers, [f[2] for f in distinct], near, seed)
    joined, pairs = UnionFind(len(distinct)), []
    for bucket in compare.buckets():
        for a, b in _worth_comparing([int(i) for i in bucket]):
            if joined.find(a) != joined.find(b) and compare.alike(a, b):
                joined.union(a, b)
                pairs.append((a, b))
    return pairs


def _worth_comparing(bucket: list[int]) -> list[tuple[int, int]]:
    if len(bucket) <= _ALL_PAIRS:
        return [(a, b) for position, a in enumerate(bucket) for b in bucket[position + 1 :]]
    with_first = [(bucket[0], b) for b in bucket[1:]]
    return with_first + list(pairwise(bucket[1:]))


class _Comparison:
    """Verifies candidate pairs by their true similarity; shingle sets and numbers are kept while they are in use."""

    def __init__(
        self, prompts: Sequence[str], answers: Sequence[str], labels: Sequence[str], near: float, seed: int
    ) -> None:
        self._texts = (prompts, answers)
        self._labels = labels
        self._near = near
        self._seed = seed
        self._shingles = (Shingles(prompts, seed), Shingles(answers, seed))
        self._set = lru_cache(maxsize=_SETS_KEPT)(lambda field, row: self._shingles[field].of(row))
        self._numbers = lru_cache(maxsize=_SETS_KEPT)(
            lambda row: [re.findall(r"\d+", texts[row]) for texts in self._texts]
        )
        self._refused: set[tuple[int, int]] = set()

    def buckets(self) -> list[NDArray[np.int64]]:
        """Groups of candidates."""
        prompts, answers = (signatures(s, len(self._labels)) for s in self._shingles)
        return list(buckets(prompts, answers, self._seed))

    def _likeness(self, field: int, first: int, second: int) -> float:
        return self._shingles[field].likeness(self._set(field, first), self._set(field, second))

    def alike(self, first: int, second: int) -> bool:
        """Whether two rows are near-duplicates."""
        if (first, second) in self._refused:
            return False
        alike = (
            self._labels[first] == self._labels[second]
            and self._numbers(first) == self._numbers(second)
            and all(self._likeness(field, first, second) >= self._near for field in (1, 0))
        )
        if not alike:
            self._refused.add((first, second))
        return alike
