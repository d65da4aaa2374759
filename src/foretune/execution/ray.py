"""Workers on a Ray cluster (the ``ray`` extra): one actor a worker, each with the `Worker` that local processes run.

An actor keeps the base model loaded through its jobs. One that dies or falls silent costs its one job, and a fresh one
takes over, wherever the cluster has room. Jobs and events pass as JSON; Ray's own transport carries the strings.

The folders of a run (tasks, checkpoints, answers) and the model must lie where all nodes see them: a shared file
system, or a cluster of one machine. Nothing is copied.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import UsageError
from foretune.execution.local import SILENCE_ALLOWANCE_S, START_ALLOWANCE_S
from foretune.execution.types import Event, Job
from foretune.execution.worker import Worker, job_from_json
from foretune.plugins import load as load_plugins

LOCAL = "local"
"""Instead of a cluster's address: a cluster of this machine alone, which ends with the executor."""
CALLS_AT_ONCE = 3
"""Of an actor: the job, an order to stop it, and a question for its events."""
QUESTION_S = 10.0
"""An actor whose training holds the interpreter may answer late; silence is judged by its events."""
PAUSE_S = 0.05


class RemoteWorker:
    """What an actor is: a `Worker` whose events are fetched instead of sent."""

    def __init__(self, threads: int, plugins: Sequence[str]) -> None:
        import torch

        torch.set_num_threads(threads)
        load_plugins(plugins)
        self._events: list[str] = []
        self._lock = threading.Lock()
        self._worker = Worker(self._write)

    def _write(self, line: str) -> None:
        with self._lock:
            self._events.append(line)

    def carry_out(self, message: str) -> None:
        """Run one job to its end."""
        self._worker.carry_out(job_from_json(json.loads(message)))

    def stop(self, job: str) -> None:
        """The job is to stop at its next step."""
        self._worker.stop(job)

    def events(self) -> list[str]:
        """The events since the last call."""
        with self._lock:
            found, self._events = self._events, []
        return found


@dataclass
class _Actor:
    """One actor and the job it has."""

    handle: Any
    job: Job | None = None
    spoke: bool = False
    last_sign: float = field(default_factory=time.monotonic)


class RayExecutor:
    """Runs jobs in actors of a Ray cluster. Raises `UsageError` where Ray is not installed or cannot be reached."""

    def __init__(
        self,
        log_folder: Path,
        *,
        address: str = LOCAL,
        workers: int = 1,
        threads: int = 1,
        plugins: Sequence[Path] = (),
        silence_allowance_s: float = SILENCE_ALLOWANCE_S,
    ) -> None:
        """``address`` as Ray takes it (``auto``, ``ray://host:10001``), or ``local``; every worker gets ``threads``
        processors, and a GPU where the cluster has one for each."""
        self._ray = _connected(address, workers * threads)
        self._ours = address == LOCAL
        gpus = self._ray.cluster_resources().get("GPU", 0)
        self._make = self._ray.remote(
            num_cpus=threads,
            num_gpus=1 if gpus >= workers else 0,
            max_restarts=0,
            max_concurrency=CALLS_AT_ONCE,
        )(RemoteWorker)
        self._arguments = (threads, [str(plugin.resolve()) for plugin in plugins])
        self._workers = workers
        self._silence_s = silence_allowance_s
        self._waiting: deque[Job] = deque()
        self._actors: list[_Actor] = []

    def capacity(self) -> int:
        """How many jobs may run at once."""
        return self._workers

    def submit(self, job: Job) -> None:
        """Give the job to a free actor, a new one, or the queue."""
        self._waiting.append(job)
        self._assign()

    def poll(self, timeout_s: float) -> list[Event]:
        """Events since the last call; a dead or silent actor appears as a ``failed`` event of its job."""
        end = time.monotonic() + timeout_s
        while True:
            found = [event for actor in list(self._actors) if actor.job is not None for event in self._heard(actor)]
            if found or time.monotonic() >= end:
                return found
            time.sleep(PAUSE_S)

    def stop(self, job_id: str) -> None:
        """Ask a job to stop at its next step."""
        self._waiting = deque(job for job in self._waiting if job.id != job_id)
        for actor in self._actors:
            if actor.job is not None and actor.job.id == job_id:
                actor.handle.stop.remote(job_id)

    def close(self) -> None:
        """End all actors, and the cluster where it is ours alone."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()
        if self._ours:
            self._ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _assign(self) -> None:
        for actor in self._actors:
            if actor.job is None and self._waiting:
                self._hand(actor, self._waiting.popleft())
        while self._waiting and len(self._actors) < self._workers:
            actor = _Actor(self._make.remote(*self._arguments))
            self._actors.append(actor)
            self._hand(actor, self._waiting.popleft())

    def _hand(self, actor: _Actor, job: Job) -> None:
        actor.job, actor.spoke, actor.last_sign = job, False, time.monotonic()
        message = {**asdict(job), "task": job.task.to_json(), "payload": dict(job.payload)}
        actor.handle.carry_out.remote(json.dumps(message))

    def _heard(self, actor: _Actor) -> list[Event]:
        """The events of an actor's job, or its failure."""
        exceptions = self._ray.exceptions
        try:
            lines = self._ray.get(actor.handle.events.remote(), timeout=QUESTION_S)
        except exceptions.GetTimeoutError:
            lines = []
        except exceptions.OutOfMemoryError as error:
            return [self._lost(actor, "oom", str(error))]
        except exceptions.RayActorError as error:
            return [self._lost(actor, "crashed", f"the actor died. {_first_line(error)}")]
        found = [event for line in lines if (event := self._said(actor, json.loads(line))) is not None]
        allowance = self._silence_s if actor.spoke else max(self._silence_s, START_ALLOWANCE_S)
        if actor.job is not None and time.monotonic() - actor.last_sign > allowance:
            self._ray.kill(actor.handle)
            found.append(self._lost(actor, "timeout", f"no sign of life for {allowance:.0f} s; the actor was ended."))
        return found

    def _said(self, actor: _Actor, message: Mapping[str, Any]) -> Event | None:
        if actor.job is None or message["job"] != actor.job.id:
            return None
        actor.last_sign = time.monotonic()
        actor.spoke = actor.spoke or message["kind"] != "started"
        event = Event(message["job"], message["kind"], message["payload"])
        if event.kind in ("result", "failed"):
            actor.job = None
            self._assign()
        return event

    def _lost(self, actor: _Actor, status: str, detail: str) -> Event:
        """The failure of an actor's job; a fresh actor takes over."""
        self._actors.remove(actor)
        job = actor.job
        assert job is not None
        self._assign()
        return Event(job.id, "failed", {"status": status, "detail": detail})


def _connected(address: str, processors: int) -> Any:
    """The module ``ray``, connected."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed.", remedy="Run `pip install foretune[ray]`.") from error
    if ray.is_initialized():
        return ray
    try:
        if address == LOCAL:
            ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False, logging_level="warning")
        else:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r} ({_first_line(error)}).",
            remedy="Start one with `ray start --head`, or say `local`.",
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
