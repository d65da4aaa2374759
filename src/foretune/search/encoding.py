"""Configurations and tasks as numbers: what every surrogate of the search reads.

A configuration is a flat dictionary of whatever settings the catalogue has today, so the columns are learnt from the
configurations themselves. Some have a form of their own: the learning rate is log10 of its ratio to the rule's rate
(`catalogue.priors.learning_rate`), a rank is log2, alpha becomes log2(alpha / rank), ``regularizer`` splits into its
names and the strength of the first. Other numbers are logarithmic where the catalogue declares them so; words are
categories. What a configuration lacks, and a category never seen before, is NaN: trees read it as it is, `dense` as
the middle. Task, model and machine features are a fixed list, each NaN where it is not known.

Source: the representation of Quick-Tune (Arango et al. 2024) with the rate relative to a zero-shot rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from foretune.catalogue.methods import config_space
from foretune.catalogue.priors import learning_rate
from foretune.catalogue.space import Number
from foretune.errors import UsageError

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

RATE, RANK, SCALE, STRENGTH = "rate", "rank", "scale", "strength"
NOTHING = "none"
RULE_OF_UNKNOWN = "lora"
"""Methods the catalogue does not know are mostly low-rank adapters; the ratio only has to be comparable."""
WIDTH_OF_UNKNOWN = 4096
"""As wide as models of 7 to 8 billion parameters: published sweeps seldom say it."""
WIDTH_PER_ROOT = 2.0
"""Width of a decoder over the cube root of its parameters: 2.0 for Llama 3 of 3, 8 and 70 billion."""
TASK_FEATURES = (
    "log10_rows",
    "prompt_tokens.mean",
    "prompt_tokens.std",
    "prompt_tokens.p95",
    "answer_tokens.mean",
    "answer_tokens.std",
    "answer_tokens.p95",
    "answer_share",
    "turns",
    "type_token_ratio",
    "compression_ratio",
    "duplicate_share",
    "unique_answers",
    "code_share",
    "languages.en",
    "imbalance",
    "base_loss",
)
MODEL_FEATURES = ("parameters", "width", "layers", "vocabulary")
KINDS = ("causal", "seq2seq", "encoder")
LOGARITHMIC = frozenset(
    {"parameters", "width", "layers", "vocabulary", "base_loss", "imbalance", "turns"}
    | {f"{side}_tokens.{part}" for side in ("prompt", "answer") for part in ("mean", "std", "p95")}
)


@dataclass(frozen=True)
class Facts:
    """What is known of a task, its model and its runs, before any of them."""

    task: Mapping[str, Any]
    """Flat features by dotted key, as the experience stores them"""
    model: Mapping[str, Any]
    steps: int
    """Steps of a full run: the rule for the learning rate needs it"""

    @property
    def kind(self) -> str:
        """The model's kind."""
        return str(self.model.get("kind", KINDS[0]))


def features(facts: Facts) -> Floats:
    """(task and model features,): NaN where one is not known."""
    values = [_number(facts.task.get(name), name) for name in TASK_FEATURES]
    values += [_number(facts.model.get(name), name) for name in MODEL_FEATURES]
    values.append(float(KINDS.index(facts.kind)) if facts.kind in KINDS else math.nan)
    values.append(math.log10(max(1, facts.steps)))
    return np.asarray(values)


def rate_over_rule(config: Mapping[str, Any], facts: Facts) -> float:
    """log10 of the learning rate over the rule's rate for this model; NaN for a configuration without a rate."""
    rate = config.get("learning_rate")
    if not rate:
        return math.nan
    known = {
        "width": _width(facts.model),
        "kind": facts.kind if facts.kind in KINDS else KINDS[0],
        "steps": max(1, facts.steps),
    }
    rows = int(config.get("rows_per_update") or 16)
    method = str(config.get("method", RULE_OF_UNKNOWN))
    return math.log10(float(rate) / _rule(method, known["width"], str(known["kind"]), rows, known["steps"]))


def _width(model: Mapping[str, Any]) -> int:
    """A model's width, or a guess from its size: an offset that all runs of a task share."""
    if model.get("width"):
        return int(model["width"])
    parameters = model.get("parameters")
    return round(WIDTH_PER_ROOT * float(parameters) ** (1 / 3)) if parameters else WIDTH_OF_UNKNOWN


@lru_cache(maxsize=4096)
def _rule(method: str, width: int, kind: Any, rows: int, steps: int) -> float:
    try:
        return learning_rate(method, width=width, kind=kind, rows_per_update=rows, steps=steps)
    except UsageError:
        return learning_rate(RULE_OF_UNKNOWN, width=width, kind=kind, rows_per_update=rows, steps=steps)


