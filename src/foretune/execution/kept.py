"""Which of a task's training rows a configuration trains on: ranked once, kept on disk, shared by all trials.

A ranking lies under ``selections/<key>/`` in the task's folder; the key hashes everything that decides it: the
selectors and their settings, the seed, the rows of pool, target and previous data, weights and encoding. Whoever needs
it first computes it (under the folder's lock, block by block, so that a killed one goes on); others wait and read.
``keep`` is no part of the key where the ranking is nested: 10 % are the beginning of 30 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foretune.catalogue.selection import NONE, declaration, kept_rows, names_in, needed, parse, with_defaults
from foretune.data.example import Example
from foretune.errors import OutputError, UsageError
from foretune.execution.bench import Bench
from foretune.execution.machine import detect
from foretune.files import FolderLock, fingerprint, read_json, read_lines, write_json
from foretune.selection.base import Request, SelectionStopped
from foretune.selection.run import select

SELECTIONS = "selections"
RANKING = "ranking.json"
BLOCKS = "blocks"
"""Scores by content, which all rankings of a task share; what they took is charged to each that uses them."""
TARGET, PREVIOUS = "target", "previous"
VALIDATION = "validation"
"""What stands for a target file that is the task's own validation rows."""
WAIT_S = 0.5

Stopped = Callable[[], bool]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Kept:
    """The rows to train on, best first, and what it took to find them."""

    rows: tuple[int, ...]
    """Indices into the training split"""
    first: tuple[int, ...] = ()
    """Those of ``rows`` that a filter lets through while it is on"""
    seconds: float = 0.0
    """Of the whole ranking, which other counts and trials share"""
    cpu_seconds: float | None = None
    """Processor seconds of it, where processors did the work"""
    answer_tokens: float = 0.0
    """Mean trained tokens of the kept rows"""
    scores: tuple[float, ...] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    machine: str = ""
    """The fingerprint of the machine that ranked"""

    def to_json(self) -> dict[str, Any]:
        """The facts, without the rows."""
        return {
            "kept": len(self.rows),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "answer_tokens": self.answer_tokens,
            "manifest": dict(self.manifest),
            "machine": self.machine,
        }


def kept(
    bench: Bench,
    config: Mapping[str, Any],
    *,
    pool: Sequence[int] | None = None,
    seed: int = 0,
    stopped: Stopped = lambda: False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Kept:
    """The rows of the training split (or of ``pool`` in it) that ``config`` trains on.

    Raises `SelectionStopped` when told to stop before the ranking is whole, `UsageError` for a selection that this
    task cannot have (no target, no model of its kind) and what selectors raise.
    """
    text = str(config.get("selection", NONE))
    split = bench.split("train")
    rows = tuple(range(len(split.rows)) if pool is None else pool)
    names = names_in(text)
    moment = declaration(names[0]).moment if len(names) == 1 else "before"
    if text == NONE or moment in ("during", "either"):
        return Kept(rows, answer_tokens=_mean_targets(bench, rows))
    count = kept_rows(config, len(rows))
    nested = len(stages := parse(text)) == 1 and all(declaration(name).nested for name in stages[0].names)
    request = Request(
        examples=[split.examples[i] for i in rows],
        count=len(rows) if nested else count,
        seed=seed,
        target=_other(bench, TARGET) if needed(stages[0].names)[1] or _uses_others(text) else (),
        previous=_other(bench, PREVIOUS) if _uses_others(text) else (),
        fields={key: value for key, value in config.items() if "." in key},
        bench=bench,
        stopped=stopped,
        on_progress=on_progress,
    )
    ranking = _ranking(bench, text, request, nested)
    chosen = tuple(rows[i] for i in ranking["indices"][:count])
    if not chosen:
        raise UsageError(f"{text} leaves no row to train on.", remedy="Keep more, or choose another selection.")
    scores = ranking["scores"]
    filtering = moment == "filter"
    return Kept(
        rows if filtering else chosen,
        chosen if filtering else (),
        float(ranking["seconds"]),
        ranking.get("cpu_seconds"),
        _mean_targets(bench, rows if filtering else chosen),
        None if filtering or scores is None else tuple(scores[:count]),
        {**ranking["manifest"], **({} if filtering else {"kept": len(chosen)})},
        ranking.get("machine", ""),
    )


def _uses_others(text: str) -> bool:
    return any(
        declared.needs_target or declared.uses_previous
        for declared in (declaration(name) for stage in parse(text) for name in stage.names)
    )


def _mean_targets(bench: Bench, rows: Sequence[int]) -> float:
    encoded = bench.split("train").rows
    return sum(max(1, encoded[i].targets) for i in rows) / max(1, len(rows))


def _other(bench: Bench, name: str) -> tuple[Example, ...]:
    """The target or the previous rows of the task; none where there are none."""
    path = Path(bench.task.folder) / f"{name}.jsonl"
    return tuple(Example.from_json(value) for value in read_lines(path))


def _ranking(bench: Bench, text: str, request: Request, nested: bool) -> dict[str, Any]:
    """The ranking from its file, or computed into it by whoever holds the folder."""
    made_of = [
        text,
        {name: with_defaults(name, request.fields) for name in names_in(text)},
        request.seed if any(declaration(name).follows_seed for name in names_in(text)) else 0,
        None if nested else request.count,
        [[row.id for row in rows] for rows in (request.examples, request.target, request.previous)],
        bench.weights_hash,
        [bench.task.context_tokens, bench.task.plain_template, bench.task.task],
    ]
    folder = Path(bench.task.folder) / SELECTIONS / fingerprint(made_of)
    path = folder / RANKING
    while not path.exists():
        if request.stopped():
            raise SelectionStopped
        try:
            with FolderLock(folder):
                if not path.exists():
                    _compute(text, replace(request, folder=folder.parent / BLOCKS), folder)
        except OutputError as error:
            if "another Foretune process" not in error.what:
                raise
            time.sleep(WAIT_S)
    ranking: dict[str, Any] = read_json(path)
    return ranking


def _compute(text: str, request: Request, folder: Path) -> None:
    """Select and write the ranking, with what it takes where no scores are there to reuse."""
    chosen = select(request, text)
    on_processors = request.model.network.model.device.type == "cpu"
    value = {
        "indices": list(chosen.indices),
        "scores": None if chosen.scores is None else [_finite(score) for score in chosen.scores],
        "n_positive": chosen.n_positive,
        "objective": chosen.objective,
        "seconds": chosen.cost.seconds,
        "cpu_seconds": chosen.cost.cpu_seconds if on_processors else None,
        "manifest": dict(chosen.manifest),
        "machine": detect().fingerprint,
    }
    write_json(folder / RANKING, value)


def _finite(score: float) -> float | None:
    return score if abs(score) != float("inf") else None
