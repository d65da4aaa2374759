"""``foretune data check`` as a user runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import DataError

RUNNER = CliRunner()


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.jsonl"
    draw = random.Random(1)
    words = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge"]
    rows = [{"text": f"the {' '.join(draw.sample(words, 6))} of it", "label": "ab"[n % 4 == 0]} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, ["data", "check", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_plain_lines_when_piped(reviews: Path) -> None:
    output = run(reviews)
    assert "data: data: 120 rows, text-label, classification" in output
    assert "languages: en 100 %" in output
    assert "splits: validation: 12 rows, taken from training" in output
    assert "12 validation rows detect a difference of" in output
    assert "labels: b: " in output and "\x1b[" not in output


def test_json_is_complete(reviews: Path, tmp_path: Path) -> None:
    reviews.write_text(reviews.read_text() + "{broken\n")
    aside = tmp_path / "aside.jsonl"
    value = json.loads(run(reviews, "--json", "--on-bad-row", "quarantine", "--quarantine", aside))
    source = value["sources"]["data"]
    assert source["rows_kept"] + source["rows_quarantined"] == source["rows_read"] == 121
    assert source["problems"][0]["line"] == 121 and aside.is_file()
    assert value["profile"]["rows"] == value["splits"]["rows"] and sum(value["splits"]["rows"].values()) == 120
    assert set(value["splits"]["detectable"]) == {"validation", "test"}


def test_given_files_and_leaks(reviews: Path, tmp_path: Path) -> None:
    lines = reviews.read_text().splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text("".join(lines[:20]))
    output = run(reviews, "--test", tmp_path / "test.jsonl")
    assert "splits: test: 20 rows, given" in output and "leaks: 20 train in test" in output
    assert "splits: train: 90 rows" in output


def test_columns_and_task(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "frage,antwort,thema\n" + "".join(f"Was ist Nummer {n}?,Es ist {n}.,t{n % 12}\n" for n in range(60))
    )
    with pytest.raises(DataError, match=r"columns are: frage, antwort, thema"):
        run(path)
    output = run(path, "--prompt-column", "frage", "--answer-column", "antwort", "--group-column", "thema")
    assert "60 rows, prompt-completion, generation" in output


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"word{n} here", "label": "\x1b[31mred" if n % 2 else "b"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = run(path)
    assert "\x1b" not in output and "\\x1b[31mred" in output


def test_errors_are_one_paragraph_and_exit_code_3(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\n')
    command = [sys.executable, "-m", "foretune.cli.main", "data", "check"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout == ""
    assert f"{path}:2: there is no 'completion'" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command, str(tmp_path / "none.jsonl")], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "does not exist" in done.stderr


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, foretune.cli.main; "
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
