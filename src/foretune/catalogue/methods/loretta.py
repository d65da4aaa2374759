"""LoRETTA (Yang et al. 2024, 2402.11417), the variant that represents LoRA's factors as tensor trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from foretune.catalogue.methods.base import (
    ADAPTER_TRAITS,
    Declaration,
    alpha,
    dropout,
    per_linear,
    raised,
    rank,
    targets,
)
from foretune.catalogue.space import Choice, Number, Space


@lru_cache(maxsize=1024)
def three_factors(number: int) -> tuple[int, int, int]:
    """``number`` as a product a·b·c with the smallest possible sum, a ≥ b ≥ c: the modes of a tensor train."""
    best = (number, 1, 1)
    for c in range(1, round(number ** (1 / 3)) + 1):
        if number % c:
            continue
        rest = number // c
        for b in range(c, int(rest**0.5) + 1):
            if rest % b == 0 and rest // b + b + c < sum(best):
                best = (rest // b, b, c)
    return best


def train_shapes(modes: Sequence[int], train_rank: int) -> list[tuple[int, int, int]]:
    """The cores (r_{k−1}, n_k, r_k) of a train over ``modes``, with rank ``train_rank`` inside and 1 at its ends."""
    last = len(modes) - 1
    return [(1 if k == 0 else train_rank, n, 1 if k == last else train_rank) for k, n in enumerate(modes)]


def down_modes(inputs: int, bottleneck: int) -> tuple[int, ...]:
    """Modes of the factor A: the input's three, then the bottleneck."""
    return (*three_factors(inputs), bottleneck)


def up_modes(outputs: int, bottleneck: int) -> tuple[int, ...]:
    """Modes of the factor B: the bottleneck, then the output's three."""
    return (bottleneck, *three_factors(outputs))


def _count(inputs: int, outputs: int, train_rank: int, bottleneck: int) -> int:
    cores = train_shapes(down_modes(inputs, bottleneck), train_rank) + train_shapes(
        up_modes(outputs, bottleneck), train_rank
    )
    return sum(before * n * after for before, n, after in cores)


LORETTA = Declaration(
    name="loretta",
    about="LoRA with each factor stored as a tensor train: far fewer parameters.",
    space=Space(
        (
            rank("loretta", 5, high=128, about="Rank inside the tensor trains."),
            Number("loretta.bottleneck", 1, 256, 8, log=True, whole=True, about="Rank of the update."),
            alpha("loretta", 16.0, about="The update is scaled by alpha / bottleneck."),
            dropout("loretta"),
            targets("loretta"),
            raised("loretta"),
        )
    ),
    menu=Space((Choice("loretta.rank", (2, 5, 10, 20), 5), Choice("loretta.bottleneck", (8, 16, 32), 8))),
    traits=ADAPTER_TRAITS,
    rate_multiplier=20.0,
    short_run_multiplier=1.5,
    source="Yang et al. 2024 (2402.11417), section 3.2; rates of their table 8 are about twice LoRA's",
    knob="rank",
    formula="Σ r_{k−1} n_k r_k over both trains",
    count=per_linear(lambda i, o, r, own: _count(i, o, r, int(own["bottleneck"]))),
    example={"rank": 3, "bottleneck": 4, "raised": 3},
)
