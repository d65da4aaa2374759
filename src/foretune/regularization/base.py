"""The Regularizer seam and the order in which several compose.

The loop calls, per update: module edits are in place since ``setup`` → ``pre_forward`` noise → ``loss`` terms
summed with the task's → ``pre_step`` gradient masks → the optimiser → ``post_step`` decoupled pulls. Noise is drawn
once per update and held over its micro-batches. After ``teardown`` every hook and inserted module is gone; trained
weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from foretune.catalogue.space import Space

if TYPE_CHECKING:
    from torch import nn

    from foretune.data.update import MicroBatch
    from foretune.methods.base import Attachment


@dataclass(frozen=True)
class Term:
    """A loss term: its differentiable sum over a micro-batch and its denominator over the whole update."""

    sum: torch.Tensor
    """() float32"""
    denominator: float

    def value(self) -> torch.Tensor:
        """What this micro-batch contributes to the update's loss."""
        return self.sum / self.denominator


class Forward(Protocol):
    """What losses and regularizers see of one forward pass: only the scored positions.

    The language-model head has not run yet; ``log_probs`` runs it chunk by chunk, so a whole (targets, vocabulary)
    matrix never has to exist.
    """

    @property
    def hidden(self) -> torch.Tensor:
        """(targets, width): final hidden states at the scored positions (class logits for classifiers)."""
        ...

    @property
    def labels(self) -> torch.Tensor:
        """(targets,) int64 token ids or class numbers; float for regression."""
        ...

    @property
    def row(self) -> torch.Tensor:
        """(targets,) int64 row number within the update."""
        ...

    def log_probs(self, chunk: slice) -> torch.Tensor:
        """(chunk, vocabulary or classes) float32 log-probabilities."""
        ...

    def nll(self) -> torch.Tensor:
        """(targets,) float32 loss of every label."""
        ...


@dataclass(frozen=True)
class Context:
    """What a regularizer may look at when it is set up."""

    model: nn.Module
    attachment: Attachment
    seed: int
    total_steps: int


@dataclass(frozen=True)
class Plan:
    """What a regularizer will do to this model, said before training; ``refusal`` names the fix when it cannot."""

    summary: str
    refusal: str = ""
    sites: tuple[str, ...] = ()
    packable: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


class Regularizer:
    """The base: every hook does nothing. A regularizer overrides what it needs."""

    name: str = "none"

    def space(self) -> Space:
        """Its settings."""
        return Space()

    def check(self, context: Context) -> Plan:
        """Say what will be done, or why it cannot."""
        return Plan(self.name)

    def setup(self, context: Context) -> None:
        """Edit modules, place hooks."""

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Before a micro-batch's forward pass; ``generator`` is the same for all micro-batches of an update."""

    def token_weights(self, batch: MicroBatch) -> torch.Tensor | None:
        """(targets,) weights of the token losses, or None."""
        return None

    def loss(self, forward: Forward, rerun: Callable[[], Forward], targets: int) -> Term | None:
        """An extra loss term; ``rerun`` runs the micro-batch again, ``targets`` counts those of the whole update."""
        return None

    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Before the optimiser: gradients are complete, in the fp32 masters."""

    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """After the optimiser: decoupled pulls on the fp32 masters."""

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Replace or wrap the optimiser."""
        return optimizer

    def teardown(self) -> None:
        """Remove hooks and inserted modules."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back `state_dict`."""

    def report(self) -> dict[str, float]:
        """Effective rates and measured cost."""
        return {}
