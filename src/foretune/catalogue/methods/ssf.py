"""SSF (Lian et al. 2022, 2210.08823): outputs of linear layers are scaled and shifted."""

from __future__ import annotations

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, targets
from foretune.catalogue.space import Choice, Space

SSF = Declaration(
    name="ssf",
    about="Scales and shifts the outputs of linear layers; merges exactly.",
    space=Space((targets("ssf"),)),
    menu=Space((Choice("ssf.targets", ("all-linear", "attention", "mlp"), "all-linear"),)),
    traits=ADAPTER_TRAITS,
    rate_multiplier=50.0,
    short_run_multiplier=1.0,
    source="Lian et al. 2022 (2210.08823), equation 3; rate: vectors want 1e-3 to 5e-3 (public sweeps)",
    formula="2o",
    count=lambda targets, model, own: sum(2 * target.outputs for target in targets),
    family="edit",
    notes=("norms are left alone: an RMS norm has no bias to merge a shift into",),
)
