"""A worker process: reads jobs as JSON lines, keeps the base model loaded between them, reports as JSON lines.

Whatever libraries print goes to stderr, which the executor keeps as a log; the protocol has stdout to itself. When
its overseer dies, standard input ends and the worker leaves at once, so that no orphan writes a checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from foretune.errors import ForetuneError
from foretune.execution.types import Job, TaskSpec
from foretune.plugins import load as load_plugins

STEP_REPORT_S = 0.25
"""Step and beat events at most this often: enough for a live display, little for the pipe."""


TOGETHER = frozenset({"train", "probe"})
"""Jobs that the processes of a group carry out together; all others are the first one's."""


class Worker:
    """One process's state: the bench of the current task, and the flags of the current job."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._bench: Any = None
        self._task: TaskSpec | None = None
        self._stop = threading.Event()
        self._deadline: float | None = None
        self._job = ""
        self._last_report = 0.0
        self._follows = int(os.environ.get("RANK", "0")) > 0

    def stop(self, job: str) -> None:
        """Called by the reading thread: the job is to stop at its next step."""
        if job == self._job:
            self._stop.set()

    def stopped(self) -> bool:
        """Whether the current job is to stop: by order or by the clock."""
        return self._stop.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)

    def report(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Send an event of the current job; steps and beats are thinned out."""
        now = time.monotonic()
        if kind in ("step", "beat"):
            if now - self._last_report < STEP_REPORT_S:
                return
            self._last_report = now
        self._write(json.dumps({"job": self._job, "kind": kind, "payload": dict(payload)}, allow_nan=False))

    def carry_out(self, job: Job) -> None:
        """Run one job; every way it can end is an event."""
        from foretune.execution.jobs import HANDLERS

        self._job = job.id
        self._stop.clear()
        self._deadline = None if job.limit_s is None else time.monotonic() + job.limit_s
        try:
            self.report("started", {"pid": os.getpid()})
            if self._follows and job.kind not in TOGETHER:
                self._bench_for(job.task)  # which makes it a member of the group
                return
            self.report("result", HANDLERS[job.kind](self._bench_for(job.task), job.payload, self.report, self.stopped))
        except ForetuneError as error:
            facts = {"what": error.what, "remedy": error.remedy, "exit_code": error.exit_code}
            place = None if error.place is None else str(error.place)
            self.report("failed", {"status": "refused", "detail": error.paragraph(), "place": place, **facts})
        except MemoryError:
            self.report("failed", {"status": "oom", "detail": "the process ran out of memory"})
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            status = "oom" if type(error).__name__ in ("OutOfMemory", "OutOfMemoryError") else "crashed"
            self.report("failed", {"status": status, "detail": f"{type(error).__name__}: {error}"})

    def _bench_for(self, task: TaskSpec) -> Any:
        if self._bench is None or self._bench.unloaded or task != self._task:
            from foretune.execution.bench import Bench

            fresh = self._bench is None or self._bench.unloaded
            self._bench = Bench(task) if fresh else self._bench.for_task(task)
            self._task = task
        return self._bench


def job_from_json(value: Mapping[str, Any]) -> Job:
    """The inverse of what `execution.local` sends."""
    return Job(value["id"], value["kind"], TaskSpec.from_json(value["task"]), value["payload"], value["limit_s"])


def main() -> None:
    """Serve jobs until standard input ends."""
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries go to the log
    lock = threading.Lock()

    def write(line: str) -> None:
        with lock:
            protocol.write(line + "\n")
            protocol.flush()

    worker = Worker(write)
    jobs: list[Job] = []
    arrived = threading.Condition()

    def read() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "stop" in message:
                worker.stop(message["stop"])
                continue
            with arrived:
                jobs.append(job_from_json(message))
                arrived.notify()
        os._exit(0)

    threads = int(os.environ.get("FORETUNE_THREADS", "0"))
    if threads:
        import torch

        torch.set_num_threads(threads)
    load_plugins(filter(None, os.environ.get("FORETUNE_PLUGINS", "").split(os.pathsep)))
    threading.Thread(target=read, daemon=True).start()
    while True:
        with arrived:
            while not jobs:
                arrived.wait()
            job = jobs.pop(0)
        worker.carry_out(job)


if __name__ == "__main__":
    main()
