"""Selections as arms of a study: ranked once, their cost in the table, matched on tokens, on spoilt and mixed pools."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
from pathlib import Path

import pytest

from foretune.data.example import Example, conversation
from foretune.errors import Interrupted, UsageError
from foretune.execution.orders import subset
from foretune.files import read_json, read_lines
from foretune.study.costs import arm_costs
from foretune.study.design import steps_of
from foretune.study.grid import GridSpec
from foretune.study.grid_file import load_grid
from foretune.study.outputs import material_of, results_of
from foretune.study.pools import duplicated, shuffled
from foretune.study.run import run_study
from foretune.study.tables import markdown

from .conftest import committed

ARMS = {
    "full": {},
    "random-50": {"selection": "random", "keep": 0.5},
    "ifd-50": {"selection": "ifd", "keep": 0.5},
    "ifd-25": {"selection": "ifd", "keep": 0.25},
    "k-centre-25": {"selection": "k-centre", "keep": 0.25},
}
SELECTING = {"arms": ARMS, "control": "random-50", "sizes": ["all"], "tasks": {"near": "near.jsonl"}}


def test_arms_are_ranked_once_and_their_cost_is_told(write_grid, places, inline):
    folder = places / "study"
    result = run_study(write_grid(**SELECTING), folder)
    assert result.summary.complete
    made = list((folder / "tasks").glob("*/near/task/selections/*/ranking.json"))
    assert len(made) == 2 + 1 + 1  # random rows of two seeds; both shares and seeds of ifd are one ranking
    lines = {(entry["arm"], entry["seed"]): entry for entry in read_lines(folder / "results.jsonl")}
    kept = {arm: lines[arm, 0]["selection"]["kept"] for arm in ARMS if arm != "full"}
    assert kept == {"random-50": 14, "ifd-50": 14, "ifd-25": 7, "k-centre-25": 7}
    assert "selection" not in lines["full", 0]
    assert {entry["horizon"] for entry in lines.values()} == {4}
    costs = {one["arm"]: one for one in result.summary.costs}
    assert costs["ifd-25"]["selection_s"] == costs["ifd-50"]["selection_s"] > 0
    assert costs["full"]["selection_s"] == 0
    assert costs["ifd-25"]["total_s"] == costs["ifd-25"]["selection_s"] + costs["ifd-25"]["training_s"]
    assert "what choosing and training took, processor seconds" in markdown(result.summary)
    ranked = {entry["facts"]["cpu_seconds"] for entry in read_lines(folder / "selections.jsonl")}
    assert lines["ifd-25", 0]["selection"]["cpu_seconds"] in ranked and lines["full", 0]["train_cpu_s"] > 0
    assert "what choosing and training took" in (folder / "report.html").read_text()
    tables = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "selection_tables.py"))
    text = "\n".join(tables["section"](folder))
    cost = costs["ifd-25"]
    seconds = f"| {cost['selection_s']:.0f} | {cost['training_s']:.0f} | {cost['total_s']:.0f} |"
    assert all(f"| {arm} " in text for arm in ARMS) and "Not finished" not in text
    assert any(line.startswith("| ifd-25 | 2 |") and line.endswith(seconds) for line in text.splitlines())
    written = tables["page"](tables["PAGE"].read_text(), "THE TABLES")
    assert "THE TABLES" in written and written.count("<!-- study:start -->") == 1
    before = (folder / "results.jsonl").read_text()
    assert run_study(None, folder, resume=True).summary.complete
    assert (folder / "results.jsonl").read_text() == before

    # an arm that is compared with another one than all others: the same runs, another table
    arms = {**ARMS, "k-centre-25": {**ARMS["k-centre-25"], "control": "ifd-25"}}
    turned = run_study(write_grid(**{**SELECTING, "arms": arms}), folder, resume=True)
    assert (folder / "results.jsonl").read_text() == before
    both = {block.control: block for block in turned.summary.blocks}
    assert list(both) == ["random-50", "ifd-25"] and turned.summary.complete
    assert [one.arm for one in both["random-50"].differences] == ["full", "ifd-50", "ifd-25"]
    (found,) = both["ifd-25"].differences
    seeds = [seed for arm, seed in lines if arm == "ifd-25"]
    loss = {key: entry["scores"]["test"]["loss"][0] for key, entry in lines.items()}
    expected = [loss["k-centre-25", seed] - loss["ifd-25", seed] for seed in seeds]
    assert found.mean == pytest.approx(sum(expected) / len(expected)) and found.pairs == len(seeds) == 2
    assert found.p_holm == found.p_value and found.rows is not None, "alone in its family"
    assert "near, all rows, against ifd-25: loss" in (folder / "table.md").read_text()
    assert "Every arm against random-50 or ifd-25" in (folder / "report.html").read_text()
    kept = results_of(material_of(folder))
    assert [block.control for block in kept.summary.blocks] == list(both), "it is kept"
    spoken = {rule.statement.partition(":")[0] for rule in kept.ruling.rules}
    spoken |= {said.partition(":")[0] for said in kept.ruling.unresolved}
    assert {"ifd-50 against random-50", "k-centre-25 against ifd-25"} <= spoken


def test_seconds_are_compared_on_one_machine():
    def run(arm, machine, train_s, chosen=None, chosen_on=None):
        block = {"model": "m", "task": "t", "size": "all", "status": "finished", "rows": 9, "tokens": 100}
        line = {**block, "arm": arm, "machine": machine, "train_s": train_s, "train_cpu_s": train_s / 2}
        if chosen is None:
            return line
        facts = {"machine": chosen_on, "kept": 3, "answer_tokens": 5.0, "seconds": chosen, "cpu_seconds": chosen / 2}
        return {**line, "selection": {**facts, "cpu_seconds": None} if chosen_on == "gpu" else facts}

    lines = [
        run("full", "cpu", 100.0),
        run("full", "cpu", 100.0),
        run("full", "gpu", 4.0),
        run("delift", "cpu", 80.0, 60.0, "gpu"),  # chosen on one machine, trained on another: no sum says anything
        run("delift", "gpu", 3.0, 60.0, "gpu"),
        run("less", "cpu", 90.0, 1000.0, "cpu"),
        run("less", "gpu", 3.0, 50.0, "gpu"),
        run("ifd", "cpu", 90.0, 20.0, "cpu"),
        run("k-centre", "gpu", 2.0, 1.0, "gpu"),
    ]
    costs = {one["arm"]: one for one in arm_costs(lines)}
    assert {arm: (one["selection_s"], one["training_s"], one["runs"]) for arm, one in costs.items()} == {
        "full": (0.0, 4.0, 1), "delift": (60.0, 3.0, 1), "less": (50.0, 3.0, 1),
        "k-centre": (1.0, 2.0, 1),
    }  # fmt: skip
    assert {one["clock"] for one in costs.values()} == {"wall"}
    (alone,) = arm_costs([run("ifd", "cpu", 90.0, 20.0, "cpu")])
    assert (alone["selection_s"], alone["training_s"], alone["clock"]) == (10.0, 45.0, "processor")


def test_rankings_travel_with_a_study_and_are_not_made_again(write_grid, places, inline, monkeypatch):
    grid, arms = write_grid(**{**SELECTING, "arms": {name: ARMS[name] for name in ("full", "random-50", "ifd-50")}}), 3
    whole, begun = places / "whole", places / "begun"
    run_study(grid, whole)

    seen = []

    def interrupt(kind, payload):
        seen.append(kind)
        if kind == "observation" and seen.count(kind) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run_study(grid, begun, on_event=interrupt)
    moved = committed(begun, places / "elsewhere" / "begun")
    for file in (grid, places / "near.jsonl"):
        shutil.copy(file, places / "elsewhere")
    monkeypatch.setattr("foretune.execution.kept.select", None)  # to rank again would fail
    assert run_study(places / "elsewhere" / grid.name, moved, resume=True).summary.complete
    found, expected = (
        {(e["arm"], e["seed"]): e["scores"] for e in read_lines(place / "results.jsonl")} for place in (moved, whole)
    )
    assert found == expected and len(found) == 2 * arms
    assert not any("machines" in note for note in run_study(None, moved, resume=True).summary.notes)
    lines = (moved / "results.jsonl").read_text().splitlines()
    here = json.loads(lines[-1])["machine"]
    assert json.loads(lines[-1])["selection"]["machine"] == here
    lines[-1] = lines[-1].replace(here, "0" * len(here), 1)
    (moved / "results.jsonl").write_text("\n".join(lines) + "\n")
    assert any("from 2 machines" in note for note in run_study(None, moved, resume=True).summary.notes)


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


def test_the_forecast_counts_a_ranking_once_for_all_seeds_unless_it_has_one(write_grid, places, inline):
    from foretune.study.design import cells
    from foretune.study.outputs import material_of
    from foretune.study.selections import forecast_seconds

    arms = {"full": {}, "ifd-50": {"selection": "ifd", "keep": 0.5}, "igf-50": {"selection": "igf", "keep": 0.5}}
    setting = {**SELECTING, "arms": arms, "control": "full"}
    run_study(write_grid(**setting, seeds=1), places / "study")
    material = material_of(places / "study")
    key = ("tiny", "near")
    probe = read_json(material.folder.task(*key).root / "probe.json")
    seconds = {}
    for arm in ("ifd-50", "igf-50"):
        for seeds in ((0,), (0, 1, 2)):
            own = {"full": {}, arm: arms[arm]}
            grid = material.grid.model_copy(update={"arms": own, "seeds": seeds})
            listed = cells(grid, material.tasks.values(), {}, {key: 5.0})
            listed = [cell for cell in listed if cell.arm in own]
            seconds[arm, len(seeds)] = forecast_seconds(listed, material.tasks, {key: probe})
    assert seconds["ifd-50", 3] == seconds["ifd-50", 1] > 0
    assert seconds["igf-50", 3] == pytest.approx(3 * seconds["igf-50", 1])


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


def test_an_arm_can_be_for_some_tasks_and_a_rate_for_all_arms_of_a_task(write_grid, places, inline):
    arms = {"full": {}, "random-50": {"selection": "random", "keep": 0.5},
            "longest-50": {"selection": "longest", "keep": 0.5, "tasks": ["far"]}}  # fmt: skip
    rates = {"sweep": [0.001, 0.01], "per": "task", "of": ["full", "random-50"], "size": "all", "widen": 0}
    grid = write_grid(arms=arms, control="random-50", sizes=["all"], learning_rate=rates)
    summary = run_study(grid, places / "study").summary
    assert summary.complete and summary.runs == 2 * (2 + 3)
    swept = read_lines(places / "study" / "rates.jsonl")
    assert len(swept) == 2 * 2 * 2 and {entry["arm"] for entry in swept} == {"full", "random-50"}
    for task, arms_there in (("near", ["full"]), ("far", ["full", "longest-50"])):
        (block,) = [one for one in summary.blocks if one.task == task]
        assert [difference.arm for difference in block.differences] == arms_there
        losses = {
            rate: sum(e["scores"]["validation"]["loss"][0] for e in swept
                      if e["task"] == task and e["config"]["learning_rate"] == rate)
            for rate in (0.001, 0.01)
        }  # fmt: skip
        done = [entry for entry in read_lines(places / "study" / "results.jsonl") if entry["task"] == task]
        used = {entry["config"]["learning_rate"] for entry in done}
        assert used == {min(losses, key=losses.get)}
    assert [difference.arm for difference in summary.pooled[0].over_seeds] == ["full"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"a": {}, "b": {"selection": "random", "tasks": ["nearly"]}}}, "no task 'nearly'.*near"),
        ({"arms": {"a": {"tasks": ["near"]}, "b": {"selection": "random"}}}, "every task is compared with this arm"),
        ({"arms": {"a": {}, "b": {"selection": "random", "tasks": ["far"]}}, "learning_rate": [0.1, 0.2]},
         "swept on a task that it is not for"),
        ({"learning_rate": {"sweep": [0.1, 0.2], "per": "task", "pilot": "near"}}, "every task is a pilot"),
        ({"learning_rate": {"sweep": [0.1, 0.2], "of": ["a"]}}, "per: task only"),
        ({"learning_rate": {"sweep": [0.1, 0.2], "per": "task", "of": ["c"]}}, "no arm 'c'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_of_arms_and_tasks_is_refused(write_grid, changes, said):
    arms = {"a": {}, "b": {"selection": "random", "keep": 0.5}}
    with pytest.raises(UsageError, match=said):
        load_grid(write_grid(**{"arms": arms, "control": "a", **changes}))


def test_a_target_can_be_a_few_of_the_validation_rows(write_grid, places, inline):
    task = {"path": "near.jsonl", "target": "validation", "target_rows": 3}
    run_study(write_grid(tasks={"near": task}, seeds=1), places / "study")
    (folder,) = (places / "study" / "tasks").glob("*/near/task")
    target, validation = (read_lines(folder / f"{name}.jsonl") for name in ("target", "validation"))
    assert len(target) == 3 and len(validation) == 4


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


def test_a_model_can_be_trained_on_the_old_data_first(write_grid, places, inline):
    pool = {"also": str(places / "far.jsonl"), "also_rows": 10, "also_is_previous": True}
    before = {"data": str(places / "far.jsonl"), "rows": 10, "steps": 30, "rows_per_update": 5, "learning_rate": 0.05}
    task = {"path": "near.jsonl", "pool": pool, "tests": {"old": "far.jsonl"}}
    grid = write_grid(**{**SELECTING, "tasks": {"near": task}, "seeds": 1, "before": before})
    study = places / "study"
    said: list[str] = []
    summary = run_study(grid, study, on_event=lambda kind, seen: said.append(str(seen.get("line")))).summary
    assert summary.complete and any(line.startswith("trained on") for line in said)
    model = study / "before" / "tiny"
    old = [Example.from_json(value) for value in read_lines(model / "task" / "train.jsonl")]
    (task_folder,) = (study / "tasks").glob("*/near/task")
    previous = {Example.from_json(value).prompt for value in read_lines(task_folder / "previous.jsonl")}
    assert previous == {old[i].prompt for i in subset(10, len(old), 0)}
    assert not previous & {Example.from_json(value).prompt for value in read_lines(model / "task" / "test.jsonl")}
    trained = read_json(model / "trained.json")
    assert trained["status"] == "ok" and trained["metrics"]["gain"][0] > 0
    weights = (model / "merged" / "model.safetensors").read_bytes()
    assert run_study(None, study, resume=True).summary.complete
    assert (model / "merged" / "model.safetensors").read_bytes() == weights


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
