"""What only reads answers at once: help, lists, plans and reports load no deep-learning library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foretune.report.record import RunRecord, write_record

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "scipy", "pandas", "numba",
         "bitsandbytes")  # fmt: skip
ALLOWED = {"plan": {"sklearn", "scipy", "pandas"}}
"""A plan grows trees over earlier runs: a second of the five that it may take. Without experience it loads none."""
SCRIPT = """
import json, sys
from foretune.cli.main import main
sys.argv[0] = "foretune"
code = 0
try:
    main()
except SystemExit as left:
    code = left.code or 0
sys.stderr.write("\\n" + json.dumps([code, [name for name in {heavy!r} if name in sys.modules]]))
"""


def _run(folder: Path, *arguments: str) -> tuple[int, list[str], str]:
    """(exit code, heavy modules that were loaded, what was printed) of a command in a process of its own."""
    own = {"FORETUNE_CACHE": str(folder / "cache"), "FORETUNE_STORE": str(folder / "store.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{heavy!r}", repr(HEAVY)), *arguments],
        cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    return code, heavy, done.stdout


@pytest.fixture
def run_folder(tmp_path: Path, record: RunRecord) -> Path:
    """A folder of runs with one finished run in it."""
    folder = tmp_path / "finished"
    folder.mkdir()
    write_record(folder, record)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("fit", "--help"),
        ("runs", "."),
        ("runs", ".", "--json"),
        ("report", "finished"),
        ("report", "finished", "--json"),
        ("plan", "facts"),
        ("plan", "facts", "--time", "1h", "--json"),
        ("models", "list"),
        ("data", "list"),
        ("select", "--list"),
        ("experience", "list"),
        ("experience", "stats", "--json"),
    ],
    ids=" ".join,
)
def test_reading_commands_are_light(command: tuple[str, ...], tmp_path: Path, run_folder: Path) -> None:
    code, heavy, shown = _run(tmp_path, *command)
    assert code == 0
    assert set(heavy) <= ALLOWED.get(command[0], set())
    assert shown.strip()
    if "--json" in command:
        json.loads(shown)


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foretune", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    from foretune import __version__

    assert done.stdout == f"foretune {__version__}\n"


def test_the_check_sees_a_heavy_import(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import scipy\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{heavy!r}", repr(HEAVY)), "--version"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "scipy" in json.loads(done.stderr.splitlines()[-1])[1]
