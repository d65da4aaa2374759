"""`scripts/run_together.py`: what it prepares, runs and takes along."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.files import read_lines
from tests.structure.source import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "run_together.py"


@pytest.mark.slow
def test_rows_are_prepared_runs_are_made_and_neither_rows_nor_weights_travel(
    write_grid: Callable[..., Path], places: Path
) -> None:
    grid, work, archive = write_grid(tasks={"near": "near.jsonl"}), places / "work", places / "out.tar.gz"

    def together(*options: str) -> str:
        command = [sys.executable, str(SCRIPT), str(work), f"study={grid}=1", *options]
        done = subprocess.run(command, cwd=grid.parent, env=dict(os.environ), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    together("--prepare")
    assert list((work / grid.stem / "tasks").rglob("*.jsonl")), "rows lie there for a machine without a network"
    said = together("--archive", str(archive), "--seconds", "240", "--workers", "2")
    assert f"{grid.stem}: exit code 0" in said
    lines = read_lines(work / grid.stem / "results.jsonl")
    with tarfile.open(archive) as tar:
        tar.extractall(places / "unpacked", filter="data")
    taken = places / "unpacked" / grid.stem
    assert read_lines(taken / "results.jsonl") == lines and lines
    names = [path.name for path in (places / "unpacked").rglob("*") if path.is_file()]
    assert f"{grid.stem}.sqlite" in names and f"{grid.stem}.log" in names
    assert not [name for name in names if name.endswith((".safetensors", ".npy")) or name in ("train.jsonl",)]
    assert not list((taken / "tasks").rglob("task/*.jsonl"))


def test_a_job_that_is_no_job_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "work", "fit=facts", "--prepare"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "study=NAME=WORKERS or collect=NAME=WORKERS" in done.stderr
