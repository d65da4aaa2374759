"""What strategies over a pool have in common: the pool, the horizon, who may win, and beginning with the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretune.files import fingerprint
from foretune.search.encoding import Floats, Indices
from foretune.search.fidelity import RUNG_PERCENT, level_step
from foretune.search.horizon import early_level
from foretune.search.menu import Menu
from foretune.search.ranking import Finalist, agrees, finalists
from foretune.search.runs import DEFAULT_ARM, Run, Start, View
from foretune.search.task_prior import TaskPrior, share_of_rows
from foretune.search.types import Done


@dataclass(frozen=True)
class Pooled:
    """A strategy that begins members of a pool; `propose` is its own."""

    prior: TaskPrior
    """The pool, and what is believed about it; baselines look at the configurations alone"""
    horizon: int
    """Steps of a whole run of the pool's first member; others see as many rows as their settings say"""
    base_losses: tuple[float, ...] = (1.0,) * 6
    """(6,): the untouched base's validation loss on the rows of each rung"""
    baseline: Mapping[str, Any] | None = None
    """Trained in whole before anything else; None for none"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings the user fixed"""
    menu: Menu = field(default_factory=Menu)
    """What the user left on offer"""
    max_trials: int | None = None
    metric: str = "loss"
    task_metric: tuple[str, float, float] | None = None
    """(name, +1 or −1 for its direction, the base's value): the second channel"""
    loss_channel: bool = True
    """Whether losses before the end of a run are looked at; False for an ablation"""
    equal_steps: bool = False
    """Whether every run has `horizon` steps whatever its settings say: in a replay steps are shares of a run"""
    name: str = "pooled"

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        own = {key: value for key, value in vars(self).items() if key not in ("prior", "name", "menu")}
        menu = {"menu": self.menu.to_json()} if self.menu.restricts else {}
        return {**own, "prior": fingerprint(self.prior.to_json()), **menu}

    def finalists(self, runs: tuple[Run, ...], count: int | None = None) -> list[Finalist]:
        """The runs to re-evaluate, best first, of those that may win."""
        return finalists((run for run in runs if self.may_win(run.config)), self.metric, count)

    def may_win(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config`` is what the user asked for, as the baseline need not be."""
        return agrees(config, self.fixed, self.menu)

    def steps_of(self, config: Mapping[str, Any]) -> int:
        """Steps of a whole run of ``config``: its share of the rows that the pool's first member sees."""
        if self.equal_steps:
            return self.horizon
        first = self.prior.pool[0]
        passes = share_of_rows(config) / share_of_rows(first)
        rows = int(first.get("rows_per_update", 1)) / int(config.get("rows_per_update", 1))
        return max(1, round(self.horizon * passes * rows))

    def first(self, view: View) -> Start | Done | None:
        """The baseline where it is wanted and nothing was begun; None to go on."""
        if self.baseline is None or view.runs:
            return None
        if not view.affords(self.baseline, 0, self.horizon, new=True):
            return Done("the budget does not cover the default LoRA")
        why = "the default LoRA, trained in whole: what every other configuration is compared with"
        return Start(self.baseline, self.horizon, self.horizon, DEFAULT_ARM, why)

    def may_start(self, view: View) -> bool:
        """Whether another run is allowed."""
        return self.max_trials is None or len(view.runs) < self.max_trials

    def free(self, places: Sequence[int]) -> Indices:
        """Pool members that were not begun (``places``) and may win."""
        begun = set(places)
        members = [place for place, config in enumerate(self.prior.pool) if place not in begun and self.may_win(config)]
        return np.asarray(members, dtype=np.int64)

    def affords_whole(self, view: View, place: int) -> bool:
        """Whether the budget covers a whole run of a pool member."""
        config = self.prior.pool[place]
        return view.affords(config, 0, self.steps_of(config), new=True)

    def start(self, place: int, why: str, *, arm: str, level: int | None = None) -> Start:
        """Begin a pool member, up to ``level`` or to where runs are first compared."""
        config = self.prior.pool[place]
        steps = self.steps_of(config)
        reach = early_level(steps, float(config.get("warmup_share", 0.0))) if level is None else level
        odds = float(self.prior.odds[place])
        why = f"{why}; first to {RUNG_PERCENT[reach]} % of the steps"
        return Start(config, steps, level_step(steps, reach), arm, why, p_fail=odds)

    def dearer(self, places: Indices) -> Floats:
        """How much longer whole runs of pool members take than the first member's."""
        return np.asarray(self.prior.cost[places] * self.prior.amount[places])
