from __future__ import annotations

import json
import subprocess
import sys

import pytest
from test_store import filled
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.experience.past import bundled

run = CliRunner().invoke


@pytest.fixture
def place(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    monkeypatch.setenv("FORETUNE_STORE", str(path))
    return path


def test_an_empty_place_is_said_and_nothing_is_made(place):
    assert "No runs" in run(app, ["experience", "list"]).output
    assert json.loads(run(app, ["experience", "list", "--json"]).output) == []
    stats = json.loads(run(app, ["experience", "stats", "--json"]).output)
    assert stats["rows"] == {} and sum(stats["shipped"].values()) == len(bundled())
    assert not place.exists()


def test_list_and_stats(place):
    filled(place).close()
    listed = json.loads(run(app, ["experience", "list", "--json"]).output)
    assert [(row["id"], row["step"], row["validation_loss"]) for row in listed] == [("r0", 100, 1.0), ("r1", 100, 1.0)]
    assert len(json.loads(run(app, ["experience", "list", "--json", "--limit", "1"]).output)) == 1
    assert json.loads(run(app, ["experience", "list", "--json", "--status", "oom"]).output) == []
    text = run(app, ["experience", "list"]).output
    assert "2 of 2 runs" in text and "100/100" in text and "1.0000 ± 0.1000" in text
    stats = json.loads(run(app, ["experience", "stats", "--json"]).output)
    assert stats["rows"]["run"] == 2 and stats["sound"] and stats["machines"]["h1"][0]["tokens_per_s"] == 400.0
    assert "sound" in run(app, ["experience", "stats"]).output


def test_export_and_set_aside(place, tmp_path):
    filled(place).close()
    answer = run(app, ["experience", "export", str(tmp_path / "out"), "--json"])
    assert json.loads(answer.output)["rows"]["run"] == 2
    moved = json.loads(run(app, ["experience", "set-aside", "--json"]).output)
    assert not place.exists() and moved["to"].endswith("aside-1")


def test_a_damaged_store_ends_with_one_paragraph_and_its_exit_code(place):
    place.write_bytes(b"x" * 5000)
    for command in ("list", "stats"):
        done = subprocess.run(
            [sys.executable, "-m", "foretune.cli.main", "experience", command], capture_output=True, text=True
        )
        assert done.returncode == 7
        assert done.stderr.startswith("foretune: ") and "set-aside" in done.stderr and "Traceback" not in done.stderr
