"""Other packages' ask and tell over our pool: jobs in their words, runs, rungs and leases in ours.

A package asks for a configuration at a level. A new configuration becomes the nearest pool member that was not begun
(the nearest of all when every one was); one that it has named before goes on from its checkpoint to the higher level,
which makes promotions cheaper than in their papers, as for all contestants. A level that was already reached is told
at once.

A package keeps its own state, so a conversation is remembered beside the strategy. One that is not (a resumed search)
is had again from the runs: with one worker word for word, with several in the order in which runs were begun.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from foretune.search.fidelity import level_step
from foretune.search.peers.columns import Columns
from foretune.search.points import level_of, places_of
from foretune.search.pooled import Pooled
from foretune.search.ranking import score_at
from foretune.search.runs import Continue, Proposal, Run, Start, View
from foretune.search.types import Done, Wait

FAILURE = 1.0
"""Packages want a number for a failure: the worst loss seen so far, and so much more."""
MOST_AT_ONCE = 40
"""Jobs answered one after the other without training, more than a bracket has: the package has nothing new to try."""


@dataclass(frozen=True)
class Job:
    """What a package wants to know."""

    key: Hashable
    """The configuration's name in the package: equal for promotions of one configuration"""
    values: Mapping[str, Any]
    """Its columns (`Columns`)"""
    level: int
    """The rung at which it wants the loss"""
    token: Any = None
    """What the package needs back with the answer"""


class Peer(Protocol):
    """A package's searcher."""

    def ask(self) -> Job | None:
        """The next job; None when it has none."""
        ...

    def tell(self, job: Job, loss: float, seconds: float) -> None:
        """The loss at the job's level, after so many seconds of training."""
        ...


@dataclass
class Talk:
    """A conversation under way."""

    peer: Peer
    numbers: dict[Hashable, int] = field(default_factory=dict)
    """The run of every configuration"""
    begun: int = 0
    """Runs that were begun for a job"""
    open: list[Job] = field(default_factory=list)
    worst: float = 0.0

    def tell(self, job: Job, run: Run, loss: float | None) -> None:
        """Answer an open job; without a loss it failed."""
        self.open.remove(job)
        self.worst = max(self.worst, self.worst if loss is None else loss)
        self.peer.tell(job, self.worst + FAILURE if loss is None else loss, run.train_s + run.eval_s)


@dataclass(frozen=True)
class Conversing(Pooled):
    """The strategy; ``peer`` makes the package's searcher for the columns of a pool and a seed."""

    peer: Callable[[Columns, int], Peer] | None = None
    talks: dict[int, Talk] = field(default_factory=dict)
    """By seed"""
    name: str = "peer"

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {key: value for key, value in super().settings().items() if key not in ("peer", "talks")}

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        runs = tuple(run for run in view.runs if run.arm != "default")
        columns = Columns.of(self.prior)
        talk = self._talk(columns, view.seed, runs)
        for _ in range(MOST_AT_ONCE):
            for job in list(talk.open):
                found = self._answer(talk, job, view, runs, columns)
                if found is not None:
                    return found
            if len(talk.open) >= view.budget.workers:
                return Wait("runs under way have to report")
            if (next_job := talk.peer.ask()) is None:
                break
            talk.open.append(next_job)
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report")
        return Done("the package has nothing more to try")

    def _talk(self, columns: Columns, seed: int, runs: tuple[Run, ...]) -> Talk:
        talk = self.talks.get(seed)
        if talk is None or not runs or talk.begun > len(runs):
            assert self.peer is not None
            talk = self.talks[seed] = Talk(self.peer(columns, seed))
        return talk

    def _answer(
        self, talk: Talk, job: Job, view: View, runs: tuple[Run, ...], columns: Columns
    ) -> Start | Continue | Done | None:
        """What a job asks for next; None where it was told, or is under way."""
        if job.key not in talk.numbers:
            if talk.begun == len(runs):
                if (start := self._begin(job, view, columns)) is not None:
                    return start
                if not runs:
                    return Done("the budget does not cover a first run")
                places = places_of(self.prior, runs)
                talk.numbers[job.key] = places.index(columns.nearest(job.values, places))
            else:
                talk.numbers[job.key], talk.begun = talk.begun, talk.begun + 1
        run = runs[talk.numbers[job.key]]
        score = score_at(run, job.level, self.metric)
        if run.failed or score is not None or (run.ended and level_of(run) >= job.level):
            talk.tell(job, run, None if run.failed or score is None else score.value)
            return None
        if run.status != "idle":
            return None
        step = level_step(run.horizon, job.level)
        if not view.affords(run.config, run.step, step):
            return Done("the budget does not cover what the package wants next")
        return Continue(run.id, step, f"wanted by {self.name}")

    def _begin(self, job: Job, view: View, columns: Columns) -> Start | None:
        """The nearest member that was not begun; None where none is left or paid for."""
        if not self.may_start(view):
            return None
        free = [
            place
            for place in self.free(places_of(self.prior, view.runs)).tolist()
            if view.affords(self.prior.pool[place], 0, self._step(place, job.level), new=True)
        ]
        if not free:
            return None
        return self.start(columns.nearest(job.values, free), f"wanted by {self.name}", arm="proposed", level=job.level)

    def _step(self, place: int, level: int) -> int:
        return level_step(self.steps_of(self.prior.pool[place]), level)
