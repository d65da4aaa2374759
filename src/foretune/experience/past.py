"""Earlier runs as values: what the search learns from, read from a store, from an exported folder, or as shipped.

A `PastRun` is one run with everything that is known about its task, model, machine and configuration; its `Point`
hold what was seen at each step. Failures are runs like others: they have a status and the points before it.
No torch, no SQLite of its own: `Store` reads the one, pyarrow the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.experience.migrations import current_version
from foretune.experience.parquet import PROVENANCE, read_table
from foretune.experience.store import Store, default_path
from foretune.files import read_json

BASE = "base."
"""Metrics of this prefix are the untouched base model's, on the rows that the run was scored on at the same step."""
FINISHED = "finished"
READ = ("task", "model", "hardware", "config", "run", "observation")
BUNDLED = "bundled"

Measured = tuple[float, float, int]
"""(value, standard error, rows)"""
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What was seen of a run at one step on one split."""

    step: int
    split: str
    """``validation`` at the rungs, ``test`` at the step that was chosen by validation."""
    metrics: Mapping[str, Measured]
    """``loss``, the task's own metric where it was measured, and ``gain`` (see `gain`)"""
    train_s: float
    """Wall seconds of training since the point before"""
    eval_s: float
    tokens: int
    """Trained since the point before"""
    base: Mapping[str, Measured] = field(default_factory=dict)
    """The untouched base model's scores on the same rows; empty where they are not known"""
    train_cpu_s: float | None = None
    """Processor seconds of training since the point before (all threads): what other load on the machine does not
    change. None where they were not measured."""
    eval_cpu_s: float | None = None

    @property
    def gain(self) -> Measured | None:
        """log(base loss / loss) on the same rows: positive is better than the base. None where it is not known.

        The error is that of the pairs where the run measured it, else as if the two losses were independent.
        """
        if "gain" in self.metrics:
            return self.metrics["gain"]
        return independent_gain(self.base.get("loss"), self.metrics.get("loss"))


def independent_gain(base: Measured | None, loss: Measured | None) -> Measured | None:
    """log(base / loss) of two positive losses, with the delta method's error for independent ones.

    An error of 0 was not given: where one of the two is missing, so is the gain's.
    """
    import math

    if base is None or loss is None or base[0] <= 0 or loss[0] <= 0:
        return None
    relative = base[1] / base[0], loss[1] / loss[0]
    error = math.hypot(*relative) if min(relative) > 0 else 0.0
    return math.log(base[0] / loss[0]), error, min(base[2], loss[2])


