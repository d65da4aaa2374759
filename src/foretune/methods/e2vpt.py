"""Learnt keys and values with a switch each, after E²VPT (Han et al. 2023, 2307.13770): K = [ρ ⊙ P_K ; K], V likewise.

ρ = 1 and is never trained; its gradient ∂L/∂ρ_i tells how much position i matters. The regularizer ``prune-rewind``
(`foretune.regularization.prune_rewind`) uses it: positions that matter least get ρ = 0, which takes them out of the
attention, and those that stay begin again from where they started.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foretune.catalogue.methods.sites import attentions_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prefix import PrefixModel, PrefixUpdate


@dataclass
class E2vptConfig(AdapterConfig):
    """Settings of the prefix."""

    prefix: int = field(default=20, metadata={"help": "Learnt keys and values of each attention."})

    method = "e2vpt"
    knob = "prefix"


class E2vptModel(PrefixModel):
    """Every targeted attention module gets a prefix that can be pruned."""

    prunable = True


def build(request: Request) -> E2vptConfig:
    """The peft configuration."""
    return E2vptConfig(
        target_modules=attentions_of(request.targets), prefix=request.own["prefix"], task_type=request.task_type
    )


define(E2vptConfig, PrefixUpdate, model=E2vptModel)
METHOD = AdapterMethod("e2vpt", build)
