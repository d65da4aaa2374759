"""Blocks of a selection's work through an executor: local worker processes, or whatever else carries out jobs.

A block is a job: the name of the function, its settings and the block travel as JSON, so nothing is pickled and only
functions of this package can be asked for. A setting called ``bench`` stands for the worker's own bench. Results come
back in the order of the blocks, whoever finishes first; a block whose worker died is tried again, once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from foretune.errors import UsageError
from foretune.execution.drive import ATTEMPTS, POLL_S, JobFailed, as_error
from foretune.execution.types import Executor, Job, TaskSpec
from foretune.selection.base import Block, Result

BENCH = "bench"
PACKAGE = "foretune."
AHEAD = 2
"""Blocks handed out for each worker: one in work, one waiting, so that no worker idles."""


class ExecutorBlocks:
    """A `BlockMap` over the workers of an executor."""

    def __init__(self, executor: Executor, task: TaskSpec) -> None:
        """``task`` is what the workers' benches are opened on."""
        self._executor = executor
        self._task = task

    def map(self, function: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
        """Results in the order of ``blocks``. ``function`` is ``partial(f, **settings)`` of a function of this package.

        Raises what a block refused, or `JobFailed`.
        """
        order = named(function)
        jobs = (
            Job(f"block-{number}", "block", self._task, {**order, "block": block})
            for number, block in enumerate(blocks)
        )
        waiting: dict[str, Job] = {}
        attempts: dict[str, int] = {}
        results: dict[int, Any] = {}
        number = 0
        while True:
            for job in islice(jobs, max(0, AHEAD * self._executor.capacity() - len(waiting))):
                waiting[job.id], attempts[job.id] = job, 1
                self._executor.submit(job)
            while number in results:
                yield results.pop(number)
                number += 1
            if not waiting:
                return
            for event in self._executor.poll(POLL_S):
                job_done = waiting.get(event.job)
                if job_done is None:
                    continue
                if event.kind == "result":
                    results[int(event.job.partition("-")[2])] = event.payload["value"]
                    del waiting[event.job]
                elif event.kind == "failed":
                    self._again(job_done, event.payload, attempts)

    def _again(self, job: Job, failure: Mapping[str, Any], attempts: dict[str, int]) -> None:
        if failure["status"] == "refused":
            raise as_error(failure)
        if attempts[job.id] == ATTEMPTS:
            raise JobFailed(f"a block of the selection failed ({failure['status']}): {failure['detail']}")
        attempts[job.id] += 1
        self._executor.submit(job)


def named(function: Callable[..., Any]) -> dict[str, Any]:
    """The function and its settings as JSON. Raises `UsageError` for one that has no name in this package."""
    if not isinstance(function, partial) or function.args:
        raise UsageError("work for other processes is a partial of a function with named settings.")
    target = function.func
    name = f"{target.__module__}:{target.__qualname__}"
    if called(name) is not target:
        raise UsageError(f"{name} cannot be found by its name in another process.")
    settings = {key: value for key, value in function.keywords.items() if key != BENCH}
    return {"function": name, "settings": settings, BENCH: BENCH in function.keywords}


def called(name: str) -> Callable[..., Any]:
    """The function of this package called ``module:function``. Raises `UsageError` for anything else."""
    module, _, function = name.partition(":")
    if not module.startswith(PACKAGE) or not function.isidentifier():
        raise UsageError(f"{name!r} is no function of this package.")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def carry_out(bench: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The work of one block, in the worker."""
    settings = dict(payload["settings"])
    if payload[BENCH]:
        settings[BENCH] = bench
    return {"value": called(payload["function"])(payload["block"], **settings)}
