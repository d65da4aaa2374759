"""Several processes at one selection: assistants carry out the same selection in the same store.

Each process takes blocks of scores that nobody has claimed and waits for those of the others, so that all reach the
same ranking; ours is the one that is handed over. An assistant that dies leaves its block to the others, and all end
with the process that started them. Work outside blocks (a warm-up, a greedy choice) every process repeats for itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.catalogue.selection import Keep
from foretune.data.example import Example
from foretune.execution.bench import Bench
from foretune.execution.blocks import named
from foretune.execution.local import LocalExecutor
from foretune.execution.types import Job
from foretune.files import read_lines
from foretune.fit.prepare import write_split
from foretune.selection.base import Request
from foretune.selection.run import select

if TYPE_CHECKING:
    from foretune.fit.select import SelectionJob

ROWS = ("pool", "target", "previous")


@contextmanager
def assisted(job: SelectionJob, bench: Bench | None, workers: int) -> Iterator[None]:
    """Inside, ``workers`` processes, this one among them, work on ``job``: with as many threads each as fit."""
    if bench is None or workers < 2:
        yield
        return
    import torch

    before = torch.get_num_threads()
    threads = max(1, min(before, len(os.sched_getaffinity(0)) // workers))
    folder = Path(bench.task.folder)
    for name, rows in zip(ROWS, (job.examples, job.target, job.previous), strict=True):
        write_split(folder / f"{name}.jsonl", rows)
    work = partial(
        assist, bench=None, rows=str(folder), store=str(job.folder.resolve()), text=job.method,
        keep=[job.keep.kind, job.keep.amount], fields=dict(job.fields or {}), seed=job.seed,
    )  # fmt: skip
    torch.set_num_threads(threads)
    try:
        with LocalExecutor(
            folder / "logs", workers=workers - 1, threads=threads, silence_allowance_s=math.inf
        ) as executor:
            for number in range(workers - 1):
                executor.submit(Job(f"assistant-{number}", "block", bench.task, {**named(work), "block": number}))
            yield
    finally:
        torch.set_num_threads(before)


def assist(
    block: int,
    *,
    bench: Any,
    rows: str,
    store: str,
    text: str,
    keep: Sequence[Any],
    fields: Mapping[str, Any],
    seed: int,
) -> None:
    """Carry out the selection for the blocks it leaves in ``store``; ``rows`` is the folder of its rows."""
    pool, target, previous = (_read(Path(rows) / f"{name}.jsonl") for name in ROWS)
    wanted = Keep(keep[0], float(keep[1]))
    request = Request(
        pool, wanted.rows(len(pool)), seed=seed, target=target, previous=previous, fields=fields, bench=bench,
        folder=Path(store),
    )  # fmt: skip
    select(request, text, wanted)


def _read(path: Path) -> list[Example]:
    return [Example.from_json(value) for value in read_lines(path)]
