"""What settings cost beside one another, learnt from machines of the asked kind alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foretune.experience.past import PastRun
from foretune.search.costs import relative, seconds_per_token
from foretune.search.encoding import Encoding
from foretune.search.past_tasks import PastTask, past_tasks
from tests.search import synthetic

GPU = {"accelerators.0.name": "H200"}


def slowed(runs: list[PastRun], factor: float, machine: str, features: dict[str, str]) -> list[PastRun]:
    """The runs on another machine, ``factor`` times as slow."""
    return [
        replace(
            run, run=f"{run.run}-{machine}", hardware=machine, hardware_features=features,
            points=tuple(replace(point, train_s=point.train_s * factor) for point in run.points),
        )
        for run in runs
    ]  # fmt: skip


def evenly(runs: list[PastRun]) -> list[PastRun]:
    """The runs where full tuning is no slower: synthetic full runs take 2.5 times LoRA's seconds."""
    return [
        run if run.config["method"] == "lora" else slowed([run], 0.4, run.hardware, dict(run.hardware_features))[0]
        for run in runs
    ]


def full_over_lora(tasks: tuple[PastTask, ...], *, accelerated: bool) -> float:
    rows = [curve.row for task in tasks for curve in task.curves]
    asked = [next(row for row in rows if row["method"] == method) for method in ("full", "lora")]
    return float(
        relative(tasks, Encoding.of(rows), seconds_per_token, asked[:1], asked[1], 0, accelerated=accelerated)[0]
    )


def test_a_gpu_says_nothing_of_what_a_processor_takes_and_the_other_way_round() -> None:
    runs = synthetic.experience(4, 24)
    there = slowed(evenly(runs), 0.1, "gpu", GPU)
    both = past_tasks([*runs, *there])
    assert full_over_lora(both, accelerated=False) == pytest.approx(2.5, rel=0.25)
    assert full_over_lora(both, accelerated=True) == pytest.approx(1.0, abs=0.2)
    assert full_over_lora(past_tasks(there), accelerated=False) == 1.0, "nothing is known"


def test_a_slower_machine_of_the_same_kind_is_no_dearer_setting() -> None:
    runs = synthetic.experience(4, 24)
    mixed = past_tasks([*runs[::2], *slowed(runs[1::2], 9.0, "old", {})])
    once = past_tasks(runs)
    assert np.log(full_over_lora(mixed, accelerated=False)) == pytest.approx(
        np.log(full_over_lora(once, accelerated=False)), abs=0.25
    )
