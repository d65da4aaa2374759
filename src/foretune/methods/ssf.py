"""SSF (Lian, Zhou, Feng & Wang 2022, 2210.08823, equation 3): y = γ ⊙ (W x + b) + β on every linear layer.

γ = 1, β = 0. The paper also scales the outputs of norms; an RMS norm has no bias that a shift could merge into, so
norms are left alone here.
"""

from __future__ import annotations

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.model import define
from foretune.methods.tuners.scale_shift import ScaleShift


class SsfConfig(AdapterConfig):
    """Settings of SSF: its targets."""

    method = "ssf"
    knob = ""


def build(request: Request) -> SsfConfig:
    """The peft configuration."""
    return SsfConfig(**request.settings())


define(SsfConfig, ScaleShift)
METHOD = AdapterMethod("ssf", build)
