"""The Selector seam: estimate first, then rank the rows.

A selection is a full or partial ranking of row indices with its manifest; ``prefix(k)`` serves smaller counts when
the ranking is nested. What needs a model works on a `Workbench`, which the layer above provides (a worker's bench).
Heavy selectors map blocks of work through an injected `BlockMap` and keep what is done in ``request.folder``, so that
a killed selection goes on where it was and several processes share one (`fit.assistants`).

`selection.run.select` is the way in: it sets rows without an answer aside, carries out chains and checks the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from foretune.catalogue.models import ModelKind
from foretune.catalogue.selection import SelectorDeclaration, with_defaults
from foretune.catalogue.space import Space
from foretune.cost.phases import COMPARISONS_PER_S
from foretune.data.encode import EncodedRow
from foretune.data.example import Example
from foretune.errors import UsageError
from foretune.methods.base import Attachment
from foretune.selection.took import Tally
from foretune.training.forward import Network

Block = TypeVar("Block")
Result = TypeVar("Result")


class Workbench(Protocol):
    """A loaded model with the encoding of a task, as selectors see it; `execution.bench.Bench` is one."""

    @property
    def task(self) -> Any:
        """``context_tokens``, ``micro_batch_tokens``, ``plain_template``, ``task``, ``labels``."""
        ...

    @property
    def network(self) -> Network:
        """The base model, without adapter."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def kind(self) -> ModelKind:
        """Its kind."""
        ...

    @property
    def weights_hash(self) -> str:
        """A hash of its weights."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills padded batches."""
        ...

    @property
    def decoder_start_id(self) -> int:
        """What encoder–decoders begin their answers with."""
        ...

    @property
    def accelerator(self) -> Any:
        """Runs the backward pass."""
        ...

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Token rows of examples under the task's settings."""
        ...

    def attached(self, config: Mapping[str, Any], seed: int) -> AbstractContextManager[tuple[Attachment, Network]]:
        """Inside, the method of ``config`` is attached with fresh weights."""
        ...

    def with_model(self, source: str) -> Workbench:
        """A bench of the same task with another model: a smaller scorer, or an encoder that only embeds."""
        ...


@dataclass(frozen=True)
class Cost:
    """What a selection will take, or took."""

    tokens: int = 0
    operations: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor seconds, of all processes; 0 where only estimated"""


@dataclass(frozen=True)
class Speeds:
    """What turns work into seconds. The defaults are SmolLM2-135M's on two quiet cores."""

    score_tokens_per_s: float = 1100.0
    train_tokens_per_s: float = 290.0
    comparisons_per_s: float = COMPARISONS_PER_S
    operations_per_token: float = 2.7e8
    """Two for each parameter"""


class SelectionStopped(Exception):
    """A stop was ordered; what is done lies in the request's folder."""


def _keep_going() -> bool:
    return False


def _say_nothing(what: str, done: int, total: int) -> None:
    """An observer that looks away."""


@dataclass(frozen=True)
class Request:
    """What to select from and how much. ``count`` rows are wanted."""

    examples: Sequence[Example]
    count: int
    seed: int = 0
    target: Sequence[Example] = ()
    """Rows like those that the model is to become good at"""
    previous: Sequence[Example] = ()
    """Rows that the model was trained on before"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all selectors by their full names (``ifd.ratio``)"""
    bench: Workbench | None = None
    folder: Path | None = None
    """Where blocks of scores are kept; None keeps nothing"""
    costs: Sequence[int] = ()
    """Answer tokens of every row, where the budget is in tokens"""
    budget_tokens: int | None = None
    speeds: Speeds = Speeds()
    on_progress: Callable[[str, int, int], None] = _say_nothing
    """(what, done, total)"""
    stopped: Callable[[], bool] = _keep_going
    tally: Tally = field(default_factory=Tally)
    """Blocks computed and blocks found from before, with what they took"""

    @property
    def model(self) -> Workbench:
        """The bench. Raises `UsageError` where the selector needs a model and there is none."""
        if self.bench is None:
            raise UsageError("this selector needs a model.", remedy="Give --model.")
        return self.bench

    def settings(self, name: str) -> dict[str, Any]:
        """A selector's settings by their short names, completed with the defaults."""
        return with_defaults(name, self.fields)

    def narrowed(self, rows: Sequence[int], count: int) -> Request:
        """The same request on some of the rows."""
        costs = [self.costs[i] for i in rows] if self.costs else ()
        return replace(self, examples=[self.examples[i] for i in rows], count=count, costs=costs)

    def check_stopped(self) -> None:
        """Raise `SelectionStopped` where a stop was ordered."""
        if self.stopped():
            raise SelectionStopped


@dataclass(frozen=True)
class Selection:
    """Ranked, unique row indices, best first."""

    indices: tuple[int, ...]
    method: str
    scores: tuple[float, ...] | None = None
    """The score of each index, where the selector gives one"""
    gains: tuple[float, ...] | None = None
    """What each index added to the objective when it was chosen"""
    nested: bool = True
    n_positive: int | None = None
    """Rows chosen with a positive gain (or on the wanted side of a threshold)"""
    objective: float | None = None
    cost: Cost = field(default_factory=Cost)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def prefix(self, count: int) -> Selection:
        """The first ``count``; refused when the ranking is not nested."""
        if not self.nested and count != len(self.indices):
            raise UsageError(f"a {self.method} selection is not nested.", remedy="Select again with the other count.")
        return replace(
            self,
            indices=self.indices[:count],
            scores=None if self.scores is None else self.scores[:count],
            gains=None if self.gains is None else self.gains[:count],
        )

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

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def declaration(self) -> SelectorDeclaration:
        """What is known of it without loading it."""
        ...

    def space(self) -> Space:
        """Its settings."""
        ...

    def estimate(self, request: Request) -> Cost:
        """What `select` will take, before doing it."""
        ...

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """The ranking: ``request.count`` indices at most, unique, best first."""
        ...
