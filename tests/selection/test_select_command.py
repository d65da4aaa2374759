"""``foretune select`` and ``foretune.select``: estimate, rows, manifest, report, going on, bad input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import foretune
from foretune.catalogue.selection import Keep
from foretune.cli.main import app
from foretune.data.example import conversation
from foretune.data.read import read
from foretune.data.write import as_row, write_rows
from foretune.errors import DataError, UsageError
from foretune.report.selection_page import cost_sentence
from foretune.selection.base import Request, SelectionStopped
from foretune.selection.run import select

from .. import tiny
from .conftest import rows

FEWER = ["--context", "96"]


def _select(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["select", *map(str, arguments), *FEWER])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_keeps_rows_and_tells_of_them(ground, tmp_path):
    output = tmp_path / "kept.jsonl"
    arguments = (ground.rows, "--method", "ifd", "--keep", "25%", "--model", ground.llama, "--output", output)
    code, shown = _select(*arguments, "--store", tmp_path / "store")
    assert code == 0
    assert shown.startswith("estimate: ") and "15 of 60 rows kept (25.0 %)" in shown
    kept = output.read_text().splitlines()
    manifest = json.loads((tmp_path / "kept.manifest.json").read_text())
    lines = ground.rows.read_text().splitlines()
    assert kept == [lines[i] for i in manifest["indices"]]  # the user's own lines, best first
    assert manifest["selection"] == "ifd" and manifest["counted"]["blocks_computed"] == 2
    page = (tmp_path / "kept.report.html").read_text()
    for part in ("Against random rows", "Map of the rows", "Kept first", "Dropped, drawn at random", "<svg"):
        assert part in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    again = json.loads(_select(*arguments, "--store", tmp_path / "store", "--json")[1])
    assert again["manifest"]["counted"]["blocks_reused"] == 2
    assert again["portrait"]["kept"] == 15


def test_a_changed_model_shares_no_scores(ground, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ground.llama)
    tokenizer = AutoTokenizer.from_pretrained(ground.llama)
    ask = {"method": "ifd", "budget": 5, "tokenizer": tokenizer, "store": tmp_path, "context_tokens": 96}
    first = foretune.select(rows(20), model=model, **ask)
    assert foretune.select(rows(20), model=model, **ask).manifest["counted"]["blocks_reused"] == 2
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    other = foretune.select(rows(20), model=model, **ask)
    assert other.manifest["counted"]["blocks_computed"] == 2 and "blocks_reused" not in other.manifest["counted"]
    assert first.indices != other.indices or first.scores != other.scores


def test_tokens_as_a_budget_are_not_exceeded(ground):
    chosen = foretune.select(ground.rows, method="longest", budget="60 tokens", model=ground.llama, context_tokens=96)
    assert chosen.manifest["counted"]["answer_tokens"] <= 60
    assert not chosen.nested


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--method", "iffd"), "Did you mean ifd"),
        (("--keep", "130%"), "how much to keep"),
        (("--method", "ifd", "--set", "ifd.ratios=loss"), "Did you mean ifd.ratio"),
        (("--set", "nothing"), "is no selector's setting"),
        (("--target", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_calls_are_refused(ground, arguments, complaint):
    with pytest.raises((UsageError, DataError), match=complaint):
        _select(ground.rows, *arguments)


def test_nothing_that_is_read_is_written_over(tmp_path):
    data, target, previous = (
        tiny.write_rows(tmp_path / name, tiny.questions(12)) for name in ("data.jsonl", "t.jsonl", "p.jsonl")
    )
    before = data.read_text()
    (tmp_path / "link.jsonl").symlink_to(data)
    also = ("--target", target, "--previous", previous, "--output")
    for output in (data, target, previous, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="would replace the"):
            _select(data, "--keep", "5", *also, output)
    with pytest.raises(UsageError, match="would replace the data"):
        _select(tmp_path, "--output", target)
    named = tiny.write_rows(tmp_path / "kept.manifest.json", tiny.questions(12))
    with pytest.raises(UsageError, match="would replace the data"):
        _select(named, "--output", tmp_path / "kept.jsonl")
    for ending in ("csv", "jsonl.gz", "parquet"):
        with pytest.raises(UsageError, match="JSON lines"):
            _select(data, "--output", tmp_path / f"kept.{ending}")
    assert {path.read_text() for path in (data, target, previous, named)} == {before}


def test_a_target_for_another_task_is_refused_with_its_place(ground, tmp_path):
    target = tiny.write_rows(tmp_path / "labels.jsonl", [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(8)])
    with pytest.raises(DataError, match=r"labels\.jsonl: these rows are for classification"):
        foretune.select(ground.rows, method="random", budget=3, target=target)


def test_rows_for_test_are_not_selected(tmp_path):
    data = [{**row, "split": "test" if i % 2 else "train"} for i, row in enumerate(tiny.questions(20))]
    chosen = foretune.select(tiny.write_rows(tmp_path / "split.jsonl", data), method="random", budget=1.0)
    assert len(chosen.indices) == 10


def test_a_stopped_selection_says_how_to_go_on(ground, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise SelectionStopped

    monkeypatch.setattr("foretune.fit.select.run_selection", stop)
    with pytest.raises(foretune.errors.Interrupted, match="same command goes on"):
        _select(ground.rows)


def test_an_estimate_runs_nothing(ground, tmp_path):
    code, shown = _select(ground.rows, "--method", "ifd", "--model", ground.llama, "--estimate", "--json")
    assert code == 0 and json.loads(shown)["tokens"] > 60 * 10
    assert not list(Path.cwd().glob("rows-kept*"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                      {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        {"text": "long enough to be a text", "label": "x"},
        {"text": "a plain text of several words"},
    ],
    ids=["messages", "label", "text"],
)  # fmt: skip
def test_rows_are_written_as_they_are_read(row, tmp_path):
    several = [{**row, "label": "xy"[i % 2]} if "label" in row else row for i in range(4)]
    examples = read(tiny.write_rows(tmp_path / "in.jsonl", several)).examples
    again = read(tiny.write_rows(tmp_path / "out.jsonl", [as_row(example) for example in examples])).examples
    assert [example.id for example in again] == [example.id for example in examples]
    write_rows(tmp_path / "own.jsonl", examples[2:])
    assert (tmp_path / "own.jsonl").read_text().splitlines() == (tmp_path / "in.jsonl").read_text().splitlines()[2:]


def test_rows_that_cannot_be_used_stop_it_or_are_written_aside(ground, tmp_path):
    data = tmp_path / "odd columns.csv"
    lines = [f"{i},why {i}?,{'' if i == 3 else f'because {i}'}" for i in range(12)]
    data.write_text("\n".join(["Nr,Customer says,Reply ", *lines]) + "\n")
    columns = ["--prompt-column", "Customer says", "--answer-column", "Reply"]
    output = tmp_path / "kept.jsonl"
    with pytest.raises(DataError, match="'Reply' is empty"):
        _select(data, "--keep", "5", "--output", output, *columns)
    code, shown = _select(data, "--keep", "5", "--output", output, *columns, "--on-bad-row", "quarantine")
    assert code == 0 and "1 of 12 rows cannot be used" in shown and "5 of 11 rows kept" in shown
    assert len(output.read_text().splitlines()) == 5
    scored = ("--method", "ifd", "--model", ground.llama, "--estimate", "--on-bad-row", "quarantine")
    code, shown = _select(data, *scored, *columns)
    assert code == 0 and shown.startswith("estimate: ")


@pytest.mark.parametrize(("method", "told"), [("random", False), ("ifd", False), ("delift-se", True)])
def test_what_may_be_lost_is_said_of_selectors_that_look_at_earlier_rows(method, told):
    said = cost_sentence({"selection": method, "previous_rows": 5, "seconds": 2.0, "counted": {}})
    assert ("may forget it" in said) is told


def test_what_is_written_is_what_was_read(tmp_path):
    """Tools and calls of a table, system turns beside labels, and lines behind a name that hides a gzip stream."""
    call = {"name": "look_up", "arguments": '{"city": "Bern", "days": null}'}
    chat = [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "Yes."},
    ]
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    judged = {"system": "Judge.", "text": "t", "text_pair": "u", "label": "x"}
    for number, row in enumerate([{"messages": chat, "tools": tools}, judged, {**judged, "text_pair": None}]):
        named = {name: value for name, value in row.items() if value is not None}
        (tmp_path / "in.json").write_text(json.dumps([named, named]))
        examples = read(tmp_path / "in.json").examples
        write_rows(tmp_path / f"{number}.jsonl", examples)
        assert read(tmp_path / f"{number}.jsonl").examples == examples
        (tmp_path / "packed.jsonl").write_bytes(gzip.compress(json.dumps(named).encode() + b"\n"))
        packed = read(tmp_path / "packed.jsonl").examples
        write_rows(tmp_path / "unpacked.jsonl", packed)
        assert read(tmp_path / "unpacked.jsonl").examples == packed == examples[:1]


def test_a_stage_leaves_its_share_also_within_a_budget_of_tokens():
    pool = [conversation(f"q{i}", "word " * (1 + i)) for i in range(20)]
    chosen = select(Request(pool, 20), "longest:50%+random", Keep("tokens", 100))
    assert set(chosen.indices) <= set(range(10, 20)) and 0 < chosen.manifest["answer_tokens"] <= 100
