"""Random search: members of the pool in a random order, each in whole, or dropped at one rung when below the median.

Sources: Bergstra & Bengio 2012; the median rule as in Vizier (Golovin et al. 2017), at a single rung.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from foretune.search.fidelity import LAST_LEVEL, level_step
from foretune.search.points import places_of
from foretune.search.pooled import Pooled
from foretune.search.ranking import score_at
from foretune.search.runs import Continue, Proposal, View
from foretune.search.types import Done, Wait
from foretune.seeding import generator


@dataclass(frozen=True)
class RandomSearch(Pooled):
    """``rung`` is the level of the median rule; None to train every run in whole."""

    rung: int | None = None
    name: str = "random"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        if self.rung is not None and (going := self._above_the_median(view, self.rung)) is not None:
            return going
        places = places_of(self.prior, view.runs)
        level = LAST_LEVEL if self.rung is None else self.rung
        if self.may_start(view):
            free = set(self.free(places).tolist())
            for place in shuffled(len(self.prior.pool), view.seed):
                if place in free and self.affords_whole(view, place):
                    return self.start(place, "drawn at random", arm="proposed", level=level)
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report")
        return Done("the budget does not cover another run")

    def _above_the_median(self, view: View, rung: int) -> Continue | None:
        scores = [score.value for run in view.runs if (score := score_at(run, rung, self.metric)) is not None]
        for run in view.runs:
            score = score_at(run, rung, self.metric)
            if run.status != "idle" or score is None or run.step != level_step(run.horizon, rung):
                continue
            if score.value <= statistics.median(scores) and view.affords(run.config, run.step, run.horizon):
                return Continue(run.id, run.horizon, "not below the median at the rung")
        return None


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below ``count`` in a random order that ``seed`` fixes."""
    return [int(place) for place in generator(seed, "search", "random-order").permutation(count)]
