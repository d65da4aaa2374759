"""Selections as arms of a study: ranked once, their cost in the table, matched on tokens, on spoilt and mixed pools."""

from __future__ import annotations

import json

import pytest

from foretune.data.example import Example, conversation
from foretune.errors import UsageError
from foretune.files import read_json, read_lines
from foretune.study.design import steps_of
from foretune.study.grid import GridSpec
from foretune.study.grid_file import load_grid
from foretune.study.pools import duplicated, shuffled
from foretune.study.run import run_study
from foretune.study.tables import markdown

from ..inline import InlineExecutor

ARMS = {
    "full": {},
    "random-50": {"selection": "random", "keep": 0.5},
    "ifd-50": {"selection": "ifd", "keep": 0.5},
    "ifd-25": {"selection": "ifd", "keep": 0.25},
    "k-centre-25": {"selection": "k-centre", "keep": 0.25},
}
SELECTING = {"arms": ARMS, "control": "random-50", "sizes": ["all"], "tasks": {"near": "near.jsonl"}}


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr("foretune.study.run.LocalExecutor", InlineExecutor)


def test_arms_are_ranked_once_and_their_cost_is_told(write_grid, places, inline):
    folder = places / "study"
    result = run_study(write_grid(**SELECTING), folder)
    assert result.summary.complete
    made = list((folder / "tasks").glob("*/near/task/selections/*/ranking.json"))
    assert len(made) == 2 * 3  # two seeds of three rankings: both shares of ifd are one
    lines = {(entry["arm"], entry["seed"]): entry for entry in read_lines(folder / "results.jsonl")}
    kept = {arm: lines[arm, 0]["selection"]["kept"] for arm in ARMS if arm != "full"}
    assert kept == {"random-50": 14, "ifd-50": 14, "ifd-25": 7, "k-centre-25": 7}
    assert "selection" not in lines["full", 0]
    assert {entry["horizon"] for entry in lines.values()} == {4}
    costs = {one["arm"]: one for one in result.summary.costs}
    assert costs["ifd-25"]["selection_s"] == costs["ifd-50"]["selection_s"] > 0
    assert costs["full"]["selection_s"] == 0
    assert costs["ifd-25"]["total_s"] == costs["ifd-25"]["selection_s"] + costs["ifd-25"]["training_s"]
    assert "what choosing and training took" in markdown(result.summary)
    assert "what choosing and training took" in (folder / "report.html").read_text()
    before = (folder / "results.jsonl").read_text()
    assert run_study(None, folder, resume=True).summary.complete
    assert (folder / "results.jsonl").read_text() == before


