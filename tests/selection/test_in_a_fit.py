"""The selection inside a fit: ranked once, shared by all trials, told in the result, the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foretune.cli.setting_options import selection_options
from foretune.errors import UsageError
from foretune.execution.kept import BLOCKS, RANKING, SELECTIONS, kept
from foretune.files import read_json
from foretune.fit.schedule import PREVIOUS_ROWS
from foretune.report.html import REPORT
from foretune.selection.base import SelectionStopped

from .conftest import rows

OPTIONS = {"training.selection": "ifd", "training.keep": 0.25}


@pytest.fixture(scope="module")
def selected(fast_fit, tmp_path_factory):
    return fast_fit(output=tmp_path_factory.mktemp("selected") / "run", options=OPTIONS)


def test_all_trials_share_one_ranking(selected):
    folder = selected.folder / "task" / SELECTIONS
    (ranking,) = [read_json(path) for path in folder.glob(f"*/{RANKING}")]
    pool = selected.record.data.rows["train"]
    assert sorted(ranking["indices"]) == list(range(pool))
    assert all(trial.config["selection"] == "ifd" and trial.config["keep"] == 0.25 for trial in selected.record.trials)


def test_the_result_tells_what_was_kept(selected):
    info = selected.record.selection
    assert info.method == "ifd" and info.kept == round(0.25 * info.pool)
    assert info.seconds > 0 and info.manifest["rows"] == info.pool
    phases = {phase.name: phase.seconds for phase in selected.record.budget.phases}
    assert phases["selection"] >= info.seconds
    card = (selected.folder / "adapter" / "README.md").read_text()
    report = (selected.folder / REPORT).read_text()
    assert info.sentence() in card and "Rows kept" in report
    settings = {item.key: item for item in selected.record.settings}
    assert settings["training.selection"].value == "ifd" and settings["training.selection"].origin == "option"
    assert "selection" in (selected.folder / "resolved.yaml").read_text()


def test_epochs_are_passes_over_the_kept_rows(selected):
    info = selected.record.selection
    updates = -(-info.kept // 16)
    assert {trial.horizon for trial in selected.record.trials} <= {updates * 3, *range(1, updates * 3)}


def test_a_run_without_selection_says_nothing_of_it(finished):
    assert finished.record.selection is None
    assert "selection" not in {phase.name for phase in finished.record.budget.phases}


def test_a_ranking_that_was_stopped_goes_on(make_bench):
    examples = rows(150)
    bench, other = make_bench(examples), make_bench(examples)
    config = {"selection": "ifd", "keep": 0.2, "ifd.ratio": "perplexity", "ifd.scorer": "self"}
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(SelectionStopped):
        kept(bench, config, stopped=stopped)
    blocks = list(Path(bench.task.folder).glob(f"{SELECTIONS}/{BLOCKS}/*.safetensors"))
    assert 1 <= len(blocks) <= 3
    before = {path: path.stat().st_mtime_ns for path in blocks}
    found = kept(bench, config)
    assert found.rows == kept(other, config).rows
    assert {path: path.stat().st_mtime_ns for path in blocks} == before
    assert found.manifest["blocks_reused"] == len(blocks)
    assert found.seconds >= found.manifest["reused_s"] > 0  # what a stopped attempt scored is still paid for


def test_a_smaller_share_is_the_beginning_of_a_larger_one(make_bench):
    bench = make_bench(rows(20))
    config = {"selection": "longest", "longest.unit": "tokens"}
    large, small = (kept(bench, {**config, "keep": keep}).rows for keep in (0.5, 0.2))
    assert large[: len(small)] == small and len(small) == 4
    assert len(list(Path(bench.task.folder).glob(f"{SELECTIONS}/*"))) == 1


def test_a_pool_of_its_own_seed(make_bench):
    bench = make_bench(rows(20))
    config = {"selection": "random", "keep": 0.5}
    first, again, other = (kept(bench, config, pool=range(5, 15), seed=seed).rows for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) <= set(range(5, 15))


def test_options_of_the_command():
    said = selection_options("ifd", "30%", "wanted.jsonl")
    assert {k: v for k, v in said.items() if v is not None} == {
        "training.selection": "ifd", "training.keep": 0.3, "data.target": "wanted.jsonl",
    }  # fmt: skip
    for select, keep in (("ifd", None), (None, "30%"), ("ifd", "500"), ("idf", "30%"), ("ifd", "130%")):
        with pytest.raises(UsageError):
            selection_options(select, keep)
    with pytest.raises(UsageError, match="is for a selection, and there is none"):
        selection_options(None, None, target="x")
    assert selection_options(None, None, previous="x")["data.previous"] == "x"


def test_a_plan_forecasts_the_selection(ground):
    from foretune.fit import plan

    options = {**OPTIONS, "data.context_tokens": 96}
    made = plan(ground.rows, model=str(ground.llama), time="10m", options=options)
    phases = {phase.name: phase.seconds.value for phase in made.forecast.phases}
    assert phases["selection"] > 0
    whole = plan(ground.rows, model=str(ground.llama), time="10m", options={"data.context_tokens": 96})
    assert made.request.data.train_rows < whole.request.data.train_rows
    assert "selection" not in {phase.name for phase in whole.forecast.phases}
    json.dumps(made.to_json())


def test_rows_beyond_earlier_ones_come_with_what_was_lost_of_those(fast_fit, ground, tmp_path):
    earlier = tmp_path / "earlier.jsonl"
    lines = ground.rows.read_text().splitlines()
    earlier.write_text("\n".join(2 * lines))
    options = {
        "training.selection": "delift-se", "training.keep": 0.5,
        "data.previous": str(earlier), "budget.steps": None, "budget.trials": 1, "training.epochs": 1,
    }  # fmt: skip
    finished = fast_fit(output=tmp_path / "run", options=options)
    lost = finished.record.forgetting_previous
    assert lost is not None and lost.rows == PREVIOUS_ROWS and lost.sample == "earlier rows"
    told = [read_json(finished.folder / "answers" / f"test-{role}.json")["previous"] for role in ("base", "winner")]
    before, after = (sum(nll for nll, _ in part) / sum(tokens for _, tokens in part) for part in told)
    assert (lost.before, lost.after) == (pytest.approx(before), pytest.approx(after))
    assert lost.low <= lost.difference <= lost.high
    assert "earlier rows" in (finished.folder / REPORT).read_text()
    assert set(finished.record.data.rows) == {"train", "validation", "test"}


def test_earlier_rows_with_labels_of_their_own_end_no_fit(fast_fit, ground, tmp_path):
    data, earlier = tmp_path / "rows.jsonl", tmp_path / "earlier.jsonl"
    for path, labels in ((data, ("up", "down")), (earlier, ("left", "right"))):
        path.write_text(
            "".join(json.dumps({"text": f"row {i} {i % 7}", "label": labels[i % 2]}) + "\n" for i in range(60))
        )
    options = {
        "data.previous": str(earlier), "training.method": "lora",
        "budget.steps": None, "budget.trials": 1, "training.epochs": 1,
    }  # fmt: skip
    record = fast_fit(data, output=tmp_path / "run", options=options).record
    assert record.forgetting_previous is None and record.comparison is not None
    (told,) = [note for note in record.notes if "earlier rows was not measured" in note]
    assert "left" in told or "right" in told
