"""Public results and exported stores as runs of the experience: which reader takes which file, and writing them.

A reader turns a file into `ImportedRun` s and writes nothing; `import_into` stores each run whole, once, however often
the same file is imported. What a file does not say stays unknown: a standard error of 0 there means "not given".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foretune.errors import Place, StoreError
from foretune.experience.importers import exported, peft_comparison, rate_sweep
from foretune.experience.importers.base import ImportedRun
from foretune.experience.parquet import PROVENANCE
from foretune.experience.store import Store


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    files: int
    runs: int
    """Runs that the files hold"""
    new: int
    """Runs that the store did not hold yet"""
    by_status: dict[str, int]


def import_into(store: Store, source: Path) -> Imported:
    """Store the runs of a file, or of all files of a folder. Raises `StoreError` for what cannot be read."""
    files = files_of(source)
    runs = [run for path in files for run in read(path)]  # all are read before one is written
    new = sum(_store(store, run) for run in runs)
    return Imported(len(files), len(runs), new, dict(Counter(run.status for run in runs)))


def files_of(source: Path) -> list[Path]:
    """The files that an import of ``source`` reads; an exported store counts as one."""
    if not source.exists():
        raise StoreError("there is nothing to import here.", place=Place(source))
    if source.is_file() or (source / PROVENANCE).is_file():
        return [source]
    found = sorted([*source.rglob("*.json"), *source.rglob("*.csv")])
    if not found:
        raise StoreError("this folder holds no results: neither JSON, CSV nor an export.", place=Place(source))
    return found


def read(path: Path) -> Iterator[ImportedRun]:
    """The runs of one file. Raises `StoreError` when no reader knows it."""
    if path.is_dir():
        yield from exported.read(path)
    elif path.suffix == ".json":
        yield from peft_comparison.read(path)
    elif path.suffix == ".csv":
        yield from rate_sweep.read(path)
    else:
        raise StoreError(
            "this kind of file cannot be imported.",
            place=Place(path),
            remedy="Give a folder of `foretune experience export`, peft's comparison results (JSON), or a CSV table.",
        )


def _store(store: Store, run: ImportedRun) -> bool:
    for record, subject in ((store.record_task, run.task), (store.record_model, run.model),
                            (store.record_hardware, run.hardware)):  # fmt: skip
        record(subject.key, subject.features)
    return store.record_ended(run.record, run.config, run.seen, run.status, peak_bytes=run.peak_bytes)
