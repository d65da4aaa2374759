"""What settings cost beside one another, learnt from machines of the asked kind alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foretune.catalogue.methods.measured import step_factor
from foretune.experience.past import PastRun
from foretune.search.costs import relative, seconds_per_token, untried_methods
from foretune.search.encoding import Encoding
from foretune.search.past_tasks import PastTask, past_tasks
from foretune.search.task_prior import build
from tests.search import synthetic
from tests.search.synthetic import NEW

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


def test_a_method_that_no_run_has_tried_costs_what_the_benchmark_says() -> None:
    rows = [{"method": method} for method in ("lora", "dora", "hira", "of-a-plugin")]
    dora, hira = (step_factor(method, accelerated=False) for method in ("dora", "hira"))
    assert 1 < dora < hira
    expected = np.asarray([1.0, dora, hira, 1.0])
    assert untried_methods(rows, None) == pytest.approx(expected)
    assert untried_methods(rows[1:], None) == pytest.approx(expected[1:] / expected[1]), "the first leads"
    tried = Encoding.of([{"method": "lora"}, {"method": "dora"}])
    assert untried_methods(rows, tried) == pytest.approx([1.0, 1.0, hira, 1.0]), "earlier runs know better"
    assert untried_methods(rows, None, accelerated=True) == pytest.approx(1.0)


def test_a_search_without_experience_prices_what_it_may_begin() -> None:
    pool = [{"method": method, "learning_rate": 1e-3, "epochs": 1.0} for method in ("lora", "hira")]
    prior = build((), synthetic.facts(NEW), pool, 0)
    assert prior.cost == pytest.approx([1.0, step_factor("hira", accelerated=False)])
