"""RED, representation editing (Wu et al. 2024, 2402.15179, equation 2): h₂ = s ⊙ h₁ + b on feed-forward outputs.

s = 1, b = 0; the feed-forward layer's last linear layer takes the edit in exactly when merged.
"""

from __future__ import annotations

from foretune.catalogue.methods.sites import sites_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.model import define
from foretune.methods.tuners.scale_shift import ScaleShift


class RedConfig(AdapterConfig):
    """Settings of RED: where it goes."""

    method = "red"
    knob = ""


def build(request: Request) -> RedConfig:
    """The peft configuration."""
    return RedConfig(
        target_modules=[site.exit for site in sites_of(request.targets, "after_ffn")], task_type=request.task_type
    )


define(RedConfig, ScaleShift)
METHOD = AdapterMethod("red", build)
