"""The settings every run has, whatever its method: learning rate, amount of training, schedule, guards.

Two spaces: `TRAINING` is what a user may set at all, with the defaults; `TRAINING_MENU` is the narrower part a search
draws from. The amount of training (rows per update, epochs) is never drawn: runs that are compared at the same rung
must have seen the same rows (Li et al. 2020, ASHA, compares equal resource only).
"""

from __future__ import annotations

from foretune.catalogue.space import Choice, Number, Space, Text

AMOUNT = ("rows_per_update", "epochs")
"""The settings that fix how much is trained; every run of one search shares them."""

TRAINING = Space(
    (
        Number("learning_rate", 1e-8, 1.0, 2e-4, log=True, about="Peak learning rate of the optimiser (absolute)."),
        Number("rows_per_update", 1, 4096, 16, log=True, whole=True, unit="rows", about="Rows in one optimiser step."),
        Number("epochs", 0.001, 1000, 3, log=True, unit="epochs", about="Passes over the kept training rows."),
        Choice("schedule", ("linear", "cosine", "constant"), "linear", about="How the rate decays after warm-up."),
        Number("warmup_share", 0.0, 0.9, 0.03, about="Share of the steps over which the rate rises from zero."),
        Number("weight_decay", 0.0, 1.0, 0.0, about="Decoupled weight decay of AdamW."),
        Number("max_gradient_norm", 1e-3, 1e3, 1.0, log=True, about="Gradients are clipped to this global norm."),
        Text(
            "regularizer",
            "none",
            r"none|[a-z][a-z0-9-]*(:[0-9.e+-]+)?(,[a-z][a-z0-9-]*(:[0-9.e+-]+)?)*",
            about="What keeps the run from forgetting or over-fitting: none, or names like guided-dropout,l2-sp:0.1.",
        ),
    )
)

TRAINING_MENU = Space(
    (
        Choice("schedule", ("linear", "cosine", "constant"), "linear"),
        Number("warmup_share", 0.0, 0.1, 0.03),
        Choice("weight_decay", (0.0, 0.01, 0.1), 0.0),
    )
)
"""What a search draws besides the learning rate, which has a rule of its own (`catalogue.priors`)."""
