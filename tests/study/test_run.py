"""Whole studies on a tiny random model in real worker processes: pairing, results, kills, interrupts, failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import Interrupted, OutputError, TrainingError, UsageError
from foretune.files import read_json, read_lines, write_json
from foretune.study.design import StudyCell
from foretune.study.folder import StudyFolder
from foretune.study.forecast import left
from foretune.study.grid_file import load_grid
from foretune.study.run import run_study
from tests.structure.source import REPOSITORY

from ..inline import InlineExecutor
from .conftest import committed

pytestmark = pytest.mark.alone

KILL_PATIENCE_S = 300.0
WriteGrid = Callable[..., Path]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def orders(study: Path) -> list[dict[str, Any]]:
    """The asks of the journal."""
    return [line for line in read_lines(study / "journal.jsonl") if line["event"] == "ask"]


def comparable(line: dict[str, Any]) -> dict[str, Any]:
    """A result without what a clock or the machine decides."""
    return {
        key: value
        for key, value in line.items()
        if key not in ("train_s", "train_cpu_s", "eval_s", "peak_bytes", "run")
    }


def test_a_study_from_the_command_line(write_grid: WriteGrid, places: Path, inline: None) -> None:
    from foretune.experience.store import Store

    study = places / "study"
    events = run("run", write_grid(sizes=[8, "all"], margin=0.02), "--output", study, "--json")
    assert events.exit_code == 0, events.output
    said = [json.loads(line) for line in events.stdout.splitlines() if line.startswith("{")]
    kinds = [event["event"] for event in said]
    design = said[kinds.index("design")]
    assert kinds.index("design") < kinds.index("lease"), "what it takes is said before the first run"
    assert design["runs"] == 16 and design["run_hours"] > 0
    assert design["sd"] is None and "standard deviations" in " ".join(design["sentences"])
    assert "learning-rate-confounded" in design["rates"]

    lines = read_lines(study / "results.jsonl")
    assert len(lines) == len({line["cell"] for line in lines}) == 16
    assert {line["status"] for line in lines} == {"finished"}
    for line in lines:
        value, error, rows = line["scores"]["test"]["loss"]
        answers = json.loads((study / line["answers"]).read_text())["answers"]
        nll, tokens = sum(a["nll"] for a in answers), sum(a["tokens"] for a in answers)
        assert (rows, value) == (5, pytest.approx(nll / tokens)) and error > 0
        assert line["rows"] == (8 if line["size"] == "8" else 28)
        assert line["statistics"]["trainable_parameters"] == line["trainable"]
        assert not (study / "trials" / line["run"]).exists(), "checkpoints of tested runs are gone"
    assert said[-1]["summary"]["complete"] and len(said[-1]["summary"]["blocks"]) == 4

    with Store() as store:
        rows = store.runs(study="tiny")
        tested = [
            seen for row in rows for seen in store.curve(row.record.id) if (seen.split, seen.metric) == ("test", "loss")
        ]
    assert len(rows) == 16 and {row.status for row in rows} == {"finished"}
    pairs = {row.record.pair for row in rows}
    assert len(pairs) == 8 and {row.record.arm for row in rows} == {"r2", "r4"}
    assert sorted(seen.value for seen in tested) == sorted(line["scores"]["test"]["loss"][0] for line in lines)

    written = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "methods_study.py"), str(study)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert (
        "16 of 16 runs" in written and "of its gain over the untouched base" in written and "lies within 2%" in written
    )

    table = run("report", study).stdout
    assert "learning-rate-confounded" in table and "r2 (control)" in table and "over all tasks" in table
    assert json.loads(run("report", study, "--json").stdout) == json.loads((study / "summary.json").read_text())
    assert run("report", study, "--markdown").stdout.strip() == (study / "table.md").read_text().strip()
    spread_known = [
        json.loads(line) for line in run("run", "--output", study, "--resume", "--json").stdout.splitlines()
    ]
    again = next(event for event in spread_known if event["event"] == "design")
    assert again["done"] == 16 and again["run_hours"] == 0 and again["sd"] > 0
    assert read_lines(study / "results.jsonl") == lines


def test_pairs_share_rows_order_and_seed_and_small_subsets_lie_in_larger_ones(
    write_grid: WriteGrid, places: Path
) -> None:
    from foretune.search.types import Lease
    from foretune.study.design import cells, job
    from foretune.study.grid_file import load_grid
    from foretune.study.tasks import prepare_task

    grid = load_grid(write_grid(sizes=[4, 12], seeds=3, tasks={"near": "near.jsonl"}))
    task = prepare_task(grid, "tiny", "near", places / "task", lambda line: None)
    listed = cells(grid, [task], {}, {("tiny", "near"): 5.0})
    subsets: dict[tuple[int, str], set[tuple[Any, ...]]] = {}
    for cell in listed:
        lease = Lease("l", 1, "r", cell.config, 0, cell.horizon, 0.0, seed=cell.seed, horizon=cell.horizon)
        payload = job(task, cell, lease, places / "r", places / "a.json", None).payload
        assert payload["lease"]["seed"] == cell.seed
        subsets.setdefault((cell.seed, cell.size), set()).add(tuple(payload["train_rows"]))
    assert all(len(found) == 1 for found in subsets.values()), "the arms of a pair train on the same rows"
    small = {seed: set(*subsets[seed, "4"]) for seed in range(3)}
    large = {seed: set(*subsets[seed, "12"]) for seed in range(3)}
    assert all(small[seed] < large[seed] and len(large[seed]) == 12 for seed in range(3))
    assert len({tuple(sorted(rows)) for rows in large.values()}) == 3, "seeds draw different rows"
    by_pair: dict[str, list[Any]] = {}
    for cell in listed:
        by_pair.setdefault(cell.pair, []).append(cell)
    assert all({cell.arm for cell in pair} == {"r2", "r4"} for pair in by_pair.values())
    assert all(len({(cell.horizon, cell.config["rows_per_update"]) for cell in pair}) == 1 for pair in by_pair.values())


def test_killed_in_the_middle_nothing_is_lost_or_repeated(write_grid: WriteGrid, places: Path) -> None:
    from foretune.experience.store import Store

    grid = write_grid(horizon={"steps": 12}, tasks={"near": "near.jsonl"}, seeds=3)
    whole, killed = places / "whole", places / "killed"
    run_study(grid, whole)
    command = [sys.executable, "-m", "foretune.cli.main", "study", "run", str(grid), "--output", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        deadline = time.monotonic() + KILL_PATIENCE_S
        while len(read_lines(killed / "results.jsonl")) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = read_lines(killed / "results.jsonl")
    assert 2 <= len(before) < 6, "it was killed in the middle"
    moved = committed(killed, places / "elsewhere" / "studies" / "killed")
    result = run_study(None, killed, resume=True)
    assert result.summary.complete
    after = read_lines(killed / "results.jsonl")
    assert after[: len(before)] == before
    assert len(after) == len({line["cell"] for line in after}) == 6
    assert len(orders(killed)) == 6, "no cell was begun twice"
    expected = {line["cell"]: comparable(line) for line in read_lines(whole / "results.jsonl")}
    assert {line["cell"]: comparable(line) for line in after} == expected

    # what a repository would hold of the killed study goes on in another place, with the data read again
    for file in (grid, places / "near.jsonl"):
        shutil.copy(file, places / "elsewhere")
    again = run_study(places / "elsewhere" / grid.name, moved, resume=True).summary
    assert {line["cell"]: comparable(line) for line in read_lines(moved / "results.jsonl")} == expected
    assert read_lines(moved / "results.jsonl")[: len(before)] == before
    tests = [[d.rows for block in found.blocks for d in block.differences] for found in (again, result.summary)]
    assert tests[0] == tests[1] and None not in tests[0], "rows are compared without the answers of the first place"
    with Store() as store:
        assert len(store.runs(study="tiny")) == 6 + 6 + (6 - len(before)), "no run is another machine's experience"

    # a line torn by a kill is written again from the journal and the answers; nothing runs for it
    torn, journal = (killed / "results.jsonl").read_bytes()[:-200], (killed / "journal.jsonl").read_bytes()
    (killed / "results.jsonl").write_bytes(torn)
    run_study(grid, killed, resume=True)
    assert read_lines(killed / "results.jsonl") == after
    assert (killed / "journal.jsonl").read_bytes() == journal


def test_the_cells_of_a_study_can_run_on_ray(
    write_grid: WriteGrid, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def cluster(logs: Path, **settings: Any) -> InlineExecutor:
        asked.append(settings)
        return InlineExecutor(logs)

    monkeypatch.setattr("foretune.study.run.RayExecutor", cluster)
    grid = write_grid(tasks={"near": "near.jsonl"}, seeds=1)
    done = run("run", grid, "--output", places / "study", "--ray", "auto", "--workers", 2)
    assert done.exit_code == 0, done.output
    assert asked == [{"address": "auto", "workers": 2, "plugins": ()}]
    assert len(read_lines(places / "study" / "results.jsonl")) == 2


def test_time_and_interrupts_leave_a_study_that_goes_on(
    write_grid: WriteGrid, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tasks={"near": "near.jsonl"})
    study = places / "study"
    seen: list[str] = []

    def interrupt(kind: str, payload: Any) -> None:
        seen.append(kind)
        if kind == "observation" and seen.count("observation") == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="--resume"):
        run_study(grid, study, on_event=interrupt)
    partial = run_study(None, study, resume=True, time_s=1e-9)
    assert not partial.summary.complete and "time" in partial.reason
    assert run_study(grid, study).summary.complete
    assert len(read_lines(study / "results.jsonl")) == 4


def test_rates_are_swept_per_arm_on_the_pilot_task_by_validation_alone(
    write_grid: WriteGrid, places: Path, inline: None
) -> None:
    grid = write_grid(learning_rate={"sweep": [1e-5, 3e-2], "pilot": "near", "size": 8}, seeds=[0], tasks={
        "near": "near.jsonl", "far": "far.jsonl"}, horizon={"steps": 8})  # fmt: skip
    study = places / "study"
    result = run_study(grid, study)
    swept = read_lines(study / "rates.jsonl")
    assert len(swept) == 4 and all("test" not in line["scores"] and line["task"] == "near" for line in swept)
    for arm in ("r2", "r4"):
        losses = {x["config"]["learning_rate"]: x["scores"]["validation"]["loss"][0] for x in swept if x["arm"] == arm}
        best = min(losses, key=lambda rate: losses[rate])
        used = {x["config"]["learning_rate"] for x in read_lines(study / "results.jsonl") if x["arm"] == arm}
        assert used == {best}
    assert "confounded" not in result.summary.rates
    assert any("sweep beyond it" in note for note in result.summary.notes)
    assert all("at least 2 needed" in d.claim for block in result.summary.blocks for d in block.differences)


def test_sweeps_per_method_widen_survive_a_stop_and_are_shown(write_grid: WriteGrid, places: Path) -> None:
    from foretune.experience.store import Store

    arms = {"r2": {"lora": {"rank": 2}}, "r4": {"lora": {"rank": 4}}, "all": {"method": "full"}}
    rates = {"factors": [0.3, 1], "per": "method", "widen": 2, "size": 8}
    grid = write_grid(arms=arms, learning_rate=rates, tasks={"near": "near.jsonl"}, evaluation={
        "validation_rows": 4, "test_rows": 5, "checkpoint": "last"})  # fmt: skip
    study = places / "study"
    seen: list[str] = []

    def interrupt(kind: str, payload: Any) -> None:
        seen.append(kind)
        if kind == "observation" and payload["observation"]["final"] and seen.count("ended") == 4:
            os.kill(os.getpid(), signal.SIGINT)
        if kind == "observation" and payload["observation"]["final"]:
            seen.append("ended")

    with pytest.raises(Interrupted):
        run_study(grid, study, on_event=interrupt)
    first = len(read_lines(study / "rates.jsonl"))
    announced: dict[str, Any] = {}
    result = run_study(
        None, study, resume=True, on_event=lambda kind, told: announced.update(told if kind == "design" else {})
    )
    assert announced["done"] == announced["sweep_runs"] == 4, "runs of further rounds are not among those announced"
    swept = read_lines(study / "rates.jsonl")
    assert {line["arm"] for line in swept} == {"r2", "all"}, "one arm for each method"
    assert 4 <= first < len(swept) == len({line["cell"] for line in swept}) <= 8, "stopped while it was widened"
    used: dict[str, set[float]] = {}
    for line in read_lines(study / "results.jsonl"):
        used.setdefault(line["arm"], set()).add(line["config"]["learning_rate"])
        assert line["parameters"] > line["trainable"] or line["arm"] == "all"
    assert used["r2"] == used["r4"] and len(used["r2"]) == 1
    for method, arm in (("lora", "r2"), ("full", "all")):
        losses = {x["config"]["learning_rate"]: x["scores"]["validation"]["loss"][0]
                  for x in swept if x["config"]["method"] == method}  # fmt: skip
        assert used[arm] == {min(losses, key=lambda rate: losses[rate])}
    with Store() as store:
        kept = [row for row in store.runs() if (row.record.study or "").startswith("tiny:rates")]
    assert len(kept) == len(swept), "runs of later rounds are no runs of the first"
    tests = [d.rows for block in result.summary.blocks for d in block.differences]
    assert len(tests) == 2 and all(test is not None and test.n == 5 and "groups" in test.method for test in tests)
    page = (study / "report.html").read_text()
    assert "Learning rates</h2>" in page and "<script" not in page
    before = (study / "row-tests.json").read_bytes()
    (study / "answers").rename(study / "moved")
    assert run("report", study).exit_code == 0, "what was compared is kept, even without the answers"
    assert (study / "row-tests.json").read_bytes() == before


def test_failures_are_lines_with_a_status_and_no_score(write_grid: WriteGrid, places: Path) -> None:
    arms = {"r2": {"lora": {"rank": 2}}, "wild": {"learning_rate": 0.001, "method": "full"}}
    study = places / "study"
    worker = places / "worker.py"
    worker.write_text(
        "import foretune.execution.jobs as jobs, foretune.execution.worker as worker\n"
        "train = jobs.HANDLERS['train']\n"
        "def failing(bench, payload, report, stopped):\n"
        "    if payload['lease']['config']['method'] == 'full':\n"
        "        raise RuntimeError('planted | failure')\n"
        "    return train(bench, payload, report, stopped)\n"
        "jobs.HANDLERS['train'] = failing\n"
        "worker.main()\n"
    )
    result = run_study(write_grid(arms=arms), study, worker=[sys.executable, str(worker)])
    failed = [line for line in read_lines(study / "results.jsonl") if line["arm"] == "wild"]
    assert len(failed) == 4 and all(line["status"] == "crashed" and line["scores"] == {} for line in failed)
    (difference,) = result.summary.blocks[0].differences
    assert (difference.pairs, difference.dropped, difference.verdict) == (0, 2, "not resolved")
    assert "planted \\| failure" in (study / "table.md").read_text()
    mended = worker.read_text().replace("== 'full'", "== 'full' and payload['lease']['seed'] == 1")
    worker.write_text(mended)
    assert len(run_study(None, study, resume=True).summary.failed) == 4, "nothing is tried again unasked"
    again = run_study(None, study, resume=True, retry_failed=True, worker=[sys.executable, str(worker)])
    assert [(one["arm"], one["status"]) for one in again.summary.failed] == [("wild", "crashed")] * 2
    worker.write_text(mended.replace("payload['lease']['seed'] == 1", "False"))
    whole = run_study(None, study, resume=True, retry_failed=True, worker=[sys.executable, str(worker)])
    assert whole.summary.complete and not whole.summary.failed
    lines = read_lines(study / "results.jsonl")
    assert len(lines) == 8 + 4, "an accident stays on the record, and a result stands in its place"
    assert len({line["run"] for line in lines}) == len(lines)
    settled = (study / "results.jsonl").read_text()
    assert run_study(None, study, resume=True, retry_failed=True).summary.complete
    assert (study / "results.jsonl").read_text() == settled
    worker.write_text(worker.read_text().replace("== 'full' and False", "!= ''"))
    with pytest.raises(TrainingError, match="no run of the study has a result"):
        run_study(write_grid(), places / "all-fail", worker=[sys.executable, str(worker)])


def test_folders_and_sizes_that_cannot_be_used_are_refused(write_grid: WriteGrid, places: Path) -> None:
    grid = write_grid(tasks={"near": "near.jsonl"}, sizes=[29])
    with pytest.raises(UsageError, match="28 training rows"):
        run_study(grid, places / "study")
    with pytest.raises(OutputError, match="another study"):
        run_study(write_grid(seeds=5), places / "study")
    with pytest.raises(OutputError, match="holds other files"):
        run_study(grid, places)
    with pytest.raises(OutputError, match="no study was begun"):
        run_study(None, places / "nowhere", resume=True)
    assert run("report", places / "nowhere").exit_code != 0
    assert not (places / "nowhere").exists()
    assert "there is no study to run" in str(run("run").exception)


def test_a_study_begun_before_a_setting_existed_goes_on(write_grid: WriteGrid, places: Path) -> None:
    """What an earlier version wrote lacks the setting; it has its default then. Other values are another study."""
    grid, folder = load_grid(write_grid()), StudyFolder(places / "study")
    folder.begin(grid, "", "then")
    written = read_json(folder.study)
    del written["grid"]["tasks"]["near"]["on_bad_row"], written["grid"]["product"]
    written["identity"] = "of-an-earlier-version"
    write_json(folder.study, written)
    assert folder.begin(grid, "", "now")["started"] == "then"
    for changed, what in (({"seeds": 7}, "another study"), ({"gone": 1}, "another version, with a setting .*gone")):
        write_json(folder.study, {**written, "grid": {**written["grid"], **changed}})
        with pytest.raises(OutputError, match=what):
            folder.begin(grid, "", "now")


def test_a_paused_test_evaluation_is_taken_up_again(
    write_grid: WriteGrid, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop after the last step but before the test answers must not count as a finished run."""
    monkeypatch.setattr("foretune.evaluation.likelihood.CHUNK_ROWS", 2)
    from dataclasses import replace

    from foretune.execution.bench import Bench
    from foretune.execution.trial import Trial, TrialOrder
    from foretune.search.types import Lease
    from foretune.study.design import cells, job
    from foretune.study.grid_file import load_grid
    from foretune.study.tasks import prepare_task

    grid = load_grid(write_grid(tasks={"near": "near.jsonl"}, seeds=1))
    task = prepare_task(grid, "tiny", "near", places / "task", lambda line: None)
    cell = cells(grid, [task], {}, {("tiny", "near"): 5.0})[0]
    lease = Lease("l", 1, "r", cell.config, 0, 4, 0.0, seed=0, rungs=(1, 2, 4), horizon=4)
    order = TrialOrder.from_json(job(task, cell, lease, places / "r", places / "a.json", None).payload)
    bench, testing = Bench(task.spec), [False]

    def report(kind: str, payload: Any) -> None:
        testing[0] = testing[0] or "tested" in payload

    paused = Trial(bench, order, report=report, stopped=lambda: testing[0]).run()
    assert (paused.status, paused.step, paused.metrics) == ("paused", 3, {})
    assert not (places / "a.json").exists()
    again = replace(order, lease=replace(lease, attempt=2, from_step=3))
    done = Trial(bench, again, report=report, stopped=lambda: False).run()
    assert (done.status, done.step) == ("ok", 4) and "loss" in done.metrics
    assert len(json.loads((places / "a.json").read_text())["answers"]) == 5


