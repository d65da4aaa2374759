"""All that experience says about one task, as a value: the pool of configurations with their prior and their reasons.

`build` fits the surrogates and evaluates them on the pool; what comes out is numbers. A search decides from these
numbers and its own observations alone, so a resumed search needs neither the experience (which has grown since) nor
scikit-learn, and its decisions are those of the search that was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from foretune.files import fingerprint
from foretune.search import costs
from foretune.search.encoding import NOTHING, RATE, Encoding, Facts, Floats, described
from foretune.search.failures import BASE_RATE, failure_odds
from foretune.search.fidelity import LAST_LEVEL, LEVELS
from foretune.search.hints import Hint, moved
from foretune.search.learned import Learned, learn
from foretune.search.past_tasks import PastTask
from foretune.search.residual_gp import ALONE, Process, no_common, no_growth, no_path
from foretune.search.similar import FEW_TASKS_SD, NO_LEVEL_SD, NO_SPREAD, SIMILAR, outlook, verdicts, weights
from foretune.search.transfer_mean import TransferMean, fit

DIGITS = 6
"""Significant digits kept of every number: the same decisions on every machine that reads them."""
BOWL = 1.4
"""A decade off the best learning rate costs so many spreads: 1.1 on the encoder tasks that ship, 2.1 on the causal
ones, between a half and two in the public sweeps."""
FARTHEST = 1.5
"""Decades beyond which the bowl is flat."""
TILT_SD = 1.4
"""Spreads a decade by which the bowl may lean on a task: its top lies within half a decade of the rule's rate."""
PATH = np.asarray((2.1, 1.9, 1.7, 1.2, 0.8, 0.0))
"""(6,): how far runs lie below their end at each rung where no experience says; the mean of the 18 tasks that ship."""
WORDS = ("method", "regularizer", "selection")
KEEP = "keep"
UNTRIED = 0.4
"""Spreads that a word is expected to be worse than the usual when nothing is known of it."""
FEWER_ROWS = 0.7
"""Spreads that every halving of the rows costs when nothing is known of it."""
ALONE_SD = 1.0
"""Without transfer the whole spread of a task is unexplained, by definition of the spread."""
ALONE_LENGTH = 0.6
MOST_REASONS = 12
"""Members of the pool whose verdicts on similar tasks are counted: those that look best."""