def described(config: Mapping[str, Any], facts: Facts) -> dict[str, float | str]:
    """The columns of one configuration: numbers, and words for categories."""
    row: dict[str, float | str] = {RATE: rate_over_rule(config, facts)}
    method = str(config.get("method", ""))
    for name, value in config.items():
        if name == "learning_rate" or value is None:
            continue
        own = name.removeprefix(f"{method}.")
        if isinstance(value, bool):
            row[name] = float(value)
        elif own in ("rank", "r") and name != own:
            row[RANK] = math.log2(float(value)) if float(value) > 0 else math.nan
        elif own in ("alpha", "lora_alpha") and name != own:
            rank = float(config.get(f"{method}.rank", config.get(f"{method}.r", math.nan)))
            row[SCALE] = math.log2(float(value) / rank) if float(value) > 0 and rank > 0 else math.nan
        elif isinstance(value, int | float):
            row[name] = _scaled(name, float(value))
        elif name == "regularizer":
            names, strength = _regularizers(str(value))
            row[name], row[STRENGTH] = names, strength
        else:
            row[name] = str(value)
    return row


@dataclass(frozen=True)
class Encoding:
    """The columns learnt from some configurations."""

    numbers: tuple[str, ...]
    categories: tuple[tuple[str, tuple[str, ...]], ...]
    """(column, its known words)"""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Range of each number among the configurations"""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, float | str]]) -> Encoding:
        """The encoding of ``described`` configurations."""
        spans: dict[str, list[float]] = {}
        words: dict[str, set[str]] = {}
        for row in rows:
            for name, value in row.items():
                if isinstance(value, str):
                    words.setdefault(name, set()).add(value)
                elif math.isfinite(value):
                    span = spans.setdefault(name, [value, value])
                    span[0], span[1] = min(span[0], value), max(span[1], value)
        numbers = tuple(sorted(set(spans) - set(words)))
        listed = tuple((name, tuple(sorted(words[name]))) for name in sorted(words))
        return cls(numbers, listed, tuple(spans[n][0] for n in numbers), tuple(spans[n][1] for n in numbers))

    @property
    def categorical(self) -> list[bool]:
        """Which columns of `table` are categories."""
        return [False] * len(self.numbers) + [True] * len(self.categories)

    def varies(self, name: str) -> bool:
        """Whether a number had different values among the configurations."""
        place = self.numbers.index(name)
        return self.high[place] > self.low[place]

    def table(self, rows: Sequence[Mapping[str, float | str]]) -> Floats:
        """(n, columns): numbers as they are, categories by their place among the known words, NaN for the rest."""
        table = np.full((len(rows), len(self.numbers) + len(self.categories)), math.nan)
        for i, row in enumerate(rows):
            for j, name in enumerate(self.numbers):
                value = row.get(name, math.nan)
                table[i, j] = value if not isinstance(value, str) else math.nan
            for j, (name, known) in enumerate(self.categories, start=len(self.numbers)):
                word = row.get(name)
                table[i, j] = known.index(word) if isinstance(word, str) and word in known else math.nan
        return table

    def dense(self, rows: Sequence[Mapping[str, float | str]]) -> Floats:
        """(n, dimensions) for distances: numbers in units of their range, categories one-hot; the unknown is middle.

        Two different words of one category lie 1 apart, as the two ends of a number's range do.
        """
        table, count = self.table(rows), len(self.numbers)
        low, high = np.asarray(self.low), np.asarray(self.high)
        with np.errstate(invalid="ignore"):
            numbers = (table[:, :count] - low) / np.where(high > low, high - low, 1.0)
        parts = [np.where(np.isfinite(numbers), numbers, 0.5)]
        for j, (_, known) in enumerate(self.categories, start=count):
            hot = table[:, [j]] == np.arange(len(known))
            parts.append(np.where(np.isfinite(table[:, [j]]), hot, 1.0 / len(known)) / math.sqrt(2.0))
        return np.concatenate(parts, axis=1)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    if name in LOGARITHMIC:
        return math.log10(value) if value > 0 else math.nan
    return float(value)


def _scaled(name: str, value: float) -> float:
    if _logarithmic(name):
        return math.log10(value) if value > 0 else math.nan
    return value


@lru_cache(maxsize=512)
def _logarithmic(name: str) -> bool:
    try:
        parameter = config_space()[name]
    except KeyError:
        return False
    return isinstance(parameter, Number) and parameter.log


def _regularizers(value: str) -> tuple[str, float]:
    """The names in a regularizer's words, and log10 of the first strength given (NaN where none is)."""
    names, strength = [], math.nan
    for word in value.split(","):
        name, _, number = word.partition(":")
        names.append(name)
        if number and math.isnan(strength) and float(number) > 0:
            strength = math.log10(float(number))
    return ",".join(names) or NOTHING, strength
