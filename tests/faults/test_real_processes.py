"""The command itself, with real worker processes: killed, stopped by SIGTERM, resumed; the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretune.files import read_json, read_lines

from ..whole_fits import SETTINGS, Ground
from .test_p1_killed import check_no_partial_files, outcome

pytestmark = pytest.mark.alone

PATIENCE_S = 180.0


def begin(*arguments: Any) -> subprocess.Popen[str]:
    """``foretune`` on one processor, so that it has as many threads as the fits in this process."""
    processor = min(os.sched_getaffinity(0))
    return subprocess.Popen(
        [sys.executable, "-m", "foretune.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    return [
        int(pid)
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def tells(folder: Path) -> int:
    return sum(line["event"] == "tell" for line in read_lines(folder / "journal.jsonl"))


@pytest.mark.slow
def test_killed_then_stopped_then_resumed(finished: Any, ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    first = begin("fit", ground.rows, "--model", ground.llama, "--output", folder, *sets)
    until(lambda: tells(folder) >= 2, first)
    workers = children(first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert workers
    end = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they leave by themselves: no orphan goes on
        assert time.monotonic() < end
        time.sleep(0.02)
    check_no_partial_files(folder)

    told = tells(folder)
    second = begin("fit", "--resume", folder)
    until(lambda: tells(folder) > told, second)
    second.send_signal(signal.SIGTERM)
    _, error = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 130
    assert f"foretune fit --resume {folder}" in error and "nothing is lost" in error
    check_no_partial_files(folder)

    last = begin("fit", "--resume", folder)
    out, error = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, error
    assert "untouched base model" in out
    resumed, undisturbed = outcome(folder), outcome(finished.folder)
    del resumed["settings"], undisturbed["settings"]  # they say --set here and options there
    assert resumed == undisturbed
    assert read_json(folder / "export.json")["verified"] is True
