"""Full fine-tuning: every weight of the model is trained; the reference of all learning-rate multipliers."""

from __future__ import annotations

from foretune.catalogue.methods.base import Declaration
from foretune.catalogue.space import Space
from foretune.catalogue.traits import Traits

FULL = Declaration(
    name="full",
    about="Every weight of the model is trained.",
    space=Space(),
    menu=Space(),
    traits=Traits(
        identity_at_init=True, merge="exact", disables_to_base=False, packable=True, deterministic=True, servable=True
    ),
    rate_multiplier=1.0,
    short_run_multiplier=1.0,
    source="the reference of all multipliers",
    formula="all parameters",
    family="whole",
    layerwise=False,
)
