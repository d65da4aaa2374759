"""Processes that are really killed: a forked child carries out a call until it ends or dies.

Forking a process that has torch loaded makes a life cost what its work costs, so many deaths fit into one test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIED = -signal.SIGKILL
WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
"""Audit events that change a file's state, with `os.fsync` and the moment after every rename beside them."""


def live(
    call: Callable[[], Any], *, before: Callable[[], None] | None = None, limit_s: float | None = None,
    deadly: int = signal.SIGKILL,
) -> int:  # fmt: skip
    """Carry out ``call`` in a forked child; its exit code, negative for the signal that ended it.

    ``before`` runs in the child first. After ``limit_s`` the child gets the signal ``deadly``.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _be_child(call, before)
    end = None if limit_s is None else time.monotonic() + limit_s
    sent = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG if end is not None and not sent else 0)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and not sent and time.monotonic() > end:
            os.kill(child, deadly)
            sent = True
        time.sleep(0.005)


def _be_child(call: Callable[[], Any], before: Callable[[], None] | None) -> None:
    from foretune.errors import ForetuneError

    code = 99
    try:
        if before is not None:
            before()
        call()
        code = 0
    except ForetuneError as error:
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_at(count: int, folder: Path) -> Callable[[], None]:
    """A ``before``: the child kills itself at the ``count``-th change of a file under ``folder`` (0: never)."""
    return lambda: _watch(folder, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == count else None)


def count_changes(folder: Path, report: Path) -> Callable[[], None]:
    """A ``before``: the number of changes under ``folder`` so far is kept in ``report``."""

    def note(number: int) -> None:
        with open(report, "w") as stream:  # noqa: PTH123
            stream.write(str(number))

    return lambda: _watch(folder, note)


def _watch(folder: Path, seen: Callable[[int], None]) -> None:
    root = str(folder)
    number = 0
    sync = os.fsync

    def change() -> None:
        nonlocal number
        number += 1
        seen(number)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED or not arguments:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(root):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        change()

    def counted(descriptor: int) -> None:
        sync(descriptor)
        change()

    os.fsync = counted  # type: ignore[assignment]
    sys.addaudithook(hook)