def test_arms_can_see_equal_answer_tokens_instead_of_equal_steps(write_grid, places, inline):
    rows = [
        {"prompt": f"w{i}", "completion": " w1" * (6 if i % 4 == 0 else 1), "split": split}
        for i, split in enumerate(["train"] * 32 + ["validation"] * 4 + ["test"] * 4)
    ]
    grid = write_grid(
        arms={"full": {}, "longest": {"selection": "longest", "keep": 0.25}}, control="full", sizes=["all"],
        tasks={"near": "near.jsonl"}, seeds=1, horizon={"steps": 12, "match": "answer-tokens"},
    )  # fmt: skip
    (places / "near.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_study(grid, places / "study")
    lines = {entry["arm"]: entry for entry in read_lines(places / "study" / "results.jsonl")}
    tokens = lines["longest"]["selection"]["answer_tokens"]
    assert tokens == 7  # six words and the end
    assert lines["longest"]["horizon"] == round(12 * (8 * 7 + 24 * 2) / 32 / 7)
    assert lines["full"]["horizon"] == 12


def test_epochs_are_over_the_kept_rows(write_grid):
    grid = load_grid(write_grid(**SELECTING, horizon={"epochs": 2}))
    assert steps_of(grid, grid.config("ifd-25"), 7, 5.0) == 2 * 2
    assert steps_of(grid, grid.config("full"), 28, 5.0) == 2 * 7


def test_an_arm_without_the_target_it_needs_is_refused_before_anything_runs(write_grid, places, inline):
    arms = {"full": {}, "rds": {"selection": "rds-plus", "keep": 0.5}}
    with pytest.raises(UsageError, match=r"task near does not say.*tasks\.near\.target"):
        run_study(write_grid(arms=arms, control="full", tasks={"near": "near.jsonl"}), places / "study")
    grid = write_grid(
        arms=arms, control="full", tasks={"near": {"path": "near.jsonl", "target": "validation"}}, seeds=1,
        sizes=["all"],
    )  # fmt: skip
    assert run_study(grid, places / "with-target").summary.complete


def test_wrong_answers_change_places_among_a_share_of_the_rows():
    rows = [conversation(f"q{i}", f"a{i}") for i in range(20)]
    found = shuffled(rows, 0.2)
    wrong = [i for i in range(20) if found[i].answer != rows[i].answer]
    assert len(wrong) == 4 and [row.prompt for row in found] == [row.prompt for row in rows]
    assert sorted(row.answer for row in found) == sorted(row.answer for row in rows)
    assert shuffled(rows, 0.2) == found and shuffled(rows, 0.0) == rows


def test_duplicates_take_the_place_of_a_share_of_the_rows():
    rows = [conversation(f"q{i}", f"a{i}") for i in range(20)]
    found = duplicated(rows, 0.2)
    assert len(found) == 20 and len({row.prompt for row in found}) == 16
    assert set(found) <= set(rows) and duplicated(rows, 0.2) == found


def test_a_pool_can_hold_another_data_set_whose_own_test_rows_are_answered_too(write_grid, places, inline):
    pool = {"shuffled_answers": 0.25, "also": str(places / "far.jsonl"), "also_rows": 10, "also_is_previous": True}
    tests = {"old": str(places / "far.jsonl")}
    task = {"path": "near.jsonl", "pool": pool, "tests": tests}
    grid = write_grid(**{**SELECTING, "tasks": {"near": task}, "seeds": 1})
    assert run_study(grid, places / "study").summary.complete
    (task,) = (places / "study" / "tasks").glob("*/near")
    train, previous, test = (
        [Example.from_json(value) for value in read_lines(task / "task" / f"{name}.jsonl")]
        for name in ("train", "previous", "tests/old")
    )
    assert len(train) == 38 and [row.id for row in train[28:]] == [row.id for row in previous]
    assert read_json(task / "prepared.json")["rows"]["train"] == 38
    near = {json.loads(line)["completion"].strip() for line in (places / "near.jsonl").read_text().splitlines()[-6:]}
    far = {json.loads(line)["completion"].strip() for line in (places / "far.jsonl").read_text().splitlines()[-6:]}
    answers = {row.answer.strip() for row in test}
    assert answers <= far and not answers <= near


def test_a_pool_names_the_other_data_set_it_speaks_of():
    with pytest.raises(ValueError, match="no other data set is named"):
        GridSpec.model_validate(
            {"name": "x", "tasks": {"a": {"path": "facts", "pool": {"also_rows": 3}}}, "arms": {"a": {}, "b": {}},
             "control": "a", "seeds": 1, "horizon": {"steps": 1}}
        )  # fmt: skip


def test_the_shipped_selection_studies_are_whole():
    from foretune.study.grid_file import presets

    named = [name for name in presets() if name.split(":")[0] == "selection"]
    further = {"facts-mini", "further", "spoilt", "target", "continual", "tokens"}
    assert {"selection", *(f"selection:{name}" for name in further)} <= set(named)
    for name in named:
        grid = load_grid(name)
        texts = {str(grid.config(arm)["selection"]) for arm in grid.arms}
        assert {"none", "random"} <= texts, name
        assert any(grid.config(arm)["keep"] < 1 for arm in grid.arms)
