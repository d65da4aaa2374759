"""Declarations of the regularizers that belong to a recipe: T-Few's losses, a pruned prefix, AdaLoRA's ranks."""

from __future__ import annotations

from foretune.catalogue.regularizer import Declaration, number
from foretune.catalogue.space import Space

_OTHER_ROWS = "the noise is drawn for a micro-batch's own rows, not for those of wrong choices; name one of them."

TFEW = Declaration(
    name="tfew",
    about="For labelled rows: wrong labels become unlikely, and the right one likelier than they are.",
    source="Liu et al. 2022 (T-Few), 2205.05638",
    strength="weight",
    space=Space(
        (
            number("tfew.weight", 0.0, 100.0, 1.0, "Weight of the two losses beside the likelihood."),
            number("tfew.choices", 1, 100, 3, "Most wrong labels scored for a row: a pass each.", whole=True),
        )
    ),
    kinds=("causal", "seq2seq"),
    fix="A classifier's own loss compares all classes already: leave tfew out.",
    conflicts=tuple((noise, _OTHER_ROWS) for noise in ("dropout", "guided-dropout", "gaussian-dropout", "neftune")),
)

PRUNE_REWIND = Declaration(
    name="prune-rewind",
    about="A learnt prefix loses the positions that matter least, and what is left begins again.",
    source="Han et al. 2023 (E²VPT), 2307.13770",
    strength="share",
    space=Space(
        (
            number("prune-rewind.share", 0.0, 0.99, 0.5, "Share of the learnt positions that go."),
            number("prune-rewind.at", 0.01, 0.9, 0.3, "Share of the run after which they go."),
        )
    ),
    methods=("e2vpt",),
    fix="Use it with method e2vpt.",
    conflicts=(("recadam", "its step would take a part of the rewinding back; name l2-sp instead of recadam."),),
)

RANK_SCHEDULE = Declaration(
    name="rank-schedule",
    about="AdaLoRA's ranks go where they matter: the least important ones of all layers are let go on the way.",
    source="Zhang et al. 2023 (AdaLoRA), 2303.10512",
    strength="keep",
    space=Space(
        (
            number("rank-schedule.keep", 0.01, 1.0, 0.5, "Share of the ranks that stay."),
            number("rank-schedule.start", 0.0, 0.9, 0.1, "Share of the run before any goes."),
            number("rank-schedule.end", 0.05, 1.0, 0.7, "Share of the run after which none goes or comes back."),
            number("rank-schedule.every", 1, 10_000, 10, "Updates between two choices.", whole=True),
        )
    ),
    methods=("adalora",),
    fix="Use it with method adalora.",
)
