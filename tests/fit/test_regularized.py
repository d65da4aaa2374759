"""The report's sentence on what regularizers cost: the processor's seconds where the fit ran on one."""

from __future__ import annotations

import pytest

from foretune.fit.regularized import regularizer_notes
from foretune.search.runs import Run


def _run(name: str, arm: str, words: str, *, wall_s: float, cpu_s: float) -> Run:
    config = {"regularizer": words}
    return Run(name, config, 0, 10, arm, "", 10, "finished", train_s=wall_s, train_cpu_s=cpu_s, tokens=1000)


@pytest.mark.parametrize(
    ("device", "cpu_s", "expected"),
    [
        ("cpu", (5.0, 4.0), "1.25 times the processor seconds that"),  # the machine was busy: 30 s passed
        ("cuda", (5.0, 4.0), "3.00 times the seconds that"),  # the processor waits for the accelerator
        ("cpu", (5.0, 0.0), "3.00 times the seconds that"),  # a journal from before they were counted
    ],
)
def test_the_cost_of_a_token_is_the_processors(device: str, cpu_s: tuple[float, float], expected: str) -> None:
    runs = [
        _run("r002", "portfolio", "r-drop:1.0", wall_s=30.0, cpu_s=cpu_s[0]),
        _run("r001", "default", "none", wall_s=10.0, cpu_s=cpu_s[1]),
    ]
    assert expected in regularizer_notes(runs, {"run": "r002"}, device)[-1]
    assert regularizer_notes(runs, {"run": "r001"}, device) == []
