"""P1: a run killed at any instant resumes to the result of an uninterrupted run, bit for bit; P2 holds meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretune.errors import Interrupted
from foretune.files import folder_damage, read_json, read_lines

from .lives import DIED, count_changes, die_at, live

pytestmark = pytest.mark.alone

SEED = 20
DEATHS = 10
LONGER = 1.05
"""Every life may last this much longer than the one before, so that a slow machine ends the test as well."""


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how often it was killed."""
    result = read_json(folder / "result.json")
    trials = [
        {**trial, "curve": [{k: v for k, v in point.items() if k != "seconds"} for point in trial["curve"]]}
        for trial in result["trials"]
    ]
    return {
        "weights": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "answers": {path.name: path.read_text() for path in sorted((folder / "answers").glob("*.json"))},
        "trials": trials,
        "comparison": result["comparison"],
        "candidates": result["candidates"],
        "forgetting": result["forgetting"],
        "used": result["budget"]["used"],
        "settings": [
            line for line in (folder / "resolved.yaml").read_text().splitlines() if "evidence:" not in line
        ],  # evidence names the memory that was free
    }


def check_no_partial_files(folder: Path) -> None:
    """P2: what has its final name is whole; leftovers have names of their own."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith(".") or any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            read_lines(path)
    for folder_ in [*folder.glob("trials/*/step-*"), *folder.glob("adapter")]:
        if not (folder_ / "README.md").exists():  # the card is added after the folder was sealed
            assert folder_damage(folder_) is None, folder_


@pytest.fixture(scope="module")
def whole(finished: Any, fast_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted run, and how many changes of files it makes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    counter = folder.parent / "count"
    assert live(lambda: fast_fit(output=folder), before=count_changes(folder, counter)) == 0
    assert outcome(folder) == outcome(finished.folder)
    return {"outcome": outcome(folder), "changes": int(counter.read_text())}


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_killed_at_ten_seeded_moments(
    seed: int, whole: dict[str, Any], fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    draw = np.random.default_rng(seed)
    deaths = 0
    while deaths < DEATHS:
        moment = int(draw.integers(1, 2 * whole["changes"] // DEATHS))
        code = live(lambda: fast_fit(output=folder), before=die_at(moment, folder))
        if code == 0:
            break
        assert code == DIED
        deaths += 1
        check_no_partial_files(folder)
    assert deaths >= DEATHS // 2
    assert live(lambda: fast_fit(output=folder)) == 0
    assert outcome(folder) == whole["outcome"]


def test_ballistic(whole: dict[str, Any], fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    draw = np.random.default_rng(SEED)
    for life in range(100):
        code = live(lambda: fast_fit(output=folder), limit_s=float(draw.uniform(0.2, 3.0)) * LONGER**life)
        if code == 0:
            break
        assert code == DIED, f"life {life} ended with {code}"
        check_no_partial_files(folder)
    assert outcome(folder) == whole["outcome"]


def test_stopped_by_sigterm_at_any_moment(whole: dict[str, Any], fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    draw = np.random.default_rng(SEED)
    codes = []
    for life in range(60):
        seconds = float(draw.uniform(0.1, 1.2)) * LONGER**life  # a busy machine gets there too
        codes.append(live(lambda: fast_fit(output=folder), limit_s=seconds, deadly=signal.SIGTERM))
        if codes[-1] == 0:
            break
        check_no_partial_files(folder)
    # while the plan is made nothing is begun yet, and SIGTERM does what it always does
    assert set(codes) <= {0, Interrupted.exit_code, -signal.SIGTERM} and Interrupted.exit_code in codes
    assert outcome(folder) == whole["outcome"]
