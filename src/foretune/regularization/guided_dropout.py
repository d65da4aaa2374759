"""Guided dropout (Sharma et al. 2024, 2406.14005): rates by Fisher information, constant through training.

Scores come from a rates file (`places.rates`), rates from the schedule (`places.schedule`), places from the loaded
model (`places.find`). Nothing is computed per step: the cost is that of dropout. A classifier's own dropout stays.
"""

from __future__ import annotations

from foretune.errors import ForetuneError
from foretune.regularization.base import Context
from foretune.regularization.places.dropping import Dropping
from foretune.regularization.places.find import Site
from foretune.regularization.places.rates import AUTO, RatesFile, find
from foretune.regularization.row_noise import Noise


class GuidedDropout(Dropping):
    """Rates that follow the ranking of the base model's places."""

    name = "guided-dropout"

    def __init__(
        self,
        high: float = 0.1,
        low: float = 0.0,
        schedule: str = "linear",
        noise: Noise = "bernoulli",
        aggregation: str = "mean_of_means",
        rates: str | RatesFile = AUTO,
    ) -> None:
        """``rates``: ``auto``, the path of a rates file, or one that was read."""
        super().__init__(noise)
        self.high, self.low, self.schedule, self.aggregation, self.source = high, low, schedule, aggregation, rates

    def rates_for(self, sites: tuple[Site, ...], context: Context) -> dict[str, float] | str:
        """A rate for every place, or why there are none."""
        try:
            known = (
                self.source
                if isinstance(self.source, RatesFile)
                else find(self.source, weights=context.base_hash, source=context.base_source)
            )
        except ForetuneError as error:
            return error.paragraph()
        if {place.name for place in known.places} != {site.name for site in sites}:
            return (
                f"the rates of {known.model} name {len(known.places)} places, and this model has {len(sites)} others."
            )
        return known.rates(
            schedule=self.schedule, high=self.high, low=self.low, aggregation=self.aggregation, seed=context.seed
        )

    def summary(self, rates: dict[str, float]) -> str:
        """What is done, in words."""
        mean = sum(rates.values()) / len(rates)
        return f"{self.schedule} dropout of {self.low:g} to {self.high:g} (mean {mean:.3g}) at {len(rates)} places"
