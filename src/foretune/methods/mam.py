"""MAM, mix-and-match adapter (He et al. 2022, 2110.04366, section 4.6), as one adapter that owns both parts.

A prefix of ``prefix`` learnt keys and values in every self-attention (`foretune.methods.tuners.prefix`), and beside
every feed-forward layer a parallel bottleneck adapter h + s · W_up ReLU(W_down x) with s = 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from foretune.catalogue.methods.sites import attentions_of, sites_of
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.bottleneck import Bottleneck, BottleneckConfig
from foretune.methods.tuners.edit import EditModel
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prefix import PrefixModel, PrefixUpdate


@dataclass
class MamConfig(BottleneckConfig):
    """Settings of MAM."""

    prefix: int = field(default=30, metadata={"help": "Learnt keys and values of each attention."})
    attentions: list[str] = field(default_factory=list, metadata={"help": "Attention modules with a prefix."})

    method = "mam"


class MamModel(EditModel, PrefixModel):
    """Attention modules get their prefix, feed-forward layers their adapter."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        if name in config.attentions:
            return PrefixUpdate(base, int(config.prefix))
        return super().build(config, base, name)


def build(request: Request) -> MamConfig:
    """The peft configuration."""
    own = request.own
    sites = sites_of(request.targets, "parallel_ffn")
    attentions = attentions_of(request.targets)
    entries = {site.exit: site.entry for site in sites}
    return MamConfig(
        target_modules=[*attentions, *entries.values(), *entries],
        attentions=attentions,
        entries=entries,
        task_type=request.task_type,
        norm=False,
        activation="relu",
        **{name: own[name] for name in ("width", "prefix", "scale", "dropout")},
    )


define(MamConfig, Bottleneck, model=MamModel)
METHOD = AdapterMethod("mam", build)
