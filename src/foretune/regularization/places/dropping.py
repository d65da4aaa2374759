"""What all dropouts have in common: find the places, give them rates, draw row by row, leave no trace."""

from __future__ import annotations

from typing import Any

import torch

from foretune.data.update import MicroBatch
from foretune.errors import ModelError
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.places.attention import IMPLEMENTATION, agrees
from foretune.regularization.places.edit import Edit
from foretune.regularization.places.find import Site, find_sites
from foretune.regularization.row_noise import Noise

NO_ATTENTION = (
    "the attention of this architecture cannot be computed with noise on its probabilities (soft-capping, sinks or "
    "code of its own). Use neftune or l2-sp instead."
)


class Dropping(Regularizer):
    """A regularizer that sets the rate of every place; its own part is `rates_for`."""

    def __init__(self, noise: Noise) -> None:
        self.noise: Noise = noise
        self._edit: Edit | None = None
        self._restore_attention: tuple[Any, str | None] | None = None

    def rates_for(self, sites: tuple[Site, ...], context: Context) -> dict[str, float] | str:
        """A rate by site name, or why there are none."""
        raise NotImplementedError

    def summary(self, rates: dict[str, float]) -> str:
        """What is done, in words."""
        raise NotImplementedError

    def check(self, context: Context) -> Plan:
        """The places and their rates; refused where the model's places or rates are not known."""
        try:
            sites = find_sites(context.model)
        except ModelError as error:
            return Plan(self.name, refusal=error.paragraph())
        rates = self.rates_for(sites, context)
        if isinstance(rates, str):
            return Plan(self.name, refusal=rates)
        runner = context.runner if _drops_attention(sites, rates) else None
        if runner is not None and not agrees(context.model, runner):
            return Plan(self.name, refusal=NO_ATTENTION)
        return Plan(self.summary(rates), sites=tuple(site.name for site in sites), extra={"rates": rates})

    def setup(self, context: Context) -> None:
        """Give every place its rate."""
        sites = find_sites(context.model)
        rates = self.rates_for(sites, context)
        if isinstance(rates, str):
            raise ModelError(rates)
        self._edit = Edit(context.model, sites, rates, self.noise)
        if _drops_attention(sites, rates) and context.runner is not None:
            self._restore_attention = (context.runner, context.runner.training_attention)
            context.runner.training_attention = IMPLEMENTATION

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """The rows of the next pass."""
        if self._edit is not None:
            self._edit.rows.set(batch, generator)

    def teardown(self) -> None:
        """Put every place back as it was."""
        if self._edit is not None:
            self._edit.restore()
        if self._restore_attention is not None:
            runner, before = self._restore_attention
            runner.training_attention = before
            self._restore_attention = None

    def report(self) -> dict[str, float]:
        """Places touched and their rates."""
        touched = self._edit.touched if self._edit is not None else {}
        if not touched:
            return {}
        rates = list(touched.values())
        return {
            "places": float(len(rates)),
            "mean_rate": sum(rates) / len(rates),
            "highest_rate": max(rates),
            "lowest_rate": min(rates),
        }


def _drops_attention(sites: tuple[Site, ...], rates: dict[str, float]) -> bool:
    return any(site.kind == "attention" and rates[site.name] > 0 for site in sites)