@dataclass(frozen=True)
class TaskPrior:
    """The pool and what is believed about it before any run."""

    pool: tuple[Mapping[str, Any], ...]
    """Complete configurations; the first is the one that others are compared with"""
    rows: tuple[Mapping[str, float | str], ...]
    alone: Process
    """Without transfer: the expert's bowl around the learning-rate rule"""
    transfer: Process | None = None
    """None where there is no experience"""
    bags: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(bags, n): scores of whole runs under each bag of tasks"""
    cost: Floats = field(default_factory=lambda: np.zeros(0))
    """(n,): training seconds a token over those of the first member"""
    amount: Floats = field(default_factory=lambda: np.zeros(0))
    """(n,): tokens of a whole run over those of the first member: kept rows and epochs"""
    memory: Floats = field(default_factory=lambda: np.zeros(0))
    """(n,): peak memory over that of the first member"""
    odds: Floats = field(default_factory=lambda: np.zeros(0))
    """(n,): probability of failure"""
    tasks: int = 0
    runs: int = 0
    similar: int = 0
    verdicts: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """For the best looking: (similar tasks on which the nearest run was better than the median, of how many)"""
    citations: Mapping[int, str] = field(default_factory=dict)
    """The rules that mean a member"""

    @cached_property
    def places(self) -> dict[str, int]:
        """Pool members by the fingerprint of their configuration."""
        return {fingerprint(dict(config)): place for place, config in enumerate(self.pool)}

    def at_equal_steps(self) -> TaskPrior:
        """Where all runs see as many rows, whatever their settings."""
        return replace(self, amount=np.ones(len(self.pool)))

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {
            "pool": [dict(config) for config in self.pool],
            "rows": [{k: (v if isinstance(v, str) or math.isfinite(v) else None) for k, v in r.items()}
                     for r in self.rows],
            "alone": _process_json(self.alone),
            "transfer": None if self.transfer is None else _process_json(self.transfer),
            **{name: _rounded(getattr(self, name)) for name in _NUMBERS},
            "tasks": self.tasks, "runs": self.runs, "similar": self.similar,
            "verdicts": {str(place): list(pair) for place, pair in self.verdicts.items()},
            "citations": {str(place): said for place, said in self.citations.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskPrior:
        """The inverse of `to_json`."""
        rows = ({k: (math.nan if v is None else v) for k, v in row.items()} for row in value["rows"])
        count = len(value["pool"])
        arrays = {name: np.asarray(value[name], dtype=float) for name in _NUMBERS}
        return cls(
            pool=tuple(value["pool"]), rows=tuple(rows), alone=_process(value["alone"]),
            transfer=None if value["transfer"] is None else _process(value["transfer"]),
            bags=arrays.pop("bags").reshape(-1, count), **arrays,
            tasks=value["tasks"], runs=value["runs"], similar=value["similar"],
            verdicts={int(place): (pair[0], pair[1]) for place, pair in value["verdicts"].items()},
            citations={int(place): str(said) for place, said in value["citations"].items()},
        )  # fmt: skip


def build(
    tasks: Sequence[PastTask],
    facts: Facts,
    pool: Sequence[Mapping[str, Any]],
    seed: int,
    *,
    hints: Sequence[Hint] = (),
    mean: TransferMean | None = None,
    learned: Learned | None = None,
    accelerated: bool = False,
) -> TaskPrior:
    """What ``tasks`` and ``hints`` say of ``pool`` on the task of ``facts``; ``mean``, ``learned``: fitted before.

    ``accelerated``: whether it will be trained on an accelerator.
    """
    rows = tuple(described(config, facts) for config in pool)
    amount = np.asarray([share_of_rows(config) / share_of_rows(pool[0]) for config in pool])
    by = moved(hints, pool)
    dearer = partial(costs.untried_methods, rows, accelerated=accelerated)
    if not tasks:
        ones = np.ones(len(pool))
        odds = np.full(len(pool), BASE_RATE)
        alone = shifted(expert(rows), by.shift)
        return TaskPrior(
            tuple(pool), rows, alone, cost=dearer(None), amount=amount, memory=ones, odds=odds, citations=by.citations
        )
    mean = mean or fit(tasks, seed)
    learned = learned or learn(mean)
    weight = weights(tasks, facts)
    transfer, bags = _transfer(mean, learned, tasks, weight, facts, rows)
    transfer = shifted(transfer, by.shift)
    encoding = mean.encoding
    best = np.argsort(-transfer.mean, kind="stable")[:MOST_REASONS]
    found = dict(zip(map(int, best), verdicts(tasks, weight, encoding.dense, [pool[p] for p in best]), strict=True))
    return TaskPrior(
        pool=tuple(pool), rows=rows, alone=shifted(expert(rows), by.shift), transfer=transfer, bags=bags + by.shift,
        amount=amount,
        cost=costs.relative(tasks, encoding, costs.seconds_per_token, rows, rows[0], seed, accelerated=accelerated)
        * dearer(encoding),
        memory=costs.relative(tasks, encoding, costs.peak_bytes, rows, rows[0], seed, accelerated=accelerated),
        odds=failure_odds(tasks, encoding, rows),
        tasks=len(tasks), runs=sum(len(task.curves) for task in tasks),
        similar=int((weight >= SIMILAR * weight.max()).sum()), verdicts=found, citations=by.citations,
    )  # fmt: skip


def shifted(process: Process, by: Floats) -> Process:
    """``process`` with the expected scores of its members moved."""
    return replace(process, mean=process.mean + by)


def share_of_rows(config: Mapping[str, Any]) -> float:
    """Passes over all training rows, of which a selection keeps a share."""
    return float(config.get("epochs", 1.0)) * float(config.get("keep", 1.0))


def _transfer(
    mean: TransferMean, learned: Learned, tasks: Sequence[PastTask], weight: Floats, facts: Facts, rows: Sequence[Any]
) -> tuple[Process, Floats]:
    bags = mean.end(rows, facts) + untried(rows, mean.encoding)
    middle = bags.mean(0)
    view = outlook(tasks, weight)
    factors = np.column_stack([(bags - middle).T / math.sqrt(len(bags)), learned.slope_sd * middle])
    process = Process(
        name="transfer",
        mean=middle,
        deficits=mean.deficits(rows, facts),
        factors=factors,
        places=mean.encoding.dense(rows) / learned.length,
        residual_sd=learned.residual_sd,
        path_sd=learned.path_sd,
        growth=learned.growth,
        common_sd=learned.common_sd,
        curve_length=learned.curve_length,
        centre=(view.centre, view.metric_centre),
        centre_sd=(view.centre_sd, view.metric_sd),
        spread=(view.spread, view.metric_spread),
        log_spread_sd=view.log_spread_sd,
        ties=(1.0, learned.tie),
    )
    return process, bags


def untried(rows: Sequence[Mapping[str, float | str]], encoding: Encoding | None) -> Floats:
    """(rows,): what the expert takes off for what no earlier run has tried: words, and keeping a share of the rows.

    Trees would take them for what is usual, at a fraction of the time. Without ``encoding`` nothing was tried.
    """
    known = {} if encoding is None else dict(encoding.categories)
    kept = encoding is not None and KEEP in encoding.numbers and encoding.varies(KEEP)
    found = np.zeros(len(rows))
    for place, row in enumerate(rows):
        for name in WORDS:
            word = row.get(name)
            if word is not None and word != NOTHING and word not in known.get(name, ()):
                found[place] -= UNTRIED
        keep = row.get(KEEP)
        if not kept and isinstance(keep, float) and 0 < keep < 1:
            found[place] += FEWER_ROWS * math.log2(keep)
    return found


def expert(rows: Sequence[Mapping[str, float | str]]) -> Process:
    """The prior that knows the learning-rate rule and nothing else; it depends on no experience."""
    rates = np.asarray([float(row.get(RATE, math.nan)) for row in rows])
    off = np.clip(np.where(np.isfinite(rates), rates, 0.0), -FARTHEST, FARTHEST)
    mean, growth = -BOWL * off**2 + untried(rows, None), no_growth()
    return Process(
        name=ALONE,
        mean=mean,
        deficits=PATH[:, None] + (1 - growth)[:, None] * mean[None, :],
        growth=growth,
        factors=TILT_SD * off[:, None],
        places=Encoding.of(rows).dense(rows) / ALONE_LENGTH,
        residual_sd=ALONE_SD,
        path_sd=no_path(),
        common_sd=no_common(),
        centre=(0.0, 0.0),
        centre_sd=(NO_LEVEL_SD, 1.0),
        spread=(NO_SPREAD, 0.0),
        log_spread_sd=FEW_TASKS_SD,
    )


_NUMBERS = ("bags", "cost", "amount", "memory", "odds")
_ARRAYS = ("mean", "deficits", "factors", "places", "path_sd", "common_sd", "growth")
_PAIRS = ("centre", "centre_sd", "spread", "ties")


def _process_json(process: Process) -> dict[str, Any]:
    value = {each.name: getattr(process, each.name) for each in fields(process)}
    return {name: _rounded(item) if name in _ARRAYS else item for name, item in value.items()}


def _process(value: Mapping[str, Any]) -> Process:
    count = len(value["mean"])
    arrays = {name: np.asarray(value[name], dtype=float) for name in _ARRAYS if name in value}
    arrays["deficits"] = arrays["deficits"].reshape(LEVELS, count)
    arrays["factors"] = arrays["factors"].reshape(count, -1)
    pairs = {name: tuple(value[name]) for name in _PAIRS}
    return Process(**{**value, **arrays, **pairs})


def _rounded(array: Floats) -> list[Any]:
    flat = [float(f"{number:.{DIGITS - 1}e}") for number in np.ravel(array)]
    rounded: list[Any] = np.asarray(flat).reshape(np.shape(array)).tolist()
    return rounded


def predicted_end(prior: TaskPrior) -> tuple[Floats, Floats]:
    """(mean, standard deviation) of the gain of every whole run, before any: what `foretune plan` shows."""
    process = prior.transfer or prior.alone
    spread = process.spread[0]
    variance = process.variance() + (process.centre_sd[0] / spread) ** 2 + process.path_sd[LAST_LEVEL] ** 2
    return process.centre[0] + spread * process.mean, spread * np.sqrt(variance)
