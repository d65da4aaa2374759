"""R-Drop (Liang et al. 2021, 2106.14448): two passes with different dropout have to agree.

The paper minimises −log P1(y) − log P2(y) + α · ½ [KL(P1‖P2) + KL(P2‖P1)]. Here half of that, so that the loss keeps
the scale of one pass: ½(nll1 + nll2) + α/2 · ½[…], a mean over the update's targets. Without dropout both passes are
the same and nothing changes, which is refused unless a dropout is named.
"""

from __future__ import annotations

from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Term

ADD_DROPOUT = "no dropout is active, so both passes would be equal. Write --regularize dropout:0.1,r-drop."
NO_CHECKPOINTING = (
    "gradient checkpointing computes a pass again in the backward pass, and would give the first pass the noise of the "
    "second. Set memory.gradient_checkpointing=false."
)


class RDrop(Regularizer):
    """The second pass and the divergence of the two."""

    name = "r-drop"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self._divergence = 0.0

    def check(self, context: Context) -> Plan:
        """Refused where nothing is dropped."""
        named = any(name.endswith("dropout") for name in context.others)
        if context.runner is not None and not context.runner.noisy and not named:
            return Plan(self.name, refusal=ADD_DROPOUT)
        if getattr(context.model, "is_gradient_checkpointing", False):
            return Plan(self.name, refusal=NO_CHECKPOINTING)
        return Plan(f"two passes an update, their symmetric divergence weighs {self.weight:g}")

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term:
        """Half of the difference of the losses (the task has the first already), and the divergence."""
        second = rerun()
        divergence = forward.symmetric_divergence(second).sum()
        self._divergence = float(divergence.detach()) / max(1, forward.labels.shape[0])
        half = (second.nll().sum() - forward.nll().sum()) / 2
        return Term(half + self.weight / 2 * divergence, targets)

    def report(self) -> dict[str, float]:
        """The weight and the last divergence in nats a target."""
        return {"weight": self.weight, "last_divergence": self._divergence}
