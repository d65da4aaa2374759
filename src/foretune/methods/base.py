"""The Method seam: how a way of fine-tuning attaches to a loaded model and leaves it again.

A method declares (torch-free, in `catalogue.methods`) its space and traits; here it counts, attaches and detaches.
After ``detach`` the base model is bitwise what it was, so one loaded base serves many trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foretune.catalogue.space import Space
from foretune.catalogue.traits import Traits

if TYPE_CHECKING:
    import torch
    from torch import nn

    from foretune.cost.shapes import ModelShapes


@dataclass(frozen=True)
class KnobChoice:
    """The knob's value that meets a trainable share best, with what it achieves."""

    fields: Mapping[str, Any]
    parameters: int
    share: float


@dataclass(frozen=True)
class Infeasible:
    """No value of the knob meets the share; ``alternatives`` are the nearest that exist, each said in words."""

    why: str
    alternatives: tuple[KnobChoice, ...] = ()


class Attachment(Protocol):
    """A method attached to a model."""

    @property
    def model(self) -> Any:
        """What the training loop calls: the adapted transformers model."""
        ...

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups of trainable parameters: ``{"names": [...], "params": [...], "lr": float, "weight_decay": bool}``."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, enough to rebuild the adapter."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back tensors from `state`; a missing or extra name raises `ModelError`."""
        ...

    def disabled(self) -> Any:
        """A context manager inside which the model answers as the base; raises where it cannot."""
        ...

    def merge(self) -> nn.Module:
        """The base with the adapter folded in; raises `UsageError` where the traits say it cannot."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter (or the full weights) in the form that others load."""
        ...

    def statistics(self) -> dict[str, float]:
        """Numbers for the report, such as the norm of the update."""
        ...

    def observed(self) -> AbstractContextManager[Any]:
        """Inside, the method may count what its layers see, for `statistics`."""
        ...

    def detach(self) -> nn.Module:
        """Remove everything and return the base, bitwise as before."""
        ...


class Method(Protocol):
    """One way of fine-tuning."""

    @property
    def name(self) -> str:
        """What it is called in configurations."""
        ...

    @property
    def traits(self) -> Traits:
        """What it promises."""
        ...

    def space(self) -> Space:
        """The settings this method has, with their defaults."""
        ...

    def count(self, shapes: ModelShapes, fields: Mapping[str, Any]) -> int:
        """Trainable parameters for these settings, in closed form."""
        ...

    def knob_for(self, shapes: ModelShapes, trainable: float, fields: Mapping[str, Any]) -> KnobChoice | Infeasible:
        """The knob's value whose count is nearest to the share ``trainable`` of all parameters."""
        ...

    def attach(
        self,
        model: nn.Module,
        fields: Mapping[str, Any],
        *,
        generator: torch.Generator,
        calibration: Iterable[Any] | None = None,
    ) -> Attachment:
        """Attach to ``model`` with fresh weights drawn from ``generator``."""
        ...
