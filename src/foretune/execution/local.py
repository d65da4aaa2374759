"""Worker processes on this machine. A worker that dies or hangs costs its one job; a fresh one takes over.

The coordinator never loads a model: it sends jobs to its workers' standard input and reads events from their
standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from foretune.execution.types import Event, Job

START_ALLOWANCE_S = 300.0
"""Silence allowed before a job's first step: imports, model loading, tokenising."""
SILENCE_ALLOWANCE_S = 300.0
"""Silence allowed between events of a running job, before it counts as hung. A step or an evaluation chunk of a model
that fits this machine takes far less."""
CLOSE_ALLOWANCE_S = 3.0
LOG_TAIL_LINES = 5


def worker_command() -> list[str]:
    """How a worker is started."""
    return [sys.executable, "-m", "foretune.execution.worker"]


class _Process:
    """One worker process and the job it has."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, events: queue.Queue[Any]
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.job: Job | None = None
        self.last_sign = time.monotonic()
        self.spoke = False
        self._stderr = log.open("ab")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which stops its workers in order
        )
        threading.Thread(target=self._read, args=(self.process.stdout, events), daemon=True).start()

    def _read(self, stream: IO[str], events: queue.Queue[Any]) -> None:
        for line in stream:
            with contextlib.suppress(json.JSONDecodeError):
                events.put((self, json.loads(line)))
        events.put((self, None))

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line; a dead worker's broken pipe is noticed by the reader."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                self.process.stdin.write(json.dumps(message) + "\n")
                self.process.stdin.flush()

    def kill(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._stderr.close()

    def last_words(self) -> str:
        """The end of its log, for the error message."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return " | ".join(lines[-LOG_TAIL_LINES:])
        return ""


class LocalExecutor:
    """Runs jobs in worker processes on this machine."""

    def __init__(
        self,
        log_folder: Path,
        *,
        workers: int = 1,
        threads: int | None = None,
        plugins: Sequence[Path] = (),
        command: Sequence[str] | None = None,
        silence_allowance_s: float = SILENCE_ALLOWANCE_S,
    ) -> None:
        """``threads`` per worker (default: ``OMP_NUM_THREADS``, else the processors shared out evenly)."""
        self._command = list(command or worker_command())
        self._workers = workers
        self._log_folder = log_folder
        self._silence_s = silence_allowance_s
        cores = len(os.sched_getaffinity(0))
        wished = os.environ.get("OMP_NUM_THREADS", "")
        count = threads or (int(wished) if wished.isdigit() and int(wished) else max(1, cores // workers))
        self._environment = {
            "FORETUNE_THREADS": str(count),
            "OMP_NUM_THREADS": str(count),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONUNBUFFERED": "1",
            "FORETUNE_PLUGINS": os.pathsep.join(str(plugin.resolve()) for plugin in plugins),
        }
        self._events: queue.Queue[Any] = queue.Queue()
        self._waiting: deque[Job] = deque()
        self._processes: list[_Process] = []
        self._started = 0

    def capacity(self) -> int:
        """How many jobs may run at once."""
        return self._workers

    def submit(self, job: Job) -> None:
        """Give the job to a free worker, a new one, or the queue."""
        self._waiting.append(job)
        self._assign()

    def poll(self, timeout_s: float) -> list[Event]:
        """Events since the last call; a dead or silent worker appears as a ``failed`` event of its job."""
        found: list[Event] = []
        end = time.monotonic() + timeout_s
        while True:
            wait = 0.0 if found else max(0.0, min(0.5, end - time.monotonic()))
            try:
                process, message = self._events.get(timeout=wait) if wait else self._events.get_nowait()
            except queue.Empty:
                found += self._silent()
                if found or time.monotonic() >= end:
                    return found
                continue
            found += self._died(process) if message is None else self._said(process, message)

    def stop(self, job_id: str) -> None:
        """Ask a job to stop at its next step."""
        self._waiting = deque(job for job in self._waiting if job.id != job_id)
        for process in self._processes:
            if process.job is not None and process.job.id == job_id:
                process.send({"stop": job_id})

    def close(self) -> None:
        """End all workers; a busy one gets a moment to leave by itself."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                if process.process.stdin is not None:
                    process.process.stdin.close()
        end = time.monotonic() + CLOSE_ALLOWANCE_S
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(timeout=max(0.0, end - time.monotonic()))
            process.kill()
        self._processes.clear()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _assign(self) -> None:
        for process in self._processes:
            if process.job is None and self._waiting:
                self._hand(process, self._waiting.popleft())
        while self._waiting and len(self._processes) < self._workers:
            self._started += 1
            log = self._log_folder / f"worker-{self._started}.log"
            process = _Process(self._command, self._environment, log, self._events)
            self._processes.append(process)
            self._hand(process, self._waiting.popleft())

    def _hand(self, process: _Process, job: Job) -> None:
        process.job = job
        process.spoke = False
        process.last_sign = time.monotonic()
        process.send({**asdict(job), "task": job.task.to_json(), "payload": dict(job.payload)})

    def _said(self, process: _Process, message: Mapping[str, Any]) -> list[Event]:
        process.last_sign = time.monotonic()
        process.spoke = process.spoke or message["kind"] != "started"
        if process.job is None or message["job"] != process.job.id:
            return []
        event = Event(message["job"], message["kind"], message["payload"])
        if event.kind in ("result", "failed"):
            process.job = None
            self._assign()
        return [event]

    def _died(self, process: _Process) -> list[Event]:
        if process not in self._processes:
            return []
        self._processes.remove(process)
        process.kill()
        code = process.process.returncode
        job = process.job
        self._assign()
        if job is None:
            return []
        # The kernel's out-of-memory killer sends SIGKILL; nothing else here does while a job runs.
        status = "oom" if code == -signal.SIGKILL else "crashed"
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return [
            Event(job.id, "failed", {"status": status, "detail": f"the worker died ({how}). {process.last_words()}"})
        ]

    def _silent(self) -> list[Event]:
        events = []
        now = time.monotonic()
        for process in list(self._processes):
            allowance = self._silence_s if process.spoke else max(self._silence_s, START_ALLOWANCE_S)
            if process.job is not None and now - process.last_sign > allowance:
                job = process.job
                self._processes.remove(process)
                process.kill()
                detail = f"no sign of life for {allowance:.0f} s; the worker was ended. {process.last_words()}"
                events.append(Event(job.id, "failed", {"status": "timeout", "detail": detail}))
        if events:
            self._assign()
        return events