def test_every_arm_can_be_swept_on_every_task(write_grid: WriteGrid, places: Path, inline: None) -> None:
    rates = {"sweep": [1e-5, 3e-2], "per": "arm-on-task", "size": 8, "widen": 0}
    grid = write_grid(
        learning_rate=rates, seeds=[0], tasks={"near": "near.jsonl", "far": "far.jsonl"}, horizon={"steps": 8}
    )
    study = places / "study"
    result = run_study(grid, study)
    swept, done = read_lines(study / "rates.jsonl"), read_lines(study / "results.jsonl")
    assert len(swept) == 2 * 2 * 2
    for task in ("near", "far"):
        for arm in ("r2", "r4"):
            own = [line for line in swept if (line["task"], line["arm"]) == (task, arm)]
            best = min(own, key=lambda line: line["scores"]["validation"]["loss"][0])["config"]["learning_rate"]
            used = {line["config"]["learning_rate"] for line in done if (line["task"], line["arm"]) == (task, arm)}
            assert used == {best}
    assert "every arm on every task" in result.summary.rates
    assert any("arm r2 on far" in note for note in result.summary.notes)


def test_what_is_left_are_the_cells_without_a_line() -> None:
    def cell(size: str, rate: float) -> StudyCell:
        return StudyCell("m", "t", "r2", size, int(size), 0, f"t:{size}:0", {"learning_rate": rate}, 5)

    lines = [{**vars(cell("8", 2e-3)), "status": "finished"}, {**vars(cell("8", 5e-3)), "status": "finished"}]
    small, large = cell("8", 1e-3), cell("64", 1e-3)
    assert left([small, large], lines) == [large], "the rate of a run is chosen after it was announced"
    assert left([small, cell("8", 2e-3)], lines, by_rate=True) == [small]


def test_elsewhere_a_study_forecasts_by_the_speed_of_the_new_machine(
    write_grid: WriteGrid, places: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, study = write_grid(tasks={"near": "near.jsonl"}), places / "study"
    assert not run_study(grid, study, time_s=1e-9).summary.complete
    (first,) = study.glob("tasks/*/*/probe.json")
    began = read_json(first)
    (path,) = study.glob("tasks/*/*/probe-*.json")
    path.unlink()  # what another machine's speeds are here: none of this one
    slow = {"train_rows_per_s": began["train_rows_per_s"] / 1e4, "score_rows_per_s": began["score_rows_per_s"] / 1e4}
    write_json(first, {**began, **slow, "base_loss": 7.0})
    announced: dict[str, Any] = {}
    run_study(grid, study, on_event=lambda kind, told: announced.update(told if kind == "design" else {}))
    assert announced["run_hours"] < 1.0, "not ten thousand times as long"
    assert read_json(first)["base_loss"] == 7.0, "facts stay those the study began with"
    assert len(list(study.glob("tasks/*/*/probe-*.json"))) == 1
