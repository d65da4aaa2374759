"""The Selector seam: estimate first, then rank the rows.

A selection is a full or partial ranking of row indices with its manifest; ``prefix(k)`` serves smaller counts when
the ranking is nested. Heavy selectors map blocks of work through an injected `BlockMap`, so the same code runs in
local processes and on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from foretune.catalogue.space import Space
from foretune.data.example import Example
from foretune.errors import UsageError

Block = TypeVar("Block")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What a selection will take."""

    tokens: int = 0
    operations: float = 0.0
    memory_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What to select from and how much. ``count`` rows are wanted."""

    examples: Sequence[Example]
    count: int
    seed: int = 0
    target: Sequence[Example] = ()
    previous: Sequence[Example] = ()
    model: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """Ranked, unique row indices, best first."""

    indices: tuple[int, ...]
    method: str
    scores: tuple[float, ...] | None = None
    nested: bool = True
    n_positive: int | None = None
    objective: float | None = None
    cost: Cost = field(default_factory=Cost)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def prefix(self, count: int) -> Selection:
        """The first ``count``; refused when the ranking is not nested."""
        from dataclasses import replace

        if not self.nested:
            raise UsageError(f"a {self.method} selection is not nested.", remedy="Select again with the other count.")
        scores = None if self.scores is None else self.scores[:count]
        return replace(self, indices=self.indices[:count], scores=scores)

    def apply(self, examples: Sequence[Example]) -> list[Example]:
        """The chosen rows, in rank order."""
        return [examples[i] for i in self.indices]


class BlockMap(Protocol):
    """Runs a function over blocks of work, somewhere."""

    def map(self, function: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
        """Results in the order of ``blocks``."""
        ...


class Selector(Protocol):
    """One way of choosing rows."""

    name: str

    def space(self) -> Space:
        """Its settings."""
        ...

    def estimate(self, request: Request) -> Cost:
        """What `select` will take, before doing it."""
        ...

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """The ranking."""
        ...
