"""SMAC3's multi-fidelity facade: a random forest in Hyperband's brackets (Lindauer et al. 2022), through ``smac``.

Its initial design is a share of the trials that it is said to have. They are as many as ``smac`` counts for the budget
(`get_n_trials_for_hyperband_multifidelity`): said to have no end of trials, it would begin the whole pool at random.
"""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory
from typing import Any

from foretune.search.peers.columns import Columns, needed
from foretune.search.peers.config_space import ETA, HIGHEST, LOWEST, config_space, level_at, values_of
from foretune.search.peers.conversation import Job

ENDLESS = 10**6
"""Trials that SMAC may plan with: the replay's budget ends first."""
DESIGN_SHARE = 0.25
"""Of the budget's trials: the facade's own ``max_ratio``."""
RETRAIN_AFTER = 4
"""Jobs between two fits of its forest, which takes seconds."""


class Smac:
    """See `conversation.Peer`."""

    def __init__(self, columns: Columns, seed: int, whole_runs: int) -> None:
        """``whole_runs``: what the budget pays for, in runs to the last rung."""
        try:
            from smac import MultiFidelityFacade, Scenario
            from smac.intensifier.hyperband_utils import get_n_trials_for_hyperband_multifidelity
        except ImportError:
            raise needed("smac") from None
        self._folder = TemporaryDirectory()
        logging.getLogger("smac").setLevel(logging.ERROR)
        scenario = Scenario(
            config_space(columns, seed), deterministic=True, min_budget=LOWEST, max_budget=HIGHEST, n_trials=ENDLESS,
            seed=seed, output_directory=self._folder.name,
        )  # fmt: skip
        trials = get_n_trials_for_hyperband_multifidelity(
            whole_runs * HIGHEST, LOWEST, HIGHEST, eta=ETA, print_summary=False
        )
        self._smac = MultiFidelityFacade(
            scenario, _never, logging_level=False, overwrite=True,
            initial_design=MultiFidelityFacade.get_initial_design(scenario, n_configs=round(DESIGN_SHARE * trials)),
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=ETA),
            config_selector=MultiFidelityFacade.get_config_selector(scenario, retrain_after=RETRAIN_AFTER),
        )  # fmt: skip

    def ask(self) -> Job:
        """See `conversation.Peer.ask`."""
        info = self._smac.ask()
        return Job(info.config, values_of(info.config), level_at(info.budget), info)

    def tell(self, job: Job, loss: float, seconds: float) -> None:
        """See `conversation.Peer.tell`."""
        from smac.runhistory import TrialValue

        self._smac.tell(job.token, TrialValue(cost=loss, time=seconds))


def _never(config: Any, seed: int = 0, budget: float = 0.0) -> float:
    """SMAC wants a target function; it is asked and told instead."""
    raise AssertionError
