"""Calls that cannot work: one paragraph, the documented exit code, a remedy, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import ForetuneError, OutputError
from foretune.files import FolderLock

from .. import tiny
from ..whole_fits import SETTINGS, Ground


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    """Exit code and error text of ``foretune fit``, as `main` prints it."""
    from foretune.cli import main

    before = sys.argv
    sys.argv = ["foretune", "fit", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as leaving:
            main.main()
    finally:
        sys.argv = before
    return int(leaving.value.code or 0), capsys.readouterr().err


CASES: dict[str, tuple[int, str, Callable[[Ground, Path], list[Any]]]] = {
    "missing file": (3, "nothing.jsonl", lambda g, t: [t / "nothing.jsonl", "--model", g.llama]),
    "empty file": (3, "empty.jsonl", lambda g, t: [_file(t / "empty.jsonl", ""), "--model", g.llama]),
    "a folder of nothing": (3, "void", lambda g, t: [_folder(t / "void"), "--model", g.llama]),
    "rows without answers": (
        3, "", lambda g, t: [_file(t / "rows.jsonl", '{"question": "Why?"}\n' * 9), "--model", g.llama],
    ),
    "no such column": (3, "reply", lambda g, t: [g.rows, "--model", g.llama, "--answer-column", "reply"]),
    "one row": (3, "", lambda g, t: [tiny.write_rows(t / "one.jsonl", tiny.questions(1)), "--model", g.llama]),
    "a damaged row": (3, "bad.jsonl:2", lambda g, t: [_file(t / "bad.jsonl", _damaged()), "--model", g.llama]),
    "unknown model": (4, "no-such-model", lambda g, t: [g.rows, "--model", "no-such-model"]),
    "model without tokenizer": (
        4, "tokenizer", lambda g, t: [g.rows, "--model", tiny.llama(t / "bare", with_tokenizer=False)],
    ),
    "model without weights": (4, "", lambda g, t: [g.rows, "--model", _without(g, t, "model.safetensors")]),
    "model with damaged weights": (4, "", lambda g, t: [g.rows, "--model", _cut(g, t, "model.safetensors")]),
    "a damaged configuration": (4, "config.json", lambda g, t: [g.rows, "--model", _cut(g, t, "config.json")]),
    "no time": (5, "", lambda g, t: [g.rows, "--model", g.llama, "--time", "0s"]),
    "no trials": (5, "", lambda g, t: [g.rows, "--model", g.llama, "--trials", "0"]),
    "two budgets": (2, "", lambda g, t: [g.rows, "--model", g.llama, "--trials", "2", "--steps", "9"]),
    "a negative budget": (2, "", lambda g, t: [g.rows, "--model", g.llama, "--time", "-5m"]),
    "an unknown setting": (2, "training.lora.rank", lambda g, t: [g.rows, "--set", "training.lora.rnk=8"]),
    "an impossible value": (2, "lora.rank", lambda g, t: [g.rows, "--set", "training.lora.rank=-1"]),
    "an unknown metric": (2, "blue", lambda g, t: [g.rows, "--model", g.llama, "--metric", "blue"]),
    "a missing plugin": (2, "plugin.py", lambda g, t: [g.rows, "--model", g.llama, "--plugin", t / "plugin.py"]),
    "no data": (2, "fit DATA", lambda g, t: []),
    "a changed setting on resume": (2, "data.metric", lambda g, t: ["--resume", t / "run", "--metric", "loss"]),
    "nothing to resume": (6, "no run was begun", lambda g, t: ["--resume", t / "empty"]),
    "other files": (
        6, "thesis.tex", lambda g, t: [g.rows, "--model", g.llama, "--output", _file(t / "o/thesis.tex", "x").parent],
    ),
    "output is a file": (6, "not a folder", lambda g, t: [g.rows, "--model", g.llama, "--output", _file(t / "f", "x")]),
}  # fmt: skip


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _damaged() -> str:
    lines = [json.dumps(row) for row in tiny.questions(30)]
    lines[1] = lines[1][:20]
    return "\n".join(lines) + "\n"


def _without(ground: Ground, folder: Path, name: str) -> Path:
    shutil.copytree(ground.llama, folder / "model")
    (folder / "model" / name).unlink()
    return folder / "model"


def _cut(ground: Ground, folder: Path, name: str) -> Path:
    shutil.copytree(ground.llama, folder / "model")
    path = folder / "model" / name
    os.truncate(path, path.stat().st_size // 2)
    return folder / "model"


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_refused_in_one_paragraph(
    case: str, ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ..inline import InlineExecutor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foretune.fit.job.LocalExecutor", InlineExecutor)
    code, words, build = CASES[case]
    arguments = build(ground, tmp_path)
    said = (
        ["--output", tmp_path / "out"]
        if arguments and "--output" not in arguments and "--resume" not in arguments
        else []
    )
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    found, text = refused(capsys, *arguments, *said)
    assert found == code, text
    assert text.startswith("foretune: ") and "\n\n" not in text and "Traceback" not in text, text
    assert words in text and len(text) > len("foretune: ") + 20, text
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert not left, "something was written before the refusal"


def test_a_folder_in_use_is_refused_and_the_user_of_it_goes_on(ground: Ground, tmp_path: Path) -> None:
    """Two processes: the second is told so at once and touches nothing of the first's."""
    folder = tmp_path / "run"
    with FolderLock(folder):
        unfinished = _file(folder / ".result.json.abc.part", "half")
        script = (
            "import foretune, sys\n"
            "from foretune.errors import ForetuneError\n"
            "try:\n    foretune.fit(sys.argv[1], model=sys.argv[2], output=sys.argv[3], options={'budget.steps': 12})\n"
            "except ForetuneError as error:\n    print(error.paragraph()); sys.exit(error.exit_code)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(ground.rows), str(ground.llama), str(folder)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 6 and "another Foretune process" in done.stdout, done.stderr
        assert unfinished.read_text() == "half" and not (folder / "request.json").exists()


def test_another_request_in_a_begun_folder_is_refused(
    finished: Any, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "result.json").unlink()
    with pytest.raises(OutputError, match="another run was begun") as raised:
        fast_fit(output=folder, options={"search.seed": 5})
    assert "--resume" in raised.value.remedy


def test_a_folder_that_cannot_be_written(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, because root may write anywhere."""
    import tempfile

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr("foretune.execution.calibration.write_json", lambda *_: None)
    with pytest.raises(ForetuneError, match="cannot be written") as raised:
        foretune.fit(ground.rows, model=str(ground.llama), output=tmp_path / "run", options=dict(SETTINGS))
    assert raised.value.exit_code == 6 and "--output" in raised.value.remedy
