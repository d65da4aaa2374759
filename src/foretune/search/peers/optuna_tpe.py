"""Optuna's TPE sampler with its Hyperband pruner (Akiba et al. 2019), through Optuna.

A trial is a run; it goes on by one rung as long as the pruner lets it, and a pruned one is left where it is. Resources
double from rung to rung, as the pruner's own rungs do: it decides at every one of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.search.baselines.halving import FIRST_LEVEL
from foretune.search.fidelity import LEVELS, level_step
from foretune.search.peers.columns import Columns, needed
from foretune.search.peers.config_space import ETA, HIGHEST
from foretune.search.points import level_of, places_of
from foretune.search.pooled import Pooled
from foretune.search.runs import Continue, Proposal, Run, View
from foretune.search.types import Done, Wait
from foretune.seeding import derive


@dataclass(frozen=True)
class OptunaTpe(Pooled):
    """The strategy."""

    name: str = "optuna-tpe"

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if (begun := self.first(view)) is not None:
            return begun
        try:
            import optuna
        except ImportError:
            raise needed("optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        columns, places = Columns.of(self.prior), places_of(self.prior, view.runs)
        study, going = self._study(optuna, columns, view, places)
        for number in going:
            run = view.runs[number]
            step = level_step(run.horizon, min(level_of(run) + 1, LEVELS - 1))
            if step > run.step and view.affords(run.config, run.step, step):
                return Continue(run.id, step, "not pruned by Hyperband")
        free = [int(p) for p in self.free(places) if view.affords(
            self.prior.pool[int(p)], 0, level_step(self.steps_of(self.prior.pool[int(p)]), FIRST_LEVEL), new=True
        )] if self.may_start(view) else []  # fmt: skip
        if free:
            place = columns.nearest(study.ask(_distributions(optuna, columns)).params, free)
            return self.start(place, "drawn by TPE", arm="proposed", level=FIRST_LEVEL)
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report")
        return Done("the budget covers nothing more")

    def _study(self, optuna: Any, columns: Columns, view: View, places: list[int]) -> tuple[Any, list[int]]:
        """The study as it would be had Optuna made it, and the paused runs that its pruner lets go on."""
        sampler = optuna.samplers.TPESampler(seed=derive(view.seed, "optuna", len(view.runs)) % 2**32)
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=int(HIGHEST), reduction_factor=ETA)
        study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner, study_name="pool")
        distributions, states, going = _distributions(optuna, columns), optuna.trial.TrialState, []
        for number, (run, place) in enumerate(zip(view.runs, places, strict=True)):
            study.enqueue_trial(columns.values(place))
            trial, pruned, scores = study.ask(distributions), False, self._scores(run)
            for resource, value in scores.items():
                trial.report(value, resource)
                pruned = trial.should_prune()
            if run.failed or (run.ended and not scores):
                study.tell(trial, state=states.FAIL)
            elif run.ended:
                study.tell(trial, list(scores.values())[-1])
            elif run.status == "idle" and pruned:
                study.tell(trial, state=states.PRUNED)
            elif run.status == "idle":
                going.append(number)
        return study, going

    def _scores(self, run: Run) -> dict[int, float]:
        """Scores by resource."""
        levels = {level_step(run.horizon, level): level for level in range(FIRST_LEVEL, LEVELS)}
        return {
            ETA ** (levels[step] - FIRST_LEVEL): scores[self.metric].value
            for step, scores in sorted(run.curve.items())
            if step in levels and self.metric in scores
        }


def _distributions(optuna: Any, columns: Columns) -> dict[str, Any]:
    numbers = {name: optuna.distributions.FloatDistribution(*span) for name, span in columns.numbers.items()}
    words = {name: optuna.distributions.CategoricalDistribution(own) for name, own in columns.categories.items()}
    return {**numbers, **words}
