"""One shared design of configurations over the whole menu, the same for every task of every list.

A design is a list of blocks. Half of a block are one-factor changes around a point of the portfolio, so that effects
can be read off pairs; the other half is drawn from the block's space by a scrambled Sobol sequence (Sobol 1967; Owen
1998), so that a surrogate sees the whole of it. Changes and draws alternate: any first part of a block is balanced.

A `Draw` is relative: learning rate to the rule's (`catalogue.priors`), rows per update to the task list's. The same
name means the same settings on every task, which is what a replay compares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.catalogue.models import ModelKind
from foretune.catalogue.priors import learning_rate, recommended, rounded
from foretune.catalogue.space import Space, Value
from foretune.errors import UsageError
from foretune.seeding import derive

RATE = "rate"
"""In a block: a factor on the rule's learning rate."""
ROWS = "rows"
"""In a block: a factor on the task list's rows per update."""
HIGHEST_RATE = 1.0
BEFORE_SEEDS = 8
"""Configurations of a block before its repetitions: a list that trains little of a block has the noise floor too."""
EPOCH_DIGITS = 4


@dataclass(frozen=True)
class Draw:
    """One configuration of the design, relative to what a task makes of it."""

    name: str
    settings: Mapping[str, Value]
    rate: float = 1.0
    """Times the rule's learning rate"""
    rows: float = 1.0
    """Times the task list's rows per update"""
    pair: str = ""
    """The portfolio point from which it differs in one factor; '' for a draw of the sequence"""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the design."""

    name: str
    about: str
    changes: tuple[tuple[str, Mapping[str, Any]], ...]
    """(portfolio point, what is set differently); nothing set differently is the point itself"""
    space: Space
    """What the other half is drawn from"""
    seeds: tuple[int, ...] = ()
    """Further seeds of the portfolio's first point, early in the block: they measure the noise floor"""


@dataclass(frozen=True)
class Planned:
    """A draw made into a trial configuration of one task."""

    config: Mapping[str, Value]
    horizon: int


PORTFOLIO: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method": "lora"},
    "lora-3": {"method": "lora", RATE: 3.0},
    "full": {"method": "full"},
}
"""The points around which one factor is changed: the rule's LoRA, the same at three times its rate, full."""


def draws(blocks: Mapping[Block, int | None] | Sequence[Block]) -> tuple[Draw, ...]:
    """The draws of the blocks, in their order, at most so many of each.

    Raises `UsageError` when two of them are the same configuration.
    """
    counted = blocks.items() if isinstance(blocks, Mapping) else [(block, None) for block in blocks]
    found = tuple(draw for block, most in counted for draw in list(_draws(block))[:most])
    names = [draw.name for draw in found]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"the design has two configurations called {twice}.")
    return found


def _draws(block: Block) -> Iterator[Draw]:
    changes = [_changed(block, point, change) for point, change in block.changes]
    sequence = _sequence(block, len(changes))
    alternating = list(itertools.chain.from_iterable(zip(changes, sequence, strict=True)))
    yield from alternating[:BEFORE_SEEDS]
    first = next(iter(PORTFOLIO))
    for seed in block.seeds:
        yield Draw(f"{first}:seed-{seed}", *_split(PORTFOLIO[first]), pair=first, seed=seed)
    yield from alternating[BEFORE_SEEDS:]


def _changed(block: Block, point: str, change: Mapping[str, Any]) -> Draw:
    settings, rate, rows = _split({**PORTFOLIO[point], **change})
    said = "+".join(f"{key}-{_short(value)}" for key, value in change.items())
    return Draw(f"{point}:{said}" if said else point, settings, rate, rows, pair=point)


def _sequence(block: Block, count: int) -> list[Draw]:
    from scipy.stats import qmc

    dimensions = len(block.space.parameters)
    engine = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(derive(0, "design", block.name)))
    positions = engine.random_base2((max(count, 2) - 1).bit_length())[:count]
    return [
        Draw(f"{block.name}-{number:02d}", *_split(block.space.at([float(u) for u in position])))
        for number, position in enumerate(positions, 1)
    ]


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Value], float, float]:
    """(settings of a trial, factor on the rate, factor on the rows)."""
    own = {key: value for key, value in settings.items() if key not in (RATE, ROWS)}
    return own, rounded(float(settings.get(RATE, 1.0))), float(settings.get(ROWS, 1.0))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Setting:
    """What a task and its list make of a draw."""

    width: int
    kind: ModelKind
    train_rows: int
    row_tokens: float
    tokens: int
    """Training tokens of a run"""
    rows_per_update: int
    raised_rates: bool = True
    """Whether the rule's rates rise in an encoder's short runs"""


def planned(draw: Draw, setting: Setting) -> Planned:
    """The trial configuration of a draw: equal training tokens for all draws of a task.

    Raises `UsageError` for settings that this version does not have, naming the draw.
    """
    rows = max(1, round(setting.rows_per_update * draw.rows))
    steps = max(1, int(setting.tokens / (setting.row_tokens * rows)))
    epochs = max(round(steps * min(rows, setting.train_rows) / setting.train_rows, EPOCH_DIGITS), 10.0**-EPOCH_DIGITS)
    fixed = {**draw.settings, "rows_per_update": rows, "epochs": epochs}
    method = str(fixed.pop("method", "lora"))
    width, kind = setting.width, setting.kind
    try:
        rule = learning_rate(
            method, width=width, kind=kind, rows_per_update=rows, steps=steps, raised=setting.raised_rates
        )
        fixed["learning_rate"] = min(rounded(rule * draw.rate), HIGHEST_RATE)
        config = dict(recommended(method, width=width, kind=kind, steps=steps, fixed=fixed).config)
    except UsageError as error:
        raise UsageError(f"the design's configuration {draw.name}: {error.what}", remedy=error.remedy) from error
    return Planned(config, steps)
