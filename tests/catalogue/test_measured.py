"""What methods are said to cost is what the benchmark measured."""

import json
from pathlib import Path

import pytest

from foretune.catalogue.methods.measured import MEASURED, step_factor

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "methods.json"


def test_the_table_is_the_benchmarks():
    found = json.loads(RESULTS.read_text())["methods"]
    known = {name: one for name, one in found.items() if "failed" not in one}
    assert {*MEASURED} == {*known} and len(known) >= 70
    for name, (seconds, memory) in MEASURED.items():
        assert (seconds, memory) == pytest.approx((known[name]["step_ratio"], known[name]["memory_ratio"]), abs=0.006)


def test_nothing_is_said_where_other_things_decide():
    dearest = max(MEASURED, key=lambda name: MEASURED[name][0])
    assert step_factor(dearest, accelerated=False) == MEASURED[dearest][0] / MEASURED["lora"][0] > 1.5
    assert step_factor("lora", accelerated=False) == 1.0
    assert step_factor(dearest, accelerated=True) == 1.0, "a GPU"
    assert step_factor("partial", accelerated=False) == step_factor("full", accelerated=False) == 1.0, "what is trained"
    assert step_factor("of-a-plugin", accelerated=False) == 1.0
