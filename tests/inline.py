"""An executor that runs jobs in a thread of this process: a whole fit without the seconds a worker takes to start.

The real `foretune.execution.worker.Worker` carries the jobs out, and every message goes through JSON as on the pipe;
what is left out is the process boundary, which `tests/faults/test_worker_processes.py` is about.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foretune.execution.types import Event, Job
from foretune.execution.worker import Worker, job_from_json


class InlineExecutor:
    """One worker in a thread."""

    worker: Worker | None = None

    def __init__(
        self, log_folder: Path, *, workers: int = 1, plugins: Sequence[Path] = (), command: Any = None
    ) -> None:
        self._events: queue.Queue[str] = queue.Queue()
        self._worker = Worker(self._events.put)
        self._threads: list[threading.Thread] = []

    def capacity(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        message = json.dumps({**asdict(job), "task": job.task.to_json(), "payload": dict(job.payload)})
        thread = threading.Thread(
            target=self._worker.carry_out, args=(job_from_json(json.loads(message)),), daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def poll(self, timeout_s: float) -> list[Event]:
        try:
            found = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._events.empty():
            found.append(self._events.get())
        messages = [json.loads(line) for line in found]
        return [Event(message["job"], message["kind"], message["payload"]) for message in messages]

    def stop(self, job_id: str) -> None:
        self._worker.stop(job_id)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(timeout=60)

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
