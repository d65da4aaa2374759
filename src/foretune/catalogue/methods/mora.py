"""MoRA (Jiang et al. 2024, 2405.12130): a square matrix between parameter-free compression and decompression."""

from __future__ import annotations

import math

from foretune.catalogue.methods.base import (
    ADAPTER_TRAITS,
    Declaration,
    dropout,
    per_linear,
    raised,
    rank,
    targets,
)
from foretune.catalogue.space import Choice, Space


def square_size(inputs: int, outputs: int, equal_rank: int) -> int:
    """r̂ = ⌊√((i+o)·r) + ½⌋: the side of the square with as many entries as LoRA of that rank."""
    return int(math.sqrt((inputs + outputs) * equal_rank) + 0.5)


MORA = Declaration(
    name="mora",
    about="A square, high-rank update: inputs are compressed by group sums, outputs spread over groups.",
    space=Space(
        (
            rank("mora", 16, about="The square has as many entries as LoRA of this rank."),
            Choice(
                "mora.kind",
                ("sharing", "rotation"),
                "rotation",
                about="Group sums (type 1) or rotated groups (type 6).",
            ),
            dropout("mora"),
            targets("mora"),
            raised("mora"),
        )
    ),
    menu=Space((Choice("mora.rank", (8, 16, 32, 64), 16), Choice("mora.kind", ("sharing", "rotation"), "rotation"))),
    traits=ADAPTER_TRAITS,
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Jiang et al. 2024 (2405.12130), equations 5 to 9 and the released code's types 1 and 6",
    knob="rank",
    formula="r̂², r̂ = ⌊√((i+o)r)+½⌋",
    count=per_linear(lambda i, o, r, own: square_size(i, o, r) ** 2),
    evidence="released code",
    example={"rank": 4, "raised": 3},
)
