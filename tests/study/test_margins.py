"""As good as the control, by hand: from the base, from the answers' frequencies; the share of a gap that is closed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foretune.evaluation.base import Answer
from foretune.study.folder import StudyFolder
from foretune.study.gates import gate_rows
from foretune.study.grid import GridSpec
from foretune.study.margins import OVER_TASKS, frequencies_loss, standing_tables, standings
from foretune.study.outputs import Material

ARMS = {"lora": {}, "near": {"lora.rank": 4}, "far": {"lora.rank": 2}, "full": {"method": "full"}}
LOSSES = {"lora": (1.0, 1.1), "near": (1.01, 1.1), "far": (1.5, 1.7), "full": (0.8, 0.9)}


def answer(reference: str) -> Answer:
    return Answer(0, "", reference, nll=6.0, tokens=2)


def material(root: Path, margin: float | None = 0.02, tasks: tuple[str, ...] = ("kin", "sums")) -> Any:
    lines = [
        {
            "model": "m", "task": task, "size": "all", "arm": arm, "seed": seed, "pair": f"{task}:{seed}",
            "direction": "lower", "primary": "loss", "scores": {"test": {"loss": [loss, 0.1, 9]}},
            "trainable": 1, "parameters": 10,
        }
        for task in tasks
        for arm, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]  # fmt: skip
    grid = GridSpec(
        name="m", model="m", tasks=dict.fromkeys(tasks, "facts"), arms=ARMS, control="lora", seeds=2,
        horizon={"steps": 4}, margin=margin,
    )  # fmt: skip
    folder = StudyFolder(root)
    for task in tasks:
        place = folder.task("m", task).root
        place.mkdir(parents=True)
        answers = [answer(text).to_json() for text in ("yes", "no", "yes", "no")]
        (place / "base-answers.json").write_text(json.dumps({"step": None, "answers": answers}))
    prepared = {("m", task): SimpleNamespace(primary="loss") for task in tasks}
    base = {"": {("m", task): {"loss": [3.05, 0.1, 9]} for task in tasks}}
    return Material(grid, folder, prepared, tuple(lines), (), base, 0.0)  # type: ignore[arg-type]


def test_a_margin_is_a_share_of_what_the_control_gains(tmp_path: Path) -> None:
    found = {(one.start, one.task, one.arm): one for one in standings(material(tmp_path))}
    near = found["base", "kin", "near"]
    assert near.gain == pytest.approx(2.0) and near.lost == pytest.approx(0.0025)
    assert near.verdict == "not resolved", "two seeds: the interval is 12.7 standard errors wide"
    over = found["base", OVER_TASKS, "near"]
    assert over.pairs == 4 and over.lost == pytest.approx(0.0025)
    assert over.high == pytest.approx(0.0025 + 3.182446 * 0.0025 / math.sqrt(3), rel=1e-4)
    assert over.verdict == "as good"
    assert found["base", OVER_TASKS, "far"].verdict == "loses more"
    assert not any(start == "frequencies" for start, _, _ in found), "LoRA lost to the frequencies: there is no gain"
    assert standings(material(tmp_path / "none", margin=None)) == []


def test_frequencies_are_the_entropy_of_the_answers() -> None:
    assert frequencies_loss([answer("yes"), answer("no")]) == pytest.approx(math.log(2) / 2)
    assert frequencies_loss([answer("yes")]) == 0.0
    assert frequencies_loss([answer(str(number)) for number in range(50)]) is None


def test_the_share_of_the_gap_to_full_tuning(tmp_path: Path) -> None:
    found = {one.arm: one for one in standings(material(tmp_path, tasks=("kin",)))}
    assert found["full"].closed is None
    assert found["far"].closed is not None and found["far"].closed[0] == pytest.approx(-0.55 / 0.2)
    ((caption, rows),) = standing_tables(list(found.values()))
    assert "2% of its gain over the untouched base" in caption and rows[0][:2] == ["kin", "near"]


def test_gates_are_averaged_over_runs() -> None:
    seen = {"gate_open_share": 0.5, "gate_lowest_layer": 0.1, "gate_highest_layer": 0.9, "norm": 3.0}
    lines = [{"task": "kin", "arm": "edit", "statistics": {**seen, "gate_mean": mean}} for mean in (0.2, 0.4)]
    assert gate_rows([*lines, {"task": "kin", "arm": "lora", "statistics": {"norm": 1.0}}]) == [
        ["kin", "edit", "2", "0.300", "0.500", "0.100", "0.900"]
    ]
