"""The rows of the experience store as values, and the rule of what may be stored: no user text.

A feature is a number, a truth value, nothing, or a short name (letters, digits, ``. _ : + -`` and one slash, as in a
hub id). A prompt, a path or an error message is none of these and is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foretune.errors import UsageError
from foretune.files import canonical_json, fingerprint

LONGEST_NAME = 96
_WORD = re.compile(r"[A-Za-z0-9._:+,()&|!<>=*\[\]-]+")
"""A word of a setting's small language, such as ``last:2&(attention|mlp)`` or ``neftune:5,kl-to-base:0.1``."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*(/[A-Za-z0-9._:+-]+)?")


@dataclass(frozen=True)
class RunRecord:
    """What defines a run. ``task`` to ``config`` are fingerprints recorded before."""

    id: str
    task: str
    model: str
    hardware: str
    config: str
    seed: int
    horizon: int
    arm: str = ""
    study: str = ""
    pair: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRow:
    """A run as stored, with its settings."""

    record: RunRecord
    settings: Mapping[str, Any]
    status: str
    started_s: int
    finished_s: int | None
    peak_bytes: int


@dataclass(frozen=True)
class ObservationRow:
    """One metric of one run at one step on one split."""

    run: str
    step: int
    split: str
    metric: str
    value: float
    se: float
    n_eval: int
    train_s: float
    eval_s: float
    tokens: int
    train_cpu_s: float | None = None
    eval_cpu_s: float | None = None


@dataclass(frozen=True)
class Seen:
    """What was seen of a run at one step on one split, to be stored. Seconds and tokens are those since the one before.

    A metric ``base.loss`` is the untouched base model's on the same rows.
    """

    step: int
    split: str
    scores: Mapping[str, tuple[float, float, int]]
    """``metric: (value, standard error, rows)``"""
    train_s: float = 0.0
    eval_s: float = 0.0
    tokens: int = 0
    train_cpu_s: float | None = None
    eval_cpu_s: float | None = None

    def rows(self, run: str) -> list[tuple[Any, ...]]:
        """One row of the table a metric, checked. Raises `UsageError`."""
        spent = (
            number("train_s", self.train_s),
            number("eval_s", self.eval_s),
            self.tokens,
            None if self.train_cpu_s is None else number("train_cpu_s", self.train_cpu_s),
            None if self.eval_cpu_s is None else number("eval_cpu_s", self.eval_cpu_s),
        )
        at = (run, self.step, name("split", self.split))
        return [
            (*at, name("metric", metric), number(metric, value), number(f"{metric}'s error", error), rows, *spent)
            for metric, (value, error, rows) in self.scores.items()
        ]


@dataclass(frozen=True)
class Throughput:
    """What a machine did with a model and a method, over all its runs."""

    model: str
    method: str
    runs: int
    tokens: int
    train_s: float
    peak_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """Trained tokens per second."""
        return self.tokens / self.train_s


def name(what: str, value: str, *, empty: bool = False) -> str:
    """``value`` if it is a short name (or empty, where allowed). Raises `UsageError`."""
    if (empty and value == "") or (len(value) <= LONGEST_NAME and _NAME.fullmatch(value)):
        return value
    raise UsageError(
        f"{what} {value[:40]!r} cannot be stored: the experience holds names and numbers, no text.",
        remedy=f"Use at most {LONGEST_NAME} letters, digits and . _ : + , - with at most one slash.",
    )


def number(what: str, value: float) -> float:
    """``value`` if it is finite. Raises `UsageError`: NaN and infinity are never a result."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what} is {value!r}: only finite numbers are stored.")
    return float(value)


def setting(value: Any) -> Any:
    """A configuration's value as it is stored: words without their spaces; free text as ``text:`` and its hash.

    A regular expression in a selector may name anything, so its content stays with the user.
    """
    if not isinstance(value, str):
        return value
    word = "".join(value.split())
    if 0 < len(word) <= LONGEST_NAME and (_WORD.fullmatch(word) or _NAME.fullmatch(word)):
        return word
    return f"text:{fingerprint(value)}"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration as it is stored. Raises `UsageError` for a method or a key that is no name."""
    if "method" in config:
        name("the method", str(config["method"]))
    stored = {name("the setting", key): setting(value) for key, value in config.items()}
    for key, value in stored.items():
        if value is not None and not isinstance(value, bool | str):
            number(f"the setting {key}", value)
    return stored


def features(what: str, values: Mapping[str, Any]) -> str:
    """Canonical JSON of ``values``, each checked. Raises `UsageError`."""
    for key, value in values.items():
        name(f"the {what} feature", key)
        if isinstance(value, str):
            name(f"the {what} feature {key} =", value)
        elif value is not None and not isinstance(value, bool):
            number(f"the {what} feature {key}", value)
    return canonical_json(dict(values))
