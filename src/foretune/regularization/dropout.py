"""Plain dropout (Srivastava et al. 2014): one rate at every place of the model, inserted where it has none."""

from __future__ import annotations

from foretune.regularization.base import Context
from foretune.regularization.places.dropping import Dropping
from foretune.regularization.places.find import Site


class Dropout(Dropping):
    """The same rate everywhere; 0 switches the architecture's own dropout off."""

    name = "dropout"

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__("bernoulli")
        self.rate = rate

    def rates_for(self, sites: tuple[Site, ...], context: Context) -> dict[str, float] | str:
        """The rate for every place."""
        return {site.name: self.rate for site in sites}

    def summary(self, rates: dict[str, float]) -> str:
        """What is done, in words."""
        return f"dropout of {self.rate:g} at {len(rates)} places"
