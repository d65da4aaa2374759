"""The Regularizer seam: what one may look at, where the loop calls it, and what it must leave behind.

Several compose in one explicit order, phase by phase and within a phase in the order in which they are named:
module edits (`setup`) → `pre_forward` noise → `loss` terms summed with the task's → `end_forward` puts back what the
passes moved → `pre_step` gradient masks → the optimiser → `post_step` decoupled pulls. Noise comes from the generator
that the loop hands over and from nowhere else. Noise on weights is drawn once an update and held over its
micro-batches; noise on activations is drawn row by row, so that it does not depend on how rows are laid out. After
`teardown` every hook and inserted module is gone; trained weights stay, frozen ones never moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from foretune.catalogue.models import ModelKind
from foretune.catalogue.regularizers import declaration
from foretune.catalogue.space import Space

if TYPE_CHECKING:
    from torch import nn

    from foretune.data.encode import EncodedRow
    from foretune.data.update import MicroBatch, Update
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

    The language-model head has not run yet; it runs chunk by chunk, so a whole (targets, vocabulary) matrix never has
    to exist.
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

    def divergence_from(self, hidden: torch.Tensor) -> torch.Tensor:
        """(targets,) float32 KL(p ‖ own), with p the fixed distribution that ``hidden`` (targets, width) gives."""
        ...

    def symmetric_divergence(self, other: Forward) -> torch.Tensor:
        """(targets,) float32 ½ KL(own ‖ other) + ½ KL(other ‖ own), with gradients to both."""
        ...


class Rerun(Protocol):
    """Runs the micro-batch again."""

    def __call__(self, *, fresh: bool = True) -> Forward:
        """Another pass over the same rows; with ``fresh`` noise on activations, or exactly the first pass's."""
        ...


class Runner(Protocol):
    """The model as the loop runs it."""

    training_attention: str | None
    """The attention function of padded batches in training, where a regularizer needs its own"""

    @property
    def noisy(self) -> bool:
        """Whether any dropout of the model is active in training."""
        ...

    def run(self, batch: MicroBatch) -> Forward:
        """A forward pass in the model's present mode."""
        ...

    def mode(self, *, packing: bool, training: bool) -> AbstractContextManager[None]:
        """Inside, the model trains or evaluates."""
        ...


@dataclass(frozen=True)
class Context:
    """What a regularizer may look at when it is set up."""

    model: nn.Module
    """The transformers model, adapter injected"""
    attachment: Attachment
    seed: int
    total_steps: int
    kind: ModelKind = "causal"
    base_hash: str = ""
    """`LoadedModel.weights_hash` of the base; empty where it is not known"""
    base_source: str = ""
    """The base's folder or hub id"""
    names: tuple[str, ...] = ()
    """Names of the trainable tensors"""
    masters: tuple[torch.Tensor, ...] = ()
    """Their float32 masters, in the same order: what `pre_step` and `post_step` get"""
    weights: tuple[torch.Tensor, ...] = ()
    """Their computing copies in the model, in the same order"""
    rows: Sequence[EncodedRow] = ()
    """The training rows"""
    runner: Runner | None = None
    lay_out: Callable[[Sequence[int]], Update] | None = None
    """The micro-batches of any training rows, laid out as the loop does"""
    others: tuple[str, ...] = ()
    """Names of all regularizers of the run, in order"""

    def quiet_pass(self, batch: MicroBatch) -> Forward:
        """A forward pass in evaluation mode: without any noise."""
        assert self.runner is not None
        with self.runner.mode(packing=batch.layout is not None, training=False):
            return self.runner.run(batch)

    def base_pass(self, batch: MicroBatch) -> Forward:
        """A forward pass of the base: the adapter switched off, no noise, no gradient."""
        with torch.no_grad(), self.attachment.disabled():
            return self.quiet_pass(batch)


@dataclass(frozen=True)
class Plan:
    """What a regularizer will do to this model, said before training; ``refusal`` names the fix when it cannot."""

    summary: str
    refusal: str = ""
    sites: tuple[str, ...] = ()
    packable: bool = True
    shares_head: bool = False
    """Whether rows are treated alike at their common first tokens, so that a packed stream may hold these once"""
    extra_bytes: int = 0
    """Memory it will hold beside the model"""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Regularizer:
    """The base: every hook does nothing. A regularizer overrides what it needs."""

    name: str = "none"

    def space(self) -> Space:
        """Its settings, as declared in `catalogue.regularizers`."""
        return declaration(self.name).space

    def check(self, context: Context) -> Plan:
        """Say what will be done, or why it cannot."""
        return Plan(self.name)

    def setup(self, context: Context) -> None:
        """Edit modules, place hooks, remember where the weights began."""

    def prepare(self, batch: MicroBatch) -> None:
        """Once a micro-batch, before all passes of the update: what needs a pass of its own without gradients."""

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Before a micro-batch's forward pass; ``generator`` is the same for all micro-batches of an update.

        A further pass over the same rows (`Rerun`) comes with a generator of its own.
        """

    def token_weights(self, batch: MicroBatch) -> torch.Tensor | None:
        """(targets,) weights of the token losses, or None; asked once a micro-batch, before the update's passes."""
        return None

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term | None:
        """An extra loss term; ``rerun`` runs the micro-batch again, ``targets`` counts those of the whole update."""
        return None

    def end_forward(self) -> None:
        """The passes of an update are over (or given up): put back weights that `pre_forward` moved."""

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
        """What it did, in numbers: effective rates, last divergence, memory held."""
        return {}
