"""A worker of several processes that train every trial together: ``python -m foretune.execution.group COUNT``.

To its overseer it is one worker (`execution.worker`): jobs come in, events go out. Inside it starts COUNT workers with
the environment from which accelerate makes one group (gloo between processors, NCCL between GPUs), gives every job to
all of them and passes on what the first one says; `training.ranks` says how they share an update. When a job has failed
or a process has died, the whole group is ended: processes that have lost step with one another cannot go on.

It loads no model and decides nothing. Other machines are Ray's part (`execution.ray`), not this one's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from foretune.execution.local import worker_command

LOST = 70
"""The exit code when a process of the group has died: the job is lost, a fresh group takes the next."""
PATIENCE_S = 10.0


def group_command(count: int) -> list[str]:
    """How a worker of ``count`` processes is started."""
    return [sys.executable, "-m", "foretune.execution.group", str(count)]


def environments(count: int, threads: int) -> list[dict[str, str]]:
    """What each of ``count`` processes on this machine is started with; ``threads`` are shared out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    share = str(max(1, threads // count))
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group |= {"OMP_NUM_THREADS": share, "FORETUNE_THREADS": share}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Group:
    """The processes, and the pipe to whoever ordered them."""

    def __init__(self, count: int, write: IO[str], command: Sequence[str] = ()) -> None:
        self._count, self._write = count, write
        self._command = list(command or worker_command())
        self._members: list[subprocess.Popen[str]] = []
        self._busy = False
        self._lock = threading.Lock()

    def order(self, line: str) -> None:
        """Give a job to all processes, a stop to the first one: the others follow it."""
        with self._lock:
            if not self._members:
                self._start()
            stop = "stop" in json.loads(line)
            self._busy = self._busy or not stop
            for member in self._members[:1] if stop else self._members:
                with contextlib.suppress(BrokenPipeError, ValueError):
                    assert member.stdin is not None
                    member.stdin.write(line)
                    member.stdin.flush()

    def end(self) -> None:
        """End all processes."""
        members, self._members = self._members, []
        for member in members:
            member.kill()
        for member in members:
            member.wait(PATIENCE_S)

    def _start(self) -> None:
        threads = int(os.environ.get("FORETUNE_THREADS", "0") or 0) or len(os.sched_getaffinity(0))
        for rank, own in enumerate(environments(self._count, threads)):
            member = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True, encoding="utf-8", env={**os.environ, **own},
            )  # fmt: skip
            self._members.append(member)
            threading.Thread(target=self._attend, args=(member,), daemon=True).start()

    def _attend(self, member: subprocess.Popen[str]) -> None:
        """Pass on what the first process says; notice when a process ends."""
        for line in member.stdout or ():
            kind = json.loads(line)["kind"]
            with self._lock:
                if kind in ("result", "failed"):
                    self._busy = False
                if kind == "failed":
                    self.end()
                self._write.write(line)
                self._write.flush()
        code = member.wait()
        with self._lock:
            if member not in self._members:  # it was ended here
                return
            self.end()
            if self._busy:
                sys.stderr.write(f"a process of the group has died (exit code {code})\n")
                sys.stderr.flush()
                os._exit(LOST)


def main(count: int, command: Sequence[str] = ()) -> None:
    """Serve jobs until standard input ends; ``command`` replaces the one that starts a process."""
    group = Group(count, sys.stdout, command)
    for line in sys.stdin:
        group.order(line)
    group.end()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
