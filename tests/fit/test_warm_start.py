"""``--warm-start``: a run begins at an earlier fit's weights; what is refused, and that it leaves no experience."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import UsageError
from foretune.experience.past import past_runs
from foretune.files import read_json, write_json
from foretune.search.warm_start import ARM

from .. import tiny
from ..whole_fits import Ground

TRIALS = {"budget.steps": None, "budget.trials": 3, "training.epochs": 1}


@pytest.fixture
def begun_at(fast_fit: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A fit that is told to begin at an earlier one."""

    def run(earlier: Path, *, data: Path | None = None, **options: Any) -> Any:
        return fast_fit(data, output=tmp_path / "run", options={**TRIALS, "search.warm_start": str(earlier), **options})

    return run


def warm(result: Any) -> list[Any]:
    return [trial for trial in result.record.trials if trial.why.startswith("begun at the weights")]


def notes(result: Any) -> str:
    return " ".join(result.record.notes)


def test_a_run_begins_where_an_earlier_fit_ended(finished: Any, begun_at: Callable[..., Any]) -> None:
    result = begun_at(finished.folder)
    (trial,) = warm(result)
    before = finished.record.winner
    assert trial.config["method"] == before.config["method"]
    assert trial.config["learning_rate"] == pytest.approx(before.config["learning_rate"] / 2)
    earlier = read_json(finished.folder / "answers" / f"validation-{before.run}.json")["answers"]
    then = {answer["row"]: answer["nll"] for answer in earlier}
    (file,) = (result.folder / "answers").glob("validation-earlier-1-*.json")
    asked = read_json(file)["answers"]
    assert asked and [then[answer["row"]] for answer in asked] == pytest.approx([answer["nll"] for answer in asked])
    default = next(each for each in result.record.trials if each.is_default)
    first, fresh = trial.curve[0], default.curve[0]
    base = result.record.base_validation.loss.value
    assert first.loss.value < base - 0.5 * (base - before.best.loss.value), "most of what was learnt is there"
    assert first.loss.value < fresh.loss.value - 0.3
    assert result.record.comparison.system("winner").metrics["loss"].value < base
    assert ("has learnt from that fit's rows too" in notes(result)) == trial.is_winner


def test_it_leaves_no_experience(finished: Any, begun_at: Callable[..., Any]) -> None:
    result = begun_at(finished.folder.parent)  # the folder of runs
    assert len(warm(result)) == 1
    stored = past_runs(result.folder.parent / "run.store.sqlite")
    assert len(stored) == len(result.record.trials) - 1
    rates = {run.config["learning_rate"] for run in stored}
    assert warm(result)[0].config["learning_rate"] not in rates
    assert ARM in {run["arm"] for run in read_json(result.folder / "search.json")["runs"]}


def test_rows_that_an_earlier_fit_has_seen_are_not_compared_on(finished: Any, begun_at: Callable[..., Any]) -> None:
    result = begun_at(finished.folder, **{"search.seed": 1})  # other test rows: the earlier fit was trained on some
    assert not warm(result) and "rows that it was trained on are test rows now" in notes(result)


def test_another_base_is_refused(finished: Any, begun_at: Callable[..., Any], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(finished.folder, copied)
    record = read_json(copied / "result.json")
    record["model"]["weights_sha256"] = "0" * 64
    write_json(copied / "result.json", record)
    assert "its base model is another" in notes(begun_at(copied))


def test_weights_that_are_gone_are_refused(finished: Any, begun_at: Callable[..., Any], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(finished.folder, copied)
    shutil.rmtree(copied / "trials")
    assert "its weights are missing or damaged" in notes(begun_at(copied))


def test_what_was_asked_for_comes_first(finished: Any, begun_at: Callable[..., Any]) -> None:
    other = next(name for name in ("dora", "lora") if name != finished.record.winner.config["method"])
    result = begun_at(finished.folder, **{"training.method": other})
    assert not warm(result) and "its method is not the one that was asked for" in notes(result)


def test_an_adapter_of_no_use_is_not_begun_at(
    finished: Any, begun_at: Callable[..., Any], tmp_path: Path, fast_fit: Callable[..., Any]
) -> None:
    rows = [{"question": f"Zq{number * 7919} jwv {number**3 % 97}", "answer": "9 9 9 9"} for number in range(60)]
    elsewhere = fast_fit(tiny.write_rows(tmp_path / "other.jsonl", rows), output=tmp_path / "elsewhere",
                         options={"training.learning_rate": 0.1, "search.strategy": "zero-shot"})  # fmt: skip
    result = begun_at(elsewhere.folder)
    assert not warm(result) and "which shows no gain" in notes(result)


def test_a_folder_without_runs_is_refused_before_anything_is_made(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        foretune.plan(ground.rows, model=str(ground.llama), options={"search.warm_start": str(tmp_path)})
