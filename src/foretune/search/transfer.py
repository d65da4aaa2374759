"""The strategy `transfer`: what earlier tasks say, corrected by what is seen, worth per second; torch-free.

1. The default LoRA in whole, where the caller wants it as the baseline.
2. While nothing was seen: the greedy portfolio over bags of earlier tasks (Nemhauser et al. 1978: each pick adds most
   to the best of the picks, on average over bags); without experience the rule's rate, three times and a third of it.
   A pick of earlier tasks is taken on, rung by rung, while no other run is ahead of it: early on a whole run is worth
   more than several beginnings.
3. Then, again and again, what is worth most per second: beginning a configuration of the pool or taking a paused run
   on by one rung. Its worth is (1 − P(fail)) · E[(gain at a drawn rung − best gain so far)₊] (`belief`). The rung up to
   which it is judged is drawn anew for every proposal (as in ifBO, Rakotoarison et al. 2024), so that no one horizon
   has to be right; likewise which process is believed, transfer or none, as often as each weighs (posterior sampling).
   Runs under way count as if they had reached their next rung as expected (fantasies).
4. The search ends when the budget does, or, where it is not in time, when nothing is expected to improve.

Decisions depend on the prior, the observations, forecast seconds and the seed: a resumed search decides as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.search.acquisition import Option, beginnings, best_so_far, continuations
from foretune.search.belief import Belief, believe
from foretune.search.encoding import Floats, Indices
from foretune.search.failures import seen_failures
from foretune.search.fidelity import LAST_LEVEL, LEVELS, RUNG_PERCENT, level_step, next_level
from foretune.search.points import observed, pending, places_of
from foretune.search.pooled import Pooled
from foretune.search.ranking import has_risen, leads
from foretune.search.reasons import because, beginning, going_on
from foretune.search.runs import Continue, Proposal, Start, View
from foretune.search.types import Done, Wait
from foretune.seeding import generator

NEGLIGIBLE = 1e-3
"""An expected improvement of less than a thousandth in log loss is none."""
ALWAYS_END = 0.5
"""Half of the proposals are judged by the end of the run, the others by a rung drawn evenly."""


@dataclass(frozen=True)
class Transfer(Pooled):
    """The strategy; `strategies.transfer` builds one."""

    portfolio: tuple[int, ...] = ()
    """Pool members that the process without experience begins with"""
    whys: tuple[str, ...] = ()
    """Why each of them; empty where nobody asks"""
    opening: int = 2
    """Runs (the baseline is one) before what was seen counts: earlier tasks choose them alone"""
    guard: bool = True
    """For ablations, as the two below"""
    residual: bool = True
    randomised: bool = True
    name: str = "transfer"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        if (further := self._taken_on(view)) is not None:
            return further
        points = observed(self, view.runs)
        places = places_of(self.prior, view.runs)
        odds = seen_failures(self.prior.odds, self.prior.rows, view.runs, places)
        free = self.free(places) if self.may_start(view) else np.zeros(0, dtype=np.int64)
        if len(points) == 0 or self._opening(view):
            if self.prior.transfer is None:
                if (expert := self._expert_pick(view, free)) is not None:
                    return self._start_expert(expert)
            elif (pick := self._portfolio_pick(view, places, free, odds)) is not None:
                return self._start(pick, None)
            if len(points) == 0 and any(run.status == "running" for run in view.runs):
                return Wait("the first runs have to report")
        belief = believe(self.prior, points, guard=self.guard, residual=self.residual)
        belief = pending(self, belief, points, view.runs, places)
        return self._best(view, belief, places, free, odds)

    # -- what may be begun

    def _opening(self, view: View) -> bool:
        """Whether the portfolio, of earlier tasks or of the expert, has still to be begun."""
        if self.prior.transfer is not None:
            return len(view.runs) < self.opening
        return sum(run.arm == "portfolio" for run in view.runs) < len(self.portfolio)

    def _taken_on(self, view: View) -> Continue | None:
        """A paused pick of earlier tasks on to its next rung, where none that may win has a lower loss at this one."""
        if self.prior.transfer is None:
            return None
        rivals = [run for run in view.runs if self.may_win(run.config)]
        for run in view.runs[: self.opening]:
            if run.status != "idle" or has_risen(run, self.metric) or not leads(run, rivals, self.metric):
                continue
            level = next_level(run.horizon, run.step)
            step = level_step(run.horizon, level)
            if view.affords(run.config, run.step, step):
                why = f"chosen by earlier tasks, and no run is ahead of it; on to {RUNG_PERCENT[level]} %"
                return Continue(run.id, step, why)
        return None

    def _portfolio_pick(self, view: View, places: Sequence[int], free: Any, odds: Floats) -> int | None:
        """The pool member that adds most to those begun, on average over bags."""
        affordable = [int(place) for place in free if self.affords_whole(view, int(place))]
        if not affordable:
            return None
        bags = self.prior.bags
        begun = bags[:, list(places)].max(axis=1, initial=-np.inf) if places else np.full(len(bags), -np.inf)
        scores = np.maximum(bags[:, affordable], begun[:, None]).mean(0) - odds[affordable] * np.ptp(bags)
        return affordable[int(np.argmax(scores))]

    def _expert_pick(self, view: View, free: Indices) -> int | None:
        """The next of the rule's rate, three times and a third of it that was not begun."""
        return next((p for p in self.portfolio if p in free and self.affords_whole(view, p)), None)

    # -- what is worth most

    def _best(self, view: View, belief: Belief, places: Sequence[int], free: Indices, odds: Floats) -> Proposal:
        drawn = belief.drawn(self._stream(view, "believed").random())
        if drawn.without_transfer and (expert := self._expert_pick(view, free)) is not None:
            return self._start_expert(expert)
        best, target = best_so_far(view.runs, drawn, places, self.may_win), self._judged_level(view)
        options = [
            *beginnings(self, view, drawn, free, odds, target, best),
            *continuations(self, view, drawn, places, target, best),
        ]
        in_time = view.budget.kind == "time"
        for option in sorted(options, key=lambda option: -option.rate):
            if option.rate <= 0 or (option.worth < NEGLIGIBLE and not in_time and option.run is not None):
                continue
            if (proposal := self._proposal(view, belief, option)) is not None:
                return proposal
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report first")
        if not self.may_start(view):
            return Done(f"{len(view.runs)} configurations were tried, as many as were allowed")
        if any(option.worth >= NEGLIGIBLE for option in options) or not options:
            return Done("what is left of the budget does not cover another run")
        return Done("nothing that the budget still covers is expected to improve the best by more than a thousandth")

    def _proposal(self, view: View, belief: Belief, option: Option) -> Start | Continue | None:
        """The proposal of an option; None where the budget does not cover its first stretch."""
        if option.run is None:
            start = self._start(option.place, belief)
            return start if view.affords(start.config, 0, start.to_step, new=True) else None
        run = view.runs[option.run]
        step = level_step(run.horizon, next_level(run.horizon, run.step))
        if not view.affords(run.config, run.step, step):
            return None
        return Continue(run.id, step, going_on(belief, run, option.place, option.run))

    def _judged_level(self, view: View) -> int:
        if not self.randomised:
            return LAST_LEVEL
        stream = self._stream(view, "judged")
        return LAST_LEVEL if stream.random() < ALWAYS_END else int(stream.integers(1, LEVELS))

    def _stream(self, view: View, what: str) -> np.random.Generator:
        """Chance for the next proposal."""
        return generator(view.seed, "search", what, len(view.runs), sum(len(run.curve) for run in view.runs))

    def _start(self, place: int, belief: Belief | None) -> Start:
        arm = "portfolio" if belief is None else "proposed"
        return self.start(place, beginning(self.prior, place, belief), arm=arm)

    def _start_expert(self, place: int) -> Start:
        whys = dict(zip(self.portfolio, self.whys, strict=False))
        said = [whys.get(place) or beginning(self.prior, place, None)]
        said += [because(self.prior, place)] if place in whys and place in self.prior.citations else []
        return self.start(place, ", ".join(said), arm="portfolio")
