"""How far the seconds of a forecast are off on this task and machine, learnt from every observed step.

The forecast f of a stretch of steps comes from outside. Measured seconds m give log(m / f); their mean, shrunk
towards zero by a prior and forgetting slowly, is the correction (one bias on log seconds per task and machine).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PRIOR_WEIGHT = 0.5
"""Half an observation's worth of trust in the uncorrected forecast."""
MEMORY = 0.9
"""Weight kept by older observations at each new one: follows a machine that other jobs slow down."""
LARGEST = 50.0
"""A stretch that is off by more (a suspended machine, a first compilation) counts as off by this."""


@dataclass
class Pace:
    """The running correction factor of forecast seconds."""

    weighted: float = 0.0
    weight: float = 0.0

    def observe(self, forecast_s: float, measured_s: float) -> None:
        """Learn from one stretch; stretches without a forecast or a measurement teach nothing."""
        if forecast_s <= 0 or measured_s <= 0:
            return
        limit = math.log(LARGEST)
        ratio = min(max(math.log(measured_s / forecast_s), -limit), limit)
        self.weighted = MEMORY * self.weighted + ratio
        self.weight = MEMORY * self.weight + 1.0

    @property
    def factor(self) -> float:
        """Multiply forecast seconds by this."""
        return math.exp(self.weighted / (self.weight + PRIOR_WEIGHT))
