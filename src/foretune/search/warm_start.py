"""A strategy with one more run: begun at weights that an earlier fit has left, and taken on while it leads.

The run starts when the baseline has ended. From where runs are first compared it goes on, rung by rung, as long as no
other run has a lower loss at the same rung; then the strategy inside has the rest of the budget. That strategy never
sees the run: what an adapter brings along says nothing about its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.search.fidelity import RUNG_PERCENT, level_step, next_level
from foretune.search.horizon import early_level
from foretune.search.ranking import Finalist, leads
from foretune.search.runs import Continue, Proposal, Run, Start, View

ARM = "warm-start"


@dataclass(frozen=True)
class WarmStarted:
    """`inside`, with the run of ``config`` beside it."""

    inside: Any
    """The strategy that decides everything else"""
    config: Mapping[str, Any]
    seed: int
    """The earlier run's: frozen random parts of a method follow from it"""
    why: str

    @property
    def name(self) -> str:
        """The name of the strategy inside."""
        return str(self.inside.name)

    @property
    def metric(self) -> str:
        """What the strategy inside compares by."""
        return str(self.inside.metric)

    def steps_of(self, config: Mapping[str, Any]) -> int:
        """Steps of a whole run of ``config``."""
        return int(self.inside.steps_of(config))

    def finalists(self, runs: tuple[Run, ...], count: int | None = None) -> list[Finalist]:
        """The runs to re-evaluate, best first, this one among them."""
        found: list[Finalist] = self.inside.finalists(runs, count)
        return found

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {**self.inside.settings(), "warm_start": [dict(self.config), self.seed]}

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        others = tuple(run for run in view.runs if run.arm != ARM)
        own = next((run for run in view.runs if run.arm == ARM), None)
        proposal = self._own(view, own, others)
        if proposal is not None:
            return proposal
        inside, most = self.inside, self.inside.max_trials
        if own is not None and most is not None:
            inside = replace(inside, max_trials=max(1, most - 1))
        found: Proposal = inside.propose(replace(view, runs=others))
        return found

    def _own(self, view: View, own: Run | None, others: tuple[Run, ...]) -> Proposal | None:
        if own is None:
            return self._begun(view) if others and others[0].ended else None
        if own.status != "idle":
            return None
        if not leads(own, others, self.metric):
            return None
        level = next_level(own.horizon, own.step)
        step = level_step(own.horizon, level)
        if not view.affords(own.config, own.step, step):
            return None
        return Continue(own.id, step, f"no run is ahead of it; on to {RUNG_PERCENT[level]} %")

    def _begun(self, view: View) -> Start | None:
        most = self.inside.max_trials
        if most is not None and len(view.runs) >= most:
            return None
        horizon = self.steps_of(self.config)
        level = early_level(horizon, float(self.config.get("warmup_share", 0.0)))
        if not view.affords(self.config, 0, horizon, new=True):
            return None
        why = f"{self.why}; first to {RUNG_PERCENT[level]} % of the steps"
        return Start(self.config, horizon, level_step(horizon, level), ARM, why, self.seed)
