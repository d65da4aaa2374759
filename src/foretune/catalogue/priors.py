"""What is recommended before anything was measured: the learning-rate rule, the default LoRA and the portfolio.

The rule, for full fine-tuning of a causal model of hidden width w with b rows an update:

    lr_full = 5e-5 · (2000 / w)^0.781 · sqrt(b / 16)

The width law and its anchor are those fitted over Llama models by Schulman et al. (2025, "LoRA Without Regret", and
its published hyper-parameter helper): 2.9e-5 at width 4096 (a 7B model; practice: 2e-5) and 1.3e-4 at width 576
(135M; practice: 1e-4). For other families they fitted flatter laws; the portfolio's factor of three on each side
covers the difference up to width 8192. The square root is the scaling of Adam with the batch (Malladi et al. 2022,
2205.10287), held within a factor of two. A method multiplies (`Declaration.rate_multiplier`: LoRA 10, and 15 for runs
under 100 steps, same source). Encoder–decoders use the same law.

Encoders with a fresh head follow Devlin et al. 2019 (appendix A.3: 2e-5 to 5e-5 full): 3e-5 at width 768, same width
law, kept within those bounds before the method multiplies. Those are rates of long runs. Below `ENCODER_LONG_RUN` steps
the rate rises with 1/sqrt(steps), as step sizes do in bounds on convergence, up to 2.5 times. In the 1,020 runs of
MiniLM that ship (40 to 70 steps), three times the unraised rate has the lower validation loss on 10 of 12 tasks for
LoRA and on 12 of 12 in full, ten times diverges (scripts/paired_changes.py); at 84 steps in full, 1e-4 was the best of
five (`regularization:rate`).

These are starting points, not results: the search tests them against the default LoRA on the user's rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.methods import declaration, resolve
from foretune.catalogue.models import ModelKind
from foretune.catalogue.space import Value
from foretune.errors import UsageError

CAUSAL_ANCHOR_RATE = 5e-5
CAUSAL_ANCHOR_WIDTH = 2000
ENCODER_ANCHOR_RATE = 3e-5
ENCODER_ANCHOR_WIDTH = 768
ENCODER_RATES = (2e-5, 5e-5)
ENCODER_LONG_RUN = 300
ENCODER_HIGHEST_FACTOR = 2.5
WIDTH_EXPONENT = 0.781
ANCHOR_ROWS_PER_UPDATE = 16
BATCH_FACTORS = (0.5, 2.0)
"""Beyond a factor of four in batch size the square-root law is not trusted."""
SHORT_RUN_STEPS = 100
FEWEST_STEPS = 32
SMALLEST_UPDATE = 4
"""Updates of 16 rows are halved, down to this, while a run has fewer steps than `FEWEST_STEPS`. In the shipped runs of
decoders (13 to 24 steps of 8 rows), twice the steps of half the rows have the lower validation loss on 6 of 6 tasks."""
PORTFOLIO_FACTORS = (1.0, 3.0, 1 / 3)
"""Half a decade on each side: the spread of best rates around such rules in the published sweeps."""
RATE_DIGITS = 3
"""Significant digits kept: a finer learning rate would only look exact."""

DEFAULT_LORA: Mapping[str, Value] = resolve(
    {
        "method": "lora",
        "lora.rank": 16,
        "lora.alpha": 32,
        "lora.targets": "all-linear",
        "lora.dropout": 0.0,
        "learning_rate": 2e-4,
        "warmup_share": 0.03,
        "schedule": "linear",
        "epochs": 3,
        "rows_per_update": 16,
        "weight_decay": 0.0,
        "max_gradient_norm": 1.0,
    }
)
"""What most published examples use; the first run of every search, and what the result is compared with."""


@dataclass(frozen=True)
class Recommendation:
    """A configuration with its reason."""

    config: Mapping[str, Value]
    why: str


def learning_rate(
    method: str, *, width: int, kind: ModelKind, rows_per_update: int, steps: int, raised: bool = True
) -> float:
    """lr0: the recommended peak learning rate.

    ``width`` is the model's hidden width, ``steps`` the optimiser steps of the run; ``raised`` false leaves out what
    short runs of an encoder add. Raises `UsageError`.
    """
    for name, number in (("width", width), ("rows_per_update", rows_per_update), ("steps", steps)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}.")
    declared = declaration(method)
    rate = _full_rate(width, kind) * declared.rate_multiplier
    low, high = BATCH_FACTORS
    rate *= min(max(math.sqrt(rows_per_update / ANCHOR_ROWS_PER_UPDATE), low), high)
    if steps < SHORT_RUN_STEPS:
        rate *= declared.short_run_multiplier
    if kind == "encoder" and raised:
        rate *= min(max(math.sqrt(ENCODER_LONG_RUN / steps), 1.0), ENCODER_HIGHEST_FACTOR)
    return rounded(rate)


def rows_per_update(train_rows: int, epochs: float) -> int:
    """Rows of an update for so much training: the default's, or fewer where there would be too few updates."""
    rows = int(DEFAULT_LORA["rows_per_update"])
    while rows > SMALLEST_UPDATE and math.ceil(epochs * -(-train_rows // rows)) < FEWEST_STEPS:
        rows //= 2
    return rows


def rounded(rate: float) -> float:
    """``rate`` to `RATE_DIGITS` significant digits."""
    return float(f"{rate:.{RATE_DIGITS - 1}e}")


def recommended(
    method: str, *, width: int, kind: ModelKind, steps: int, fixed: Mapping[str, Any] | None = None
) -> Recommendation:
    """The configuration advised for a method before any measurement; ``fixed`` settings of the user win.

    Raises `UsageError` when ``fixed`` does not fit the method.
    """
    base = {name: value for name, value in DEFAULT_LORA.items() if not name.startswith("lora.")}
    config = resolve({**base, **(fixed or {}), "method": method})
    if "learning_rate" in (fixed or {}):
        return Recommendation(config, f"{method} with the learning rate that was set")
    rows = int(config["rows_per_update"])
    config["learning_rate"] = learning_rate(method, width=width, kind=kind, rows_per_update=rows, steps=steps)
    return Recommendation(
        config, f"{method} at {config['learning_rate']:.3g}, the rule's learning rate for width {width}, {steps} steps"
    )


def portfolio(
    method: str, *, width: int, kind: ModelKind, steps: int, fixed: Mapping[str, Any] | None = None
) -> tuple[Recommendation, ...]:
    """The recommended configuration at lr0, 3·lr0 and lr0/3; one entry where the learning rate is fixed."""
    first = recommended(method, width=width, kind=kind, steps=steps, fixed=fixed)
    if "learning_rate" in (fixed or {}):
        return (first,)
    rate = float(first.config["learning_rate"])
    others = [
        Recommendation(
            {**first.config, "learning_rate": rounded(rate * factor)},
            f"{method} at {rounded(rate * factor):.3g}, {'three times' if factor > 1 else 'a third of'} the rule's "
            "learning rate, in case the rule is off for this model or data",
        )
        for factor in PORTFOLIO_FACTORS[1:]
    ]
    return (first, *others)


def _full_rate(width: int, kind: ModelKind) -> float:
    if kind == "encoder":
        low, high = ENCODER_RATES
        return min(max(ENCODER_ANCHOR_RATE * math.pow(ENCODER_ANCHOR_WIDTH / width, WIDTH_EXPONENT), low), high)
    return CAUSAL_ANCHOR_RATE * math.pow(CAUSAL_ANCHOR_WIDTH / width, WIDTH_EXPONENT)
