"""A table of results, one run a line: learning-rate sweeps such as that of thinking-machines-lab/tinker-cookbook.

Columns are known by their names. ``model``, ``learning_rate`` and one loss are needed (``test_nll`` or ``test_loss``,
``validation_loss``, ``train_nll`` or ``train_loss``); ``method``, ``rank``, ``task``, ``seed``, ``steps``,
``rows_per_update``, ``wall_min`` or ``wall_s``, ``status`` are read where they stand, other columns are left alone.

A cell that is empty or no finite number is not known. A test loss above `DIVERGED` nats a token has diverged, and so
has a run whose status says so: a failure, whose losses are no scores. A line that occurs twice is one run; two lines
of the same settings with different results are two seeds of it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from foretune.errors import Place, StoreError
from foretune.experience.importers.base import UNKNOWN_ERROR, ImportedRun, ended, finite, slug, subject
from foretune.experience.records import RunRecord, Seen
from foretune.files import fingerprint

DIVERGED = 2.0
"""Nats a token: an instruction-tuned model that starts below 1 does not get there by learning."""
STEPS, ROWS = 780, 128
"""Of the published sweep, which its table does not repeat."""
LOSSES = {
    "test": ("test_nll", "test_loss"),
    "validation": ("validation_loss", "validation_nll", "valid_loss"),
    "train": ("train_nll", "train_loss"),
}
WELL = ("", "ok", "success", "finished", "completed")
Line = Mapping[str, str]


def read(path: Path) -> Iterator[ImportedRun]:
    """The runs of a table. Raises `StoreError` with the line that cannot be read."""
    seeds: dict[str, list[Line]] = {}
    for number, line in _lines(path):
        if finite(line.get("learning_rate")) is None:
            raise StoreError("this line has no learning rate.", place=Place(path, number))
        settings = fingerprint(_settings(line))
        same = seeds.setdefault(settings, [])
        if line not in same:
            same.append(line)
            seed = finite(line.get("seed"))
            yield _run(path, line, seed=len(same) - 1 if seed is None else int(seed))


def _lines(path: Path) -> Iterator[tuple[int, Line]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"this table cannot be read ({error}).", place=Place(path)) from error
    rows = csv.reader(text.splitlines())
    header = [cell.strip().lower() for cell in next(rows, [])]
    losses = {name for names in LOSSES.values() for name in names}
    if not {"model", "learning_rate"} <= set(header) or not losses & set(header):
        raise StoreError(
            "this table is no sweep.",
            place=Place(path, 1),
            remedy=f"It needs the columns model, learning_rate and one of {', '.join(sorted(losses))}.",
        )
    for row in rows:
        if any(cell.strip() for cell in row):
            if len(row) != len(header):
                raise StoreError(f"{len(row)} cells instead of {len(header)}.", place=Place(path, rows.line_num))
            yield rows.line_num, {name: cell.strip() for name, cell in zip(header, row, strict=True)}


def _settings(line: Line) -> list[str]:
    left = ("seed", "status", "wall_min", "wall_s")
    losses = {name for names in LOSSES.values() for name in names}
    return [f"{name}={value}" for name, value in sorted(line.items()) if name not in losses and name not in left]


def _run(path: Path, line: Line, *, seed: int) -> ImportedRun:
    study = slug(path.stem)
    steps = int(finite(line.get("steps")) or STEPS)
    task = subject("task", {"name": slug(line.get("task") or path.stem), "task": "generation", "metric": "loss"})
    model = subject("model", {"name": slug(line["model"], slash=True), "kind": "causal"})
    hardware = subject("hardware", {"name": "unknown"})
    method = slug(line.get("method") or "lora").lower()
    config: dict[str, float | str | None] = {
        "method": method,
        "learning_rate": finite(line["learning_rate"]),
        "rows_per_update": finite(line.get("rows_per_update")) or ROWS,
        f"{method}.rank": finite(line.get("rank")),
    }
    losses = {split: _first(line, names) for split, names in LOSSES.items()}
    status = _status(line, losses)
    seconds = finite(line.get("wall_s")) or 60.0 * (finite(line.get("wall_min")) or 0.0)
    return ImportedRun(
        record=RunRecord(
            id=f"{study}.{fingerprint([_settings(line), seed])}", task=task.key, model=model.key,
            hardware=hardware.key, config="", seed=seed, horizon=max(1, steps), study=study,
            arm=f"{method}-{config['learning_rate']:g}-{line.get('rank') or 'none'}"[:96],
        ),
        task=task,
        model=model,
        hardware=hardware,
        config={key: value for key, value in config.items() if value is not None},
        seen=tuple(
            Seen(max(1, steps), split, {"loss": (loss, UNKNOWN_ERROR, 0)}, train_s=seconds)
            for split, loss in losses.items()
            if loss is not None and status == "finished"
        ),
        status=status,
    )  # fmt: skip


def _first(line: Line, names: tuple[str, ...]) -> float | None:
    return next((value for name in names if (value := finite(line.get(name))) is not None), None)


def _status(line: Line, losses: Mapping[str, float | None]) -> str:
    said = line.get("status", "").lower()
    judged = [losses[split] for split in ("test", "validation") if losses[split] is not None]
    if "diverg" in said or any(loss is not None and loss > DIVERGED for loss in judged):
        return "diverged"
    if said not in WELL:
        return "oom" if "memory" in said or said == "oom" else ended(said)
    if any("nan" in line.get(name, "").lower() or "inf" in line.get(name, "").lower()
           for names in LOSSES.values() for name in names):  # fmt: skip
        return "diverged"
    return "finished" if judged else "unknown"
