"""The values that pass between searcher, executor and the main job.

A *run* is one configuration with one seed; it is trained in pieces, each under a *lease* that takes it from one
step to a later one. ``tell`` and every checkpoint carry lease id and attempt (fencing): a late or repeated report
counts as data but never moves a run backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Status = Literal["ok", "paused", "diverged", "oom", "crashed", "timeout", "refused", "stopped"]
"""``ok``: the lease reached its step. ``paused``: stopped cleanly before it. Everything else is a failure or,
for ``stopped``, an order. A failure never carries a score."""

FAILURES: frozenset[Status] = frozenset({"diverged", "oom", "crashed", "timeout", "refused"})


@dataclass(frozen=True)
class Score:
    """A metric's value with its standard error over ``n`` rows. Values are finite by construction.

    An error of 0 says that none was given (imported results, a single row, all rows right); it never means certainty.
    """

    value: float
    standard_error: float
    n: int

    def __post_init__(self) -> None:
        import math

        if not (math.isfinite(self.value) and math.isfinite(self.standard_error)):
            raise ValueError(f"a score must be finite, not {self.value} ± {self.standard_error}")


@dataclass(frozen=True)
class Lease:
    """An order to take ``run`` from ``from_step`` to ``to_step``, with its forecast and its reason."""

    id: str
    attempt: int
    run: str
    config: Mapping[str, Any]
    from_step: int
    to_step: int
    seconds: float
    """Forecast seconds of training and evaluation under this lease."""
    memory_bytes: int = 0
    disk_bytes: int = 0
    p_fail: float = 0.0
    why: str = ""
    deadline: float | None = None
    """Clock time after which the lease is expired, or None."""
    seed: int = 0
    rungs: tuple[int, ...] = ()
    """The steps within (from_step, to_step] at which to evaluate."""
    horizon: int = 0
    """Steps of the full schedule of this run."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back exactly."""
        return {**asdict(self), "config": dict(self.config), "rungs": list(self.rungs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Lease:
        """The inverse of `to_json`."""
        return cls(**{**value, "rungs": tuple(value["rungs"])})


@dataclass(frozen=True)
class Observation:
    """What was seen at ``step``: scores by name, seconds, peak memory, and how it went."""

    step: int
    metrics: Mapping[str, Score] = field(default_factory=dict)
    train_s: float = 0.0
    eval_s: float = 0.0
    peak_bytes: int = 0
    status: Status = "ok"
    tokens: int = 0
    detail: str = ""
    train_cpu_s: float | None = None
    """Processor seconds of ``train_s``, over all threads: what other load on the machine does not change."""
    eval_cpu_s: float | None = None
    final: bool = True
    """Whether this ends the lease (a rung inside a lease is reported with ``final=False``)."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back exactly."""
        return {
            **asdict(self),
            "metrics": {name: [s.value, s.standard_error, s.n] for name, s in self.metrics.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Observation:
        """The inverse of `to_json`."""
        return cls(**{**value, "metrics": {name: Score(*parts) for name, parts in value["metrics"].items()}})


@dataclass(frozen=True)
class Wait:
    """Nothing to hand out now: outstanding leases must report first."""

    why: str = ""


@dataclass(frozen=True)
class Done:
    """Nothing more will be handed out."""

    why: str = ""


class Searcher(Protocol):
    """Proposes leases and learns from observations; the wall clock reaches it only as ``now``."""

    def ask(self, n: int, now: float) -> list[Lease] | Wait | Done:
        """At most ``n`` new leases, or a reason why there are none."""
        ...

    def tell(self, lease_id: str, attempt: int, observation: Observation, now: float) -> bool:
        """Record an observation; False when fencing turned it into data only."""
        ...

    def heartbeat(self, lease_id: str, now: float) -> None:
        """The lease's worker lives."""
        ...

    def expire(self, now: float) -> list[Lease]:
        """Take back the leases whose worker fell silent; they are handed out again with a higher attempt."""
        ...

    def state(self) -> dict[str, Any]:
        """A JSON summary for reports: runs, their best scores, why each was proposed."""
        ...
