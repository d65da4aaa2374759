"""One training tested on several sets of rows: each a block of its own, compared in pairs, counted as one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import DataError
from foretune.files import read_json, read_lines
from foretune.study.grid import GridSpec
from foretune.study.grid_file import load_grid
from foretune.study.run import run_study
from foretune.study.tasks import prepare_task


def loss_of(answers: list[dict[str, Any]]) -> float:
    return sum(a["nll"] for a in answers) / sum(a["tokens"] for a in answers)


def test_a_run_is_trained_once_and_compared_on_every_set(write_grid: Any, places: Path, inline: None) -> None:
    tasks = {"near": {"path": "near.jsonl", "tests": {"far": "far.jsonl"}}}
    folder = places / "study"
    result = run_study(write_grid(tasks=tasks, sizes=[4, 8]), folder)
    lines = read_lines(folder / "results.jsonl")
    assert (result.summary.runs, result.summary.expected, len(lines)) == (8, 8, 8), "no run is counted twice"
    for line in lines:
        answers = json.loads((folder / line["answers"]).read_text())
        assert line["scores"]["test"]["loss"][0] == pytest.approx(loss_of(answers["answers"]))
        assert line["tests"]["far"]["loss"][0] == pytest.approx(loss_of(answers["further"]["tests/far"]))
        assert line["tests"]["far"]["loss"][0] != line["scores"]["test"]["loss"][0]
    blocks = {(block.size, block.tested_on): block for block in result.summary.blocks}
    assert set(blocks) == {(size, name) for size in "48" for name in ("", "far")}
    for (size, name), block in blocks.items():
        own = {(e["arm"], e["seed"]): e for e in lines if e["size"] == size}
        value = {key: (e["tests"]["far"] if name else e["scores"]["test"])["loss"][0] for key, e in own.items()}
        (found,) = block.differences
        assert found.mean == pytest.approx(sum(value["r4", seed] - value["r2", seed] for seed in (0, 1)) / 2)
        assert found.rows is not None and found.rows.n == 5
        assert found.rows.difference == pytest.approx(found.mean, rel=0.2)
        base = read_json(folder / "tasks" / "tiny" / "near" / ("base-far.json" if name else "base.json"))
        assert block.base == base["loss"][0]
    assert blocks["4", ""].base != blocks["4", "far"].base
    pooled = {one.tested_on: one.over_seeds[0] for one in result.summary.pooled}
    assert {name: found.pairs for name, found in pooled.items()} == {"": 2, "far": 2}, "a set repeats nothing"
    table, page = (folder / "table.md").read_text(), (folder / "report.html").read_text()
    assert "near, 4 rows, tested on far: loss" in table and "tested on far" in page
    assert "over all tasks, tested on far" in table


def test_a_partial_study_has_whole_blocks_and_counts_them(write_grid: Any, places: Path, inline: None) -> None:
    folder = places / "study"
    run_study(write_grid(tasks={"near": "near.jsonl"}, sizes=[4, 8]), folder)
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["size"] for line in lines] == ["4"] * 4 + ["8"] * 4, "one size after the other"
    assert [json.loads(line)["seed"] for line in lines] == [0, 0, 1, 1] * 2, "pair after pair"
    (folder / "results.jsonl").write_text("".join(lines[:5]))
    shown = CliRunner().invoke(app, ["study", "report", str(folder)])
    said = " ".join(shown.stdout.split())
    assert "5 of 8 runs have ended, and 1 of 2 blocks (model, task, size) are complete" in said
    assert "over all tasks" not in said, "one seed of the second size is not pooled with all of the first"


def test_rows_that_are_trained_on_are_no_test_rows(write_grid: Any, places: Path) -> None:
    write_grid(tasks={"near": {"path": "near.jsonl", "tests": {"mixed": "mixed.jsonl"}}})
    known = [json.loads(line) for line in (places / "near.jsonl").read_text().splitlines()[:9]]
    new = [{"prompt": "w1 w2 w3 w4 w5", "completion": " w6"}, {"prompt": "w39 w38 w37 w36", "completion": " w0"}]
    rows = [{k: v for k, v in row.items() if k != "split"} for row in [*known, *new]]
    (places / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = load_grid(places / "grid.yaml")
    task = prepare_task(grid, "tiny", "near", places / "task", lambda line: None)
    assert dict(task.tests) == {"mixed": 2}
    written = read_lines(places / "task" / "task" / "tests" / "mixed.jsonl")
    assert len(written) == 2 and "w36" in json.dumps(written)
    assert task.rows["train"] == 28, "the training rows do not depend on what is tested"
    (places / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    with pytest.raises(DataError, match="every row of this test set is a training row"):
        prepare_task(grid, "tiny", "near", places / "again", lambda line: None)


def test_a_set_of_another_task_is_refused(write_grid: Any, places: Path) -> None:
    (places / "words.jsonl").write_text("".join(json.dumps({"text": f"w1 w2 w{i}"}) + "\n" for i in range(12)))
    grid = load_grid(write_grid(tasks={"near": {"path": "near.jsonl", "tests": {"words": "words.jsonl"}}}))
    with pytest.raises(DataError, match="language-modelling"):
        prepare_task(grid, "tiny", "near", places / "task", lambda line: None)


def test_a_set_with_a_label_that_is_not_learnt_is_refused_with_its_line(write_grid: Any, places: Path) -> None:
    for name, labels in (("own", ("red", "blue")), ("other", ("red", "blue", "green"))):
        rows = [{"text": f"{name} w{i} w{3 * i % 40}", "label": labels[i % len(labels)]} for i in range(40)]
        (places / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grid = load_grid(write_grid(tasks={"own": {"path": "own.jsonl", "tests": {"other": "other.jsonl"}}}))
    with pytest.raises(DataError, match=r"other\.jsonl:3: the label 'green' of this test row .* 12 more"):
        prepare_task(grid, "tiny", "own", places / "task", lambda line: None)


def test_small_sizes_can_be_given_a_least_number_of_steps() -> None:
    from foretune.study.design import steps_of

    grid = GridSpec.model_validate(
        {"name": "x", "tasks": {"a": "facts"}, "arms": {"a": {}, "b": {"lora.rank": 2}}, "control": "a", "seeds": 1,
         "horizon": {"epochs": 3, "least_steps": 20}}
    )  # fmt: skip
    config = {"rows_per_update": 10}
    assert [steps_of(grid, config, rows, 5.0) for rows in (10, 60, 100)] == [20, 20, 30]
