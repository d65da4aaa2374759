"""What the loop does when an update goes wrong: skip it a few times, then say `diverged`; never score it.

transformers' Trainer, given one NaN, logs loss 0.0 for ever, saves NaN weights and exits 0. Here an update whose
loss or gradient is not finite, or whose loss jumps far above its recent level, does not touch the weights.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

SPIKE_FACTOR = 5.0
"""A loss this many times the recent median counts as a spike. A good run's losses stay within a factor of two."""
RECENT_UPDATES = 20
"""Updates over which the median is taken; before that many, spikes are not judged."""
SKIPS_ALLOWED = 3
"""Bad updates in a row that are skipped; one more ends the run as diverged."""


@dataclass
class Guard:
    """Judges updates; its state travels with the checkpoint."""

    recent: list[float] = field(default_factory=list)
    bad_in_a_row: int = 0
    skipped: int = 0

    def accepts(self, loss: float, gradient_norm: float) -> bool:
        """Whether the update may be applied."""
        bad = not (math.isfinite(loss) and math.isfinite(gradient_norm)) or self._spikes(loss)
        if bad:
            self.bad_in_a_row += 1
            self.skipped += 1
            return False
        self.bad_in_a_row = 0
        self.recent = [*self.recent, loss][-RECENT_UPDATES:]
        return True

    @property
    def diverged(self) -> bool:
        """Whether too many updates in a row were bad."""
        return self.bad_in_a_row > SKIPS_ALLOWED

    def _spikes(self, loss: float) -> bool:
        return len(self.recent) >= RECENT_UPDATES and loss > SPIKE_FACTOR * max(statistics.median(self.recent), 0.1)

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"recent": self.recent, "bad_in_a_row": self.bad_in_a_row, "skipped": self.skipped}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Guard:
        """The inverse of `state`."""
        return cls(**state)