@dataclass(frozen=True)
class PastRun:
    """One earlier run."""

    run: str
    task: str
    """Fingerprint of the task's data: equal for runs that may be compared"""
    task_features: Mapping[str, Any]
    model: str
    model_features: Mapping[str, Any]
    hardware: str
    hardware_features: Mapping[str, Any]
    config: Mapping[str, Any]
    """The flat trial configuration, complete"""
    horizon: int
    """Steps of the whole schedule"""
    seed: int
    status: str
    """``finished``, or how it ended before: ``diverged``, ``oom``, ``crashed`` …"""
    arm: str
    """In a shared design, the configuration's name: equal over tasks"""
    study: str
    pair: str
    points: tuple[Point, ...]
    """By step"""
    peak_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that it ran with"""

    def __hash__(self) -> int:
        """By the name alone: what was learnt from the same runs is found again, see `search.past_tasks`."""
        return hash(self.run)

    def on(self, split: str) -> tuple[Point, ...]:
        """The points of one split, by step."""
        return tuple(point for point in self.points if point.split == split)

    @property
    def finished(self) -> bool:
        """Whether it reached its horizon."""
        return self.status == FINISHED


def past_runs(source: Store | Path) -> list[PastRun]:
    """The runs of an open store, a store's file, or a folder of exported Parquet, the oldest first.

    Runs that are still under way are left out. Raises `StoreError`.
    """
    if isinstance(source, Store):
        return _assembled({table: _named(*source.table(table)) for table in READ})
    if source.is_dir():
        return _assembled(_exported(source))
    if not source.exists():
        raise StoreError("there is no store here.", place=Place(source))
    with Store(source) as store:
        return past_runs(store)


def bundled() -> list[PastRun]:
    """The runs that ship with Foretune."""
    return list(_shipped())


@cache
def _shipped() -> tuple[PastRun, ...]:
    return tuple(run for path in _provenances() for run in past_runs(path.parent))


def bundled_counts() -> dict[str, int]:
    """How many runs of which study ship with Foretune, read from their provenance alone."""
    return {study: count for path in _provenances() for study, count in read_json(path)["studies"].items()}


def _provenances() -> list[Path]:
    shipped = Path(str(resources.files("foretune.experience").joinpath(BUNDLED)))
    return sorted(shipped.glob(f"*/{PROVENANCE}"))


def known_runs(store: Path | None = None) -> list[PastRun]:
    """What is shipped, then what the user's own store remembers; a run that is in both counts once.

    Raises `StoreError` for a store that cannot be read; one that does not exist yet is empty.
    """
    path = store or default_path()
    own = past_runs(path) if path.exists() else []
    named = {run.run for run in own}
    return [*(run for run in bundled() if run.run not in named), *own]


def _named(columns: list[str], rows: Iterable[tuple[Any, ...]]) -> list[Row]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _exported(folder: Path) -> dict[str, list[Row]]:
    try:
        version = int(read_json(folder / PROVENANCE)["store_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError("this folder is no export of the experience.", place=Place(folder)) from error
    if version > current_version():
        raise StoreError(
            f"this export has version {version}; this Foretune knows versions up to {current_version()}.",
            place=Place(folder),
            remedy="Upgrade Foretune.",
        )
    return {table: read_table(folder, table) for table in READ}


def _assembled(tables: Mapping[str, list[Row]]) -> list[PastRun]:
    features = {
        table: {row["fingerprint"]: json.loads(row["features"]) for row in tables[table]}
        for table in ("task", "model", "hardware")
    }
    configs = {row["fingerprint"]: json.loads(row["settings"]) for row in tables["config"]}
    points = _points(tables["observation"])
    ended = [row for row in tables["run"] if row["status"] != "running"]
    return [
        PastRun(
            run=row["id"],
            task=row["task"],
            task_features=features["task"][row["task"]],
            model=row["model"],
            model_features=features["model"][row["model"]],
            hardware=row["hardware"],
            hardware_features=features["hardware"][row["hardware"]],
            config=configs[row["config"]],
            horizon=row["horizon"],
            seed=row["seed"],
            status=row["status"],
            arm=row["arm"],
            study=row["study"],
            pair=row["pair"],
            points=points.get(row["id"], ()),
            peak_bytes=row["peak_bytes"],
            versions=json.loads(row["versions"]),
        )
        for row in sorted(ended, key=lambda row: (row["started_s"], row["id"]))
    ]


def _points(observations: Iterable[Row]) -> dict[str, tuple[Point, ...]]:
    """The points of every run, by step; rows of one (run, step, split) make one point."""
    grouped: dict[tuple[str, int, str], list[Row]] = {}
    for row in observations:
        grouped.setdefault((row["run"], row["step"], row["split"]), []).append(row)
    found: dict[str, list[Point]] = {}
    for (run, step, split), rows in sorted(grouped.items()):
        scores = {row["metric"]: (row["value"], row["se"], row["n_eval"]) for row in rows}
        first = rows[0]
        found.setdefault(run, []).append(
            Point(
                step=step,
                split=split,
                metrics={name: score for name, score in scores.items() if not name.startswith(BASE)},
                train_s=first["train_s"],
                eval_s=first["eval_s"],
                tokens=first["tokens"],
                base={name.removeprefix(BASE): score for name, score in scores.items() if name.startswith(BASE)},
                train_cpu_s=first.get("train_cpu_s"),
                eval_cpu_s=first.get("eval_cpu_s"),
            )
        )
    return {run: tuple(points) for run, points in found.items()}
