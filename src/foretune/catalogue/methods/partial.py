"""Tuning a selection of the model's own parameters, in the selector language: biases, norms, cross-attention, layers.

One mechanism (`foretune.methods.partial`) and one row for each well-known selection; ``partial`` takes any expression.
"""

from __future__ import annotations

from foretune.catalogue.methods.base import Declaration, Family
from foretune.catalogue.space import Number, Parameter, Space, Text
from foretune.catalogue.traits import Traits

_TRAITS = Traits(
    identity_at_init=True, merge="exact", disables_to_base=True, packable=True, deterministic=True, servable=False
)
_SELECTION: Family = "selection"
SMALL_RATE = 25.0
"""Biases and norms want 1e-3 to 5e-3 where full tuning wants 1e-4 (Ben Zaken et al. 2021, section 3)."""


def _selection(
    name: str, about: str, expression: str, source: str, *, rate: float, knob: Parameter | None = None, formula: str
) -> Declaration:
    return Declaration(
        name=name, about=about, space=Space(() if knob is None else (knob,)), menu=Space(()), traits=_TRAITS,
        rate_multiplier=rate, short_run_multiplier=1.0, source=source, formula=formula, family=_SELECTION,
        knob=knob.name.rpartition(".")[2] if isinstance(knob, Number) else "", expression=expression,
    )  # fmt: skip


BITFIT = _selection(
    "bitfit", "The biases inside the layers are trained.", "bias & layers>=0",
    "Ben Zaken, Ravfogel & Goldberg 2021 (2106.10199)", rate=SMALL_RATE, formula="all biases in the layers",
)  # fmt: skip
LAYERNORM = _selection(
    "layernorm", "The scales (and biases) of the norms inside the layers are trained.", "norm & layers>=0",
    "Zhao et al. 2023 (2312.11420)", rate=SMALL_RATE, formula="all norms in the layers",
)  # fmt: skip
CROSSATTENTION = _selection(
    "crossattention", "The attention from decoder to encoder is trained, with its norms.",
    "cross_attention | norm & /encoder_attn|crossattention|EncDecAttention/",
    "Gheini, Ren & May 2021 (2104.08771)", rate=1.0, formula="cross-attention with its norms",
)  # fmt: skip
LASTLAYERS = _selection(
    "lastlayers", "The last layers of every stack are trained whole.", "last:{count}", "Lee et al. 2022 (2210.11466)",
    rate=1.0, knob=Number("lastlayers.count", 1, 256, 2, whole=True, about="How many layers."),
    formula="the last k layers",
)  # fmt: skip
PARTIAL = _selection(
    "partial", "Whatever parameters an expression picks are trained.", "{parameters}", "the selector language",
    rate=1.0, formula="what the expression picks",
    knob=Text("partial.parameters", "attention.o & last:2", r"[^\n]{1,400}",
              about="An expression over roles, like bias | norm, or mlp & layers>=3."),
)  # fmt: skip

SELECTIONS = {item.name: item for item in (PARTIAL, BITFIT, LAYERNORM, CROSSATTENTION, LASTLAYERS)}
