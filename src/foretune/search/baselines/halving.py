"""Successive halving over the pool: asynchronous (ASHA), in brackets (Hyperband), or of a given order (a portfolio).

A paused run continues from its checkpoint, as everywhere here, so a promotion costs only the further steps; that makes
both somewhat cheaper than their papers' versions, which restart. The reduction factor is 2, the ratio of the rungs.
Sources: ASHA, Li et al. 2020; Hyperband, Li et al. 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.search.baselines.random_search import shuffled
from foretune.search.fidelity import LAST_LEVEL, level_step
from foretune.search.points import places_of
from foretune.search.pooled import Pooled
from foretune.search.ranking import ranking_at, score_at
from foretune.search.runs import Continue, Proposal, Run, View
from foretune.search.types import Done, Wait

REDUCTION = 2
FIRST_LEVEL = 1
"""6 % of the steps: the second rung, so that a bracket has five."""


@dataclass(frozen=True)
class Asha(Pooled):
    """Asynchronous halving of ``order``, or of a random one where none is given."""

    order: tuple[int, ...] = ()
    first_level: int = FIRST_LEVEL
    name: str = "asha"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        if (going := promotion(view, view.runs, self.metric, self.first_level)) is not None:
            return going
        places = places_of(self.prior, view.runs)
        free = set(self.free(places).tolist())
        for place in self.order or shuffled(len(self.prior.pool), view.seed):
            if self.may_start(view) and place in free and affords_first(self, view, place, self.first_level):
                return self.start(place, "the next in order", arm="proposed", level=self.first_level)
        if (going := promotion(view, view.runs, self.metric, self.first_level, keep_all=True)) is not None:
            return going
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report")
        return Done("the budget covers nothing more")


@dataclass(frozen=True)
class Hyperband(Pooled):
    """Brackets of successive halving, from many short runs to a few whole ones, again and again."""

    name: str = "hyperband"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        order = shuffled(len(self.prior.pool), view.seed)
        places = places_of(self.prior, view.runs)
        began, bracket = [run for run in view.runs if run.arm != "default"], 0
        while True:
            size, level = bracket_of(bracket)
            members = began[:size]
            if len(members) < size:
                free = set(self.free(places).tolist())
                for place in order:
                    if place in free and self.may_start(view) and affords_first(self, view, place, level):
                        return self.start(place, f"bracket {bracket + 1}", arm="proposed", level=level)
            if (going := promotion(view, members, self.metric, level, together=True)) is not None:
                return going
            if len(members) < size or any(run.status == "running" for run in members):
                break
            began, bracket = began[size:], bracket + 1
        if any(run.status == "running" for run in view.runs):
            return Wait("the bracket's runs have to report")
        return Done("the budget covers nothing more")


def bracket_of(number: int) -> tuple[int, int]:
    """(runs, first level) of bracket ``number``: n = ⌈(s_max + 1) / (s + 1) · η^s⌉ runs from level L − s."""
    deepest = LAST_LEVEL - FIRST_LEVEL
    s = deepest - number % (deepest + 1)
    return -(-(deepest + 1) * REDUCTION**s // (s + 1)), LAST_LEVEL - s


def promotion(
    view: View,
    runs: Sequence[Run],
    metric: str,
    first_level: int,
    *,
    together: bool = False,
    keep_all: bool = False,
) -> Continue | None:
    """The next run that is among the better half of its rung, the highest rung first.

    With ``together`` a rung is halved only when all that will come to it have (a bracket), and its last run goes on;
    with ``keep_all`` any paused run may go on, the best first: what is left of a budget should not be left over.
    """
    for level in range(LAST_LEVEL - 1, first_level - 1, -1):
        if together and not _complete(runs, metric, first_level, level):
            continue
        ranked = ranking_at(runs, level, metric)
        for run in ranked if keep_all else _better(ranked, at_least=int(together)):
            target = level_step(run.horizon, level + 1)
            here = run.status == "idle" and level_step(run.horizon, level) <= run.step < target
            if here and view.affords(run.config, run.step, target):
                return Continue(run.id, target, "among the better half of its rung")
    return None


def _better(ranked: Sequence[Run], at_least: int) -> Sequence[Run]:
    return ranked[: max(at_least, len(ranked) // REDUCTION)]


def _complete(runs: Sequence[Run], metric: str, first_level: int, level: int) -> bool:
    """Whether every run of a bracket that comes to ``level`` has its score there or failed."""
    if level == first_level:
        entrants = [run for run in runs if not run.failed]
    else:
        if not _complete(runs, metric, first_level, level - 1):
            return False
        entrants = list(_better(ranking_at(runs, level - 1, metric), at_least=1))
    return all(score_at(run, level, metric) is not None for run in entrants)


def affords_first(strategy: Pooled, view: View, place: int, level: int) -> bool:
    """Whether the budget covers a run up to its first rung."""
    config = strategy.prior.pool[place]
    return view.affords(config, 0, level_step(strategy.steps_of(config), level), new=True)
