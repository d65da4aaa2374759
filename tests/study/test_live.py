"""Whole fits against each other: the same rows, a store for each, free systems, failures stay, nothing is repeated."""

from __future__ import annotations

import os

import pytest
import yaml

import foretune.fit.job
from foretune.errors import UsageError
from foretune.files import read_lines
from foretune.study import live
from foretune.study.grid_file import presets
from foretune.study.live_report import FREE, markdown, summarised
from tests.inline import InlineExecutor
from tests.whole_fits import SETTINGS, ground  # noqa: F401

QUICK = {**SETTINGS, "budget.steps": 20}


def _written(tmp_path, rows, model, **changes):
    spec = {
        "kind": "live", "name": "tiny", "model": str(model), "time": None, "seeds": 1,
        "settings": QUICK, "tasks": {"rows": {"data.path": str(rows)}},
        "arms": {"full": {"search.strategy": "transfer"},
                 "rule": {"search.max_trials": 2, "training.learning_rate": "rule"},
                 "none": {"search.strategy": "quick-tune", "search.experience": "none"}},
        "judged": {"rule": False}, **changes,
    }  # fmt: skip
    path = tmp_path / "live.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_fits_are_compared_once_and_a_failure_stays(tmp_path, ground, monkeypatch):  # noqa: F811
    monkeypatch.setattr(foretune.fit.job, "LocalExecutor", InlineExecutor)
    monkeypatch.setenv("FORETUNE_STORE", untouched := str(tmp_path / "untouched.sqlite"))
    said = []
    path = _written(tmp_path, ground.rows, ground.llama)
    summary = live.run(path, tmp_path / "out", on_event=lambda kind, payload: said.append(payload["line"]))
    lines = {line["arm"]: line for line in read_lines(tmp_path / "out" / "results.jsonl")}
    assert os.environ["FORETUNE_STORE"] == untouched
    assert "earlier runs" in lines["none"]["error"] and summary["failed"]  # quick-tune without experience
    assert {"base", "winner", "default"} <= set(lines["full"]["systems"])
    assert lines["full"]["systems"]["base"] == lines["rule"]["systems"]["base"]  # the same test rows
    rate = live._rule_rate({**QUICK, "model.source": str(ground.llama), "data.path": str(ground.rows)})
    assert lines["rule"]["chosen"]["learning_rate"] == pytest.approx(rate)
    assert {"full", "rule", "zero-shot", "default LoRA"} <= set(summary["means"])
    assert len(list((tmp_path / "out" / "stores").glob("*.sqlite"))) >= 2

    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    monkeypatch.setattr(live, "start", None)  # nothing is started again
    again = live.run(path, tmp_path / "out", on_event=lambda kind, payload: None)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before and again == summary


def _line(arm, seed, winner, base=0.5, *, verdict="no evidence", direction="higher"):
    systems = {"base": {"m": base}, "winner": {"m": winner}, "default": {"m": base}, "examples": {"m": base}}
    return {"task": "t", "arm": arm, "seed": seed, "metric": "m", "direction": direction, "systems": systems,
            "verdict": verdict, "used_s": 60.0}  # fmt: skip


def test_fits_of_an_arm_that_was_taken_out_are_in_no_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_fitted", lambda spec, cell, *_: {**_line(cell.arm, cell.seed, 0.7), "said": ""})
    arms = {"full": {}, "rule": {"search.max_trials": 2}}
    for listed in (arms, {"full": arms["full"]}):
        path = _written(tmp_path, "rows.jsonl", "model", arms=listed, judged={}, seeds=2)
        summary = live.run(path, tmp_path / "out", on_event=lambda kind, payload: None)
    assert summary["fits"] == 2 and "rule" not in summary["means"]


def test_pairs_are_of_one_seed_and_errors_count_downwards():
    lines = [_line("full", s, 0.7 + 0.01 * s) for s in range(5)] + [
        _line("other", s, 0.6 + 0.012 * s) for s in range(5)
    ]
    summary = summarised(lines, ["full", "other"], {}, "done")
    difference = summary["differences"]["other"]
    assert difference["pairs"] == 5 and difference["losses"] == 5 and difference["verdict"] == "worse"
    assert set(FREE) <= set(summary["means"])
    errors = [{**line, "direction": "lower"} for line in lines]
    assert summarised(errors, ["full", "other"], {}, "done")["differences"]["other"]["wins"] == 5
    assert "| other |" in markdown("n", "", summary)


def test_a_model_below_the_base_counts_and_is_unmarked_only_where_nothing_judges_it():
    lines = [_line("full", 0, 0.4), _line("full", 1, 0.9, verdict="better"), _line("fixed", 0, 0.4)]
    found = summarised(lines, ["full", "fixed"], {"fixed": False}, "done")["worse_than_base"]
    assert found["full"] == {"fits": 2, "worse": 1, "unmarked": 0}
    assert found["fixed"] == {"fits": 1, "worse": 1, "unmarked": 1}


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("search:live")])
def test_shipped_comparisons_hold(name):
    spec = live.read_spec(name)
    for cell in live.cells(spec):
        options = {k: v for k, v in live._options(spec, cell).items() if v != live.RULE}
        assert live.request_of(options).settings().data.path


def test_a_task_without_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="names no data"):
        live.read_spec(_written(tmp_path, "x", "y", tasks={"t": {"data.format": "x"}}))


def test_a_mistake_is_told_with_its_line(tmp_path):
    with pytest.raises(UsageError, match=r"live\.yaml:[0-9:]+ seeds: .*greater than or equal to 1"):
        live.read_spec(_written(tmp_path, "x", "y", seeds=0))
