"""Prefix tuning (Li & Liang 2021, 2101.00190): n learnt keys and values in every attention.

They are trained as they are: the paper's network that makes them in training is a choice of parameters and not of
model. peft, which puts them into the cache, also moves the row's positions behind them; here the row keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foretune.catalogue.methods.sites import attentions_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prefix import PrefixModel, PrefixUpdate


@dataclass
class PrefixTuningConfig(AdapterConfig):
    """Settings of the prefix."""

    prefix: int = field(default=20, metadata={"help": "Learnt keys and values of each attention."})

    method = "prefix_tuning"
    knob = "prefix"


def build(request: Request) -> PrefixTuningConfig:
    """The peft configuration."""
    return PrefixTuningConfig(
        target_modules=attentions_of(request.targets), prefix=request.own["prefix"], task_type=request.task_type
    )


define(PrefixTuningConfig, PrefixUpdate, model=PrefixModel)
METHOD = AdapterMethod("prefix_tuning", build)
