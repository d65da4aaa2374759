"""Between a fit and the experience store: what earlier runs teach a forecast, and what this run leaves behind.

The store holds no user text: fingerprints, settings and numbers. A store that cannot be used never stops a fit; the
reason is said instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.cost.correction import Outcome
from foretune.cost.forecast import MEMORY
from foretune.cost.machine import Machine
from foretune.cost.phases import RUN_SECONDS
from foretune.cost.rates import Throughput
from foretune.cost.shapes import ModelShapes
from foretune.errors import ForetuneError
from foretune.experience.importers.base import slug
from foretune.experience.past import BASE
from foretune.experience.records import RunRecord
from foretune.experience.store import Store
from foretune.files import fingerprint
from foretune.search.runs import Run
from foretune.search.types import Observation, Score

logger = logging.getLogger(__name__)
FIT = "fit"
SPEED = "operations_per_s"
"""Quantities of this kind are measured speeds: ``operations_per_s:train:cpu:bfloat16``."""
CORRECTED = (RUN_SECONDS, MEMORY)
"""Quantities whose forecasts learn from their truths."""


def known_history() -> tuple[list[Throughput], list[Outcome]]:
    """Speeds measured on any machine before, oldest first, and forecasts with their truths."""
    try:
        with Store() as store:
            columns, rows = store.table("forecast")
            runs = {row.record.id: (number, row.record) for number, row in enumerate(store.runs())}
            _, models = store.table("model")
    except ForetuneError as error:
        logger.warning("earlier runs are not used: %s", error)
        return [], []
    sizes = {key: int(json.loads(features).get("parameters", 0)) for key, features, *_ in models}
    known = [row for values in rows if (row := dict(zip(columns, values, strict=True)))["run"] in runs]
    throughputs, outcomes = [], []
    for row in sorted(known, key=lambda row: runs[row["run"]][0]):
        if row["measured"] is None:
            continue
        kind, *parts = str(row["quantity"]).split(":")
        record = runs[row["run"]][1]
        if kind == SPEED and len(parts) == 3:
            work, device, dtype = parts
            speed, size = row["measured"], sizes.get(record.model, 0)
            throughputs.append(Throughput(record.hardware, device, dtype, work, speed, size))  # type: ignore[arg-type]
        elif kind in CORRECTED:
            outcomes.append(Outcome(kind, row["predicted"], row["measured"]))
    return throughputs, outcomes


class Recorder:
    """Writes the runs of one fit (or study) to the store as they happen."""

    def __init__(
        self,
        *,
        prefix: str,
        task: str,
        task_features: Mapping[str, Any],
        model: str,
        model_features: Mapping[str, Any],
        machine: Machine,
        versions: Mapping[str, str],
        study: str = FIT,
    ) -> None:
        """``prefix`` makes run ids unique over all fits. A store that cannot be opened is said once and left alone."""
        self.prefix, self.study, self.versions = prefix, study, versions
        self.task, self.model, self.hardware = task, model, machine.fingerprint
        self._store: Store | None = None
        try:
            self._store = Store()
            self._store.record_task(task, plain_features(task_features))
            self._store.record_model(model, plain_features(model_features))
            self._store.record_hardware(self.hardware, machine_features(machine))
        except ForetuneError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()

    def run(
        self, run: str, config: Mapping[str, Any], *, seed: int, horizon: int, arm: str = "", pair: str = ""
    ) -> None:
        """A run was started (or is known already)."""
        if self._store is None:
            return
        try:
            key = self._store.record_config(_without_paths(config))
            self._store.record_run(
                RunRecord(
                    id=f"{self.prefix}.{run}", task=self.task, model=self.model, hardware=self.hardware,
                    config=key, seed=seed, horizon=horizon, arm=arm, study=self.study, pair=pair,
                    versions=self.versions,
                )
            )  # fmt: skip
        except ForetuneError as error:
            self._give_up(error)

    def observation(
        self, run: str, observation: Observation, split: str = "validation", base: Mapping[str, Score] | None = None
    ) -> None:
        """Scores of a run at a step, the ``base`` model's on the same rows, and what they took."""
        if self._store is None or not observation.metrics:
            return
        measured = {**observation.metrics, **{f"{BASE}{name}": score for name, score in (base or {}).items()}}
        scores = {name: (s.value, s.standard_error, s.n) for name, s in measured.items()}
        try:
            self._store.record_observation(
                f"{self.prefix}.{run}",
                observation.step,
                split,
                scores,
                train_s=observation.train_s,
                eval_s=observation.eval_s,
                tokens=observation.tokens,
                train_cpu_s=observation.train_cpu_s,
                eval_cpu_s=observation.eval_cpu_s,
            )
        except ForetuneError as error:
            self._give_up(error)

    def finished(self, runs: Sequence[Run]) -> None:
        """How every run ended; failures are kept like successes."""
        if self._store is None:
            return
        for run in runs:
            try:
                self._store.finish_run(f"{self.prefix}.{run.id}", str(run.status), peak_bytes=run.peak_bytes)
            except ForetuneError as error:
                self._give_up(error)
                return

    def forecast(self, run: str, rows: Mapping[str, tuple[float, float, float, float | None]]) -> None:
        """``quantity: (low, value, high, measured)`` of the fit, filed under one of its runs."""
        if self._store is None:
            return
        for quantity, (low, value, high, measured) in rows.items():
            try:
                self._store.record_forecast(
                    f"{self.prefix}.{run}", FIT, quantity, predicted=value, low=low, high=high, measured=measured
                )
            except ForetuneError as error:
                self._give_up(error)
                return

    def _give_up(self, error: ForetuneError) -> None:
        logger.warning("this run is not added to the experience: %s", error)
        if self._store is not None:
            self._store.close()
        self._store = None


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a file of dropout rates named by a hash of its path: the store holds no user's paths."""
    kept = dict(config)
    if (path := config.get("guided-dropout.rates", "auto")) != "auto":
        kept["guided-dropout.rates"] = f"file:{fingerprint(path, 8)}"
    return kept


def model_features(shapes: ModelShapes) -> dict[str, Any]:
    """What the experience says of a model of these ``shapes``, but for its name."""
    return {
        "kind": shapes.kind,
        "family": shapes.architecture,
        "parameters": shapes.parameters,
        "width": shapes.width,
        "layers": shapes.layers,
        "vocabulary": shapes.vocabulary,
    }


def plain_features(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers, truth values and short names among nested ``values``, by dotted key; everything else is left out."""
    from foretune.experience.records import features

    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= plain_features(value, f"{name}.")
            continue
        try:
            features("a", {name: value})
        except ForetuneError:
            continue
        found[name] = value
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def machine_features(machine: Machine) -> dict[str, Any]:
    """What the store keeps of a machine: sizes, the processor's name, and ``accelerators.0.name`` and so on."""
    facts = machine.to_json()
    accelerators = [{**one, "name": slug(one["name"])} for one in facts["accelerators"]]
    return plain_features(
        {**facts, "processor": slug(machine.processor), "accelerators": dict(enumerate(accelerators))}
    )
