"""KL to the base: λ · KL(p_base ‖ p_θ), the base being the same model with its adapter switched off.

The self-regularisation of OrthSR (Yang et al. 2024, 2407.08374), here on the training rows' own targets, a mean over
the update's. The base's hidden states are kept (`base_states`), so after the first epoch a row costs two head
products and no pass. Under full fine-tuning there is no base left to ask: refused.
"""

from __future__ import annotations

import torch

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Term
from foretune.regularization.base_states import BaseStates, base_refusal

MEBIBYTE = 2**20
NO_HEAD = "the base of a classifier has no trained head to stay near. Use l2-sp or dropout."


class KlToBase(Regularizer):
    """The divergence from the base at every target."""

    name = "kl-to-base"

    def __init__(self, weight: float = 0.1, cache_mib: float = 256) -> None:
        self.weight, self.cache_mib = weight, cache_mib
        self._states: BaseStates | None = None
        self._rows: tuple[int, ...] = ()
        self._divergence = 0.0

    def check(self, context: Context) -> Plan:
        """Refused for classifiers and where the adapter cannot be switched off."""
        if context.kind == "encoder":
            return Plan(self.name, refusal=NO_HEAD)
        if why := base_refusal(context):
            return Plan(self.name, refusal=f"{why} Or use l2-sp.")
        held = int(self.cache_mib * MEBIBYTE)
        return Plan(f"predictions stay near the base's, weight {self.weight:g}", extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Get ready to ask the base."""
        if self.weight > 0:
            self._states = BaseStates(context, int(self.cache_mib * MEBIBYTE))

    def prepare(self, batch: MicroBatch) -> None:
        """Ask the base about rows that are not kept."""
        if self._states is not None:
            self._states.prepare(batch)

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Note which rows are in the batch."""
        self._rows = batch.rows

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term | None:
        """λ · Σ KL over the micro-batch."""
        if self._states is None:
            return None
        divergence = forward.divergence_from(self._states.hidden(self._rows)).sum()
        self._divergence = float(divergence.detach()) / max(1, forward.labels.shape[0])
        return Term(self.weight * divergence, targets)

    def end_forward(self) -> None:
        """Let go of states beyond the budget."""
        if self._states is not None:
            self._states.end()

    def teardown(self) -> None:
        """Let go of all states."""
        self._states = None

    def report(self) -> dict[str, float]:
        """Weight, last divergence in nats a target, memory held and passes of the base."""
        states = self._states
        return {
            "weight": self.weight,
            "last_divergence": self._divergence,
            "cached_mib": states.used_bytes / MEBIBYTE if states else 0.0,
            "base_passes": float(states.passes) if states else 0.0,
        }
