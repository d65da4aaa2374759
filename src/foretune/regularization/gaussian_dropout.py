"""Gaussian dropout (Srivastava et al. 2014, section 10): activations times N(1, p/(1-p)), off at evaluation.

p/(1-p) is the variance of Bernoulli(1-p)/(1-p), so rate p means as much noise as dropout of rate p. (The baseline in
the code of Sharma et al. 2024 leaves its noise on at evaluation and takes the variance for the standard deviation.)
"""

from __future__ import annotations

from foretune.regularization.base import Context
from foretune.regularization.places.dropping import Dropping
from foretune.regularization.places.find import Site


class GaussianDropout(Dropping):
    """The same noise everywhere."""

    name = "gaussian-dropout"

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__("gaussian")
        self.rate = rate

    def rates_for(self, sites: tuple[Site, ...], context: Context) -> dict[str, float] | str:
        """The rate for every place."""
        return {site.name: self.rate for site in sites}

    def summary(self, rates: dict[str, float]) -> str:
        """What is done, in words."""
        return f"Gaussian noise of variance {self.rate / (1 - self.rate):.3g} at {len(rates)} places"
