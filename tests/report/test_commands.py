"""``foretune report`` and ``foretune runs``: what they print, what they refuse, and that they stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import OutputError, StoreError
from foretune.report.listing import list_runs
from foretune.report.record import RunRecord, write_record
from foretune.report.wording import verdict

runner = CliRunner()


def test_report_renders_and_prints(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path, record)
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0 and verdict(record) in result.stdout
    assert (tmp_path / "report.html").is_file() and str(tmp_path / "report.html") in result.stdout


def test_report_json_holds_the_record(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path, record)
    value = json.loads(runner.invoke(app, ["report", str(tmp_path), "--json"]).stdout)
    assert value["outcome"] == "better" and RunRecord.from_json(value["record"]) == record


def test_report_of_no_run_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert isinstance(result.exception, StoreError) and not (tmp_path / "report.html").exists()


def test_runs_lists_latest_first_and_damaged_last(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "old", replace(record, id="old", finished="2026-01-01T00:00:00+00:00"))
    write_record(tmp_path / "deep" / "new", replace(record, id="new"))
    write_record(tmp_path / "old" / "inner", record)  # inside a run: no run of its own
    write_record(tmp_path / ".hidden", record)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    listed = json.loads(runner.invoke(app, ["runs", str(tmp_path), "--json"]).stdout)
    assert [Path(run["folder"]).name for run in listed] == ["new", "old", "broken"]
    assert listed[0]["seconds"] == 1690.0 and listed[0]["outcome"] == "better" and "JSON" in listed[2]["problem"]
    text = runner.invoke(app, ["runs", str(tmp_path)]).stdout
    assert "28 min 10 s" in text and "unreadable" in text


def test_runs_with_a_hostile_name(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "a", replace(record, data=replace(record.data, name="x\x1b[2Jy\nz")))
    text = runner.invoke(app, ["runs", str(tmp_path)]).stdout
    assert "\x1b" not in text


def test_runs_nowhere(tmp_path: Path) -> None:
    assert "No finished runs" in runner.invoke(app, ["runs", str(tmp_path)]).stdout
    with pytest.raises(OutputError):
        list_runs(tmp_path / "missing")


def test_reading_commands_import_nothing_heavy(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path, record)
    code = (
        "import sys; from foretune.cli.main import app\n"
        "for args in (['report', sys.argv[1]], ['runs', sys.argv[1]]):\n"
        "    app(args, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
