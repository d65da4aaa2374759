"""RED (Wu et al. 2024, 2402.15179): the feed-forward output of every layer is scaled and shifted."""

from __future__ import annotations

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration
from foretune.catalogue.methods.sites import sites_of
from foretune.catalogue.space import Space

RED = Declaration(
    name="red",
    about="Scales and shifts the feed-forward output of every layer; nothing is left of it once merged.",
    space=Space(),
    menu=Space(),
    traits=ADAPTER_TRAITS,
    rate_multiplier=50.0,
    short_run_multiplier=1.0,
    source="Wu et al. 2024 (2402.15179), equation 2; rate: vectors want 1e-3 to 5e-3 (public sweeps)",
    formula="2dL",
    count=lambda targets, model, own: 2 * model.width * len(sites_of(targets, "after_ffn")),
    family="edit",
)
