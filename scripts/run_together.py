"""Several studies and collections at once on one machine for so many seconds, then one archive of what travels.

    python scripts/run_together.py WORK --archive out.tar.gz --seconds 450 --workers 20 \\
        study=methods=6 study=selection=5 collect=causal=4 …

For a machine that is rented by the minute. JOBs are started in their order while their workers fit into ``--workers``,
each in a folder of its own under WORK with a store of its own. At the end all are told to stop, and what a repository
would keep of them (no rows of data, no weights) goes into the archive with their logs and stores. A folder that was
begun elsewhere goes on. Nothing is lost by stopping: a study takes its finished runs up again, a collection those in
its store.

    python scripts/run_together.py WORK --prepare study=methods collect=causal

reads and splits the rows of every task beforehand, so that the machine itself needs neither network nor minutes for it.
Where it will have a GPU, let a script called ``nvidia-smi`` that prints its line stand first in PATH while preparing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from foretune.collect.run import LIST
from foretune.collect.task_list import load_list
from foretune.experience.store import Store
from foretune.files import write_json
from foretune.fit.folder import RunFolder
from foretune.study.folder import StudyFolder
from foretune.study.grid_file import find_grid, load_grid
from foretune.study.prepared import prepared_task

PATIENCE_S = 15.0
"""How long jobs may take to stop"""
LEFT_BEHIND = {"answers", "before", "trials", "rates-trials", "blocks"}
HEAVY = {".safetensors", ".npy", ".bin", ".part"}


@dataclass
class Job:
    """One study or collection."""

    kind: str
    what: str
    workers: int
    work: Path
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, text: str, work: Path) -> Job:
        """From ``kind=what=workers``."""
        kind, what, *rest = text.split("=")
        if kind not in ("study", "collect") or len(rest) > 1:
            raise SystemExit(f"{text}: a job is study=NAME=WORKERS or collect=NAME=WORKERS")
        return cls(kind, what, int(rest[0]) if rest else 1, work)

    @property
    def name(self) -> str:
        """Of its folder."""
        return (Path(self.what).stem if self.what.endswith(".yaml") else self.what).replace(":", "-")

    @property
    def folder(self) -> Path:
        """Its output."""
        return self.work / self.name

    @property
    def files(self) -> tuple[Path, Path]:
        """Its log and its store."""
        return self.work / f"{self.name}.log", self.work / f"{self.name}.sqlite"

    def start(self) -> None:
        """Begin, or go on."""
        log, store = self.files
        command = ["study", "run"] if self.kind == "study" else ["experience", "collect"]
        options = ["--output", str(self.folder), "--workers", str(self.workers)]
        environment = {**os.environ, "FORETUNE_STORE": str(store), "OMP_NUM_THREADS": "1"}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foretune", *command, self.what, *options],
                env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def done(self) -> str:
        """What it has so far, in short."""
        if self.kind == "study":
            counts = [_lines(self.folder / f"{name}.jsonl") for name in ("rates", "selections", "results")]
            return "{} swept, {} ranked, {} run".format(*counts)
        if not self.files[1].exists():
            return "nothing"
        with Store(self.files[1]) as store:
            return str(dict(Counter(row.status for row in store.runs())))

    def prepare(self) -> None:
        """Read and split its tasks."""
        if self.kind == "collect":
            listed = load_list(self.what)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / LIST, listed.model_dump(mode="json"))
            grid = listed.grid()
            (model,) = grid.model
            for task in listed.tasks:
                prepared_task(grid, model, task, RunFolder(self.folder / "tasks" / task).root, _say)
            return
        grid, folder = load_grid(self.what), StudyFolder(self.folder)
        text = find_grid(self.what).read_text(encoding="utf-8-sig")
        folder.begin(grid, text, datetime.now(UTC).isoformat(timespec="seconds"))
        for model in grid.model if grid.before is None else ():
            for task in grid.tasks:
                prepared_task(grid, model, task, folder.task(model, task).root, _say)


def _say(line: str) -> None:
    print(f"[{time.monotonic() - BEGUN:7.1f} s] {line}", flush=True)


BEGUN = time.monotonic()


def _lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def run(jobs: Sequence[Job], seconds: float, workers: int) -> None:
    """Start jobs while there is room and time, then stop what is left."""
    waiting, said = list(jobs), 0.0
    while time.monotonic() - BEGUN < seconds and (waiting or any(job.running() for job in jobs)):
        while waiting and sum(job.workers for job in jobs if job.running()) + waiting[0].workers <= workers:
            job = waiting.pop(0)
            job.start()
            _say(f"{job.name}: started with {job.workers} workers")
        if time.monotonic() - said > PATIENCE_S:
            said = time.monotonic()
            _say("; ".join(f"{job.name}: {job.done()}" for job in jobs if job.process is not None))
        time.sleep(0.5)
    left = [job for job in jobs if job.running()]
    for job in left:
        assert job.process is not None
        job.process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE_S
    while any(job.running() for job in left) and time.monotonic() < end:
        time.sleep(0.2)
    for job in left:
        if job.process is not None and job.process.poll() is None:
            job.process.kill()  # its workers leave when their input ends
    for job in jobs:
        code = None if job.process is None else job.process.poll()
        _say(f"{job.name}: exit code {code}, {job.done()}")


def pack(jobs: Sequence[Job], archive: Path) -> None:
    """Write what travels."""
    sizes: Counter[str] = Counter()
    with tarfile.open(archive, "w:gz", compresslevel=4) as tar:
        for job in jobs:
            log, store = job.files
            if store.exists():
                Store(store).close()  # which folds the log of a killed writer into the file
            kept = (path for path in sorted(job.folder.rglob("*")) if path.is_file() and travels(path, job.folder))
            for path in (*kept, *(file for file in (log, store) if file.exists())):
                tar.add(path, arcname=str(path.relative_to(job.work)))
                sizes[job.name] += path.stat().st_size
    _say(f"{archive}: {archive.stat().st_size:,} bytes of {dict(sizes)}")


def travels(path: Path, folder: Path) -> bool:
    """Whether a file of a job's folder is worth taking along: everything but rows, weights, scores and locks."""
    parts = path.relative_to(folder).parts
    rows = "task" in parts and path.suffix == ".jsonl"
    return not (rows or LEFT_BEHIND & set(parts) or path.suffix in HEAVY or path.name in (".lock", ".claim"))


def main() -> None:
    """Prepare, or run and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="study=NAME=WORKERS or collect=NAME=WORKERS")
    parser.add_argument("--archive", type=Path, help="what to write at the end, like out.tar.gz")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prepare", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    jobs = [Job.of(text, arguments.work) for text in arguments.jobs]
    if arguments.prepare:
        for job in jobs:
            _say(f"{job.name}: preparing")
            job.prepare()
        return
    if arguments.archive is None:
        parser.error("say with --archive where what travels goes")
    run(jobs, arguments.seconds, arguments.workers)
    pack(jobs, arguments.archive)


if __name__ == "__main__":
    main()
