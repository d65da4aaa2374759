"""Given members of the pool, one after the other, each trained in whole: the default LoRA, the rule, a portfolio."""

from __future__ import annotations

from dataclasses import dataclass

from foretune.search.fidelity import LAST_LEVEL
from foretune.search.points import places_of
from foretune.search.pooled import Pooled
from foretune.search.runs import Proposal, View
from foretune.search.types import Done, Wait


@dataclass(frozen=True)
class Listed(Pooled):
    """Trains ``order`` and nothing else."""

    order: tuple[int, ...] = ()
    name: str = "listed"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        done = set(places_of(self.prior, view.runs))
        for number, place in enumerate(self.order, start=1):
            if place in done or not self.may_start(view):
                continue
            if not self.affords_whole(view, place):
                continue
            return self.start(place, f"number {number} of {len(self.order)}", arm="proposed", level=LAST_LEVEL)
        if any(run.status == "running" for run in view.runs):
            return Wait("the last runs have to report")
        return Done("all that was listed is trained, or not covered by the budget")
