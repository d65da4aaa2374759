"""From what the user named (a file, a folder, a hub id) to the files it means and a stream of their raw rows.

A folder is a saved ``datasets`` folder, or holds files named by split (``train.jsonl``, ``validation-00000.parquet``,
also under ``data/``), or holds data files of one kind that are read as one. A hub id goes through
``datasets.load_dataset``, imported only then.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foretune.data.lines import first_bytes
from foretune.data.parallel import is_tree_folder, po, tmx, trees
from foretune.data.problems import BadRow
from foretune.data.rows import Row, documents, json_document, json_lines, separates_by_blank_lines, split_name
from foretune.data.tables import arrow, classes_of, delimited, parquet, sniff_delimiter, table_row
from foretune.errors import DataError, Place
from foretune.files import canonical_json, sha256_bytes, sha256_file

Rows = Iterator[Row | BadRow]
QUARANTINE_ENDING = ".quarantine.jsonl"

READERS: dict[str, Callable[[Path, str | None], Rows]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_document,
    ".csv": delimited,
    ".tsv": partial(delimited, delimiter="\t"),
    ".parquet": parquet,
    ".arrow": arrow,
    ".txt": documents,
    ".tmx": tmx,
    ".po": po,
}
"""What reads a file, by the ending of its name (a further ``.gz`` does not count)."""
UNTYPED = (".csv", ".tsv", ".txt")
"""Kinds of files in which everything is text."""

BINARY = (".parquet", ".arrow")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Source:
    """What will be read: files with the split that each belongs to, or rows of a hub data set."""

    name: Path | str
    files: tuple[tuple[Path, str | None], ...]
    typed: bool
    notes: tuple[str, ...] = ()
    hub: Mapping[str, Any] | None = None
    trees: bool = False
    """The files are one text of keys a language, aligned into rows (`data.parallel`)"""

    def rows(self) -> Rows:
        """All raw rows, in order. Raises `DataError` for a file that cannot be read at all."""
        if self.trees:
            yield from trees([path for path, _ in self.files])
            return
        for path, split in self.files:
            yield from READERS[kind_of_file(path)](path, split)
        for split_of_hub, rows in (self.hub or {}).items():
            yield from _hub_rows(str(self.name), split_of_hub, rows)

    def sha256(self) -> str:
        """The hash of the one file's bytes; of several, of the list of their names and hashes."""
        if len(self.files) == 1:
            return sha256_file(self.files[0][0])
        if self.hub is not None:
            listed: Iterable[Any] = [[name, getattr(rows, "_fingerprint", "")] for name, rows in self.hub.items()]
        else:
            listed = [[path.name, split, sha256_file(path)] for path, split in self.files]
        return sha256_bytes(canonical_json(list(listed)).encode())


def locate(source: Path | str) -> Source:
    """What ``source`` means. Raises `DataError` when there is nothing there to read."""
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source) and not _looks_local(path):
        return _hub(source)
    return _file(path)


def kind_of_file(path: Path) -> str:
    """The key of `READERS` for this file: by its name, else by its first bytes. Raises `DataError`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".gzip"):
        suffixes.pop()
    named = suffixes[-1] if suffixes else ""
    if path.is_file() and _magic(path) == _PARQUET_MAGIC:
        return ".parquet"
    if named in READERS:
        return named
    start = first_bytes(path).lstrip()[:1]
    if start in (b"{", b"["):
        return ".json"
    known = ", ".join(ending for ending in READERS)
    raise DataError(
        f"this kind of file is not known ({path.name}).", place=Place(path), remedy=f"Known endings: {known}, and .gz."
    )


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_PARQUET_MAGIC))
    except OSError as error:
        raise DataError(f"this file cannot be opened: {error.strerror}.", place=Place(path)) from error


def _looks_local(path: Path) -> bool:
    in_a_folder = path.parent.is_dir() and path.parent != Path()
    return in_a_folder or any(suffix.lower() in READERS for suffix in path.suffixes)


def _file(path: Path) -> Source:
    kind = kind_of_file(path)
    notes: tuple[str, ...] = ()
    if kind not in BINARY and not first_bytes(path).strip():
        raise DataError("there are no rows in it: the file is empty.", place=Place(path), remedy="Check the path.")
    if kind == ".csv" and (mark := sniff_delimiter(path)) != ",":
        notes = (f"fields are separated by {'a tab' if mark == chr(9) else repr(mark)}.",)
    if kind == ".txt":
        blank = separates_by_blank_lines(path)
        notes = (f"each {'paragraph (up to a blank line)' if blank else 'line'} of the text is one document.",)
    return Source(path, ((path, None),), kind not in UNTYPED, notes)


def _folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_dataset(path)
    files = [f for folder in (path, path / "data") if folder.is_dir() for f in sorted(folder.iterdir()) if _is_data(f)]
    by_split = [(f, split) for f in files if (split := _split_of_file(f)) is not None]
    if by_split and (2 * len(by_split) >= len(files) or any(_is_named_by_split(f) for f, _ in by_split)):
        others = [f.name for f in files if _split_of_file(f) is None]
        notes = (f"not read, their names are no split's: {', '.join(others)}.",) if others else ()
        return _of_files(path, by_split, notes)
    if not files:
        raise DataError(
            "there are no data files in this folder.",
            place=Place(path),
            remedy=f"Expected train.jsonl, validation.jsonl, test.jsonl or others of {', '.join(READERS)}.",
        )
    if is_tree_folder(files):
        notes = (f"{len(files)} languages under the same keys are aligned into translations.",)
        return Source(path, tuple((f, None) for f in files), typed=True, notes=notes, trees=True)
    kinds = sorted({kind_of_file(f) for f in files})
    if len(kinds) > 1:
        raise DataError(
            f"this folder holds files of several kinds ({', '.join(kinds)}), none named by a split.",
            place=Place(path),
            remedy="Name one file, or name the files train, validation and test.",
        )
    notes = (f"{len(files)} files are read as one data set.",) if len(files) > 1 else ()
    return _of_files(path, [(f, None) for f in files], notes)


def _of_files(path: Path, files: Sequence[tuple[Path, str | None]], notes: tuple[str, ...]) -> Source:
    typed = all(kind_of_file(f) not in UNTYPED for f, _ in files)
    return Source(path, tuple(files), typed, notes)


def _is_data(path: Path) -> bool:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".gzip")]
    usual = bool(suffixes) and suffixes[-1] in READERS and path.is_file() and path.stat().st_size > 0
    return usual and not path.name.startswith(".") and not path.name.endswith(QUARANTINE_ENDING)


def _split_of_file(path: Path) -> str | None:
    """``train-00000-of-00002.parquet`` and ``dev.jsonl.gz`` name their split in the first word."""
    return split_name(re.split(r"[-_.]", path.name)[0])


def _is_named_by_split(path: Path) -> bool:
    """Whether nothing but numbers follows the split; ``training-plan.txt`` among other texts is one of them."""
    rest = path.name.removesuffix("".join(path.suffixes))[len(re.split(r"[-_.]", path.name)[0]) :]
    return re.fullmatch(r"(?:[-_.]?(?:[0-9a-f]+|of))*", rest) is not None


def _saved_dataset(path: Path) -> Source:
    """A folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``."""
    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
            parts = [(path / name, split_name(name), name) for name in names]
        else:
            parts = [(path, None, "")]
        files, skipped = [], []
        for folder, split, name in parts:
            if name and split is None:
                skipped.append(name)
                continue
            state = json.loads((folder / "state.json").read_text("utf-8"))
            files += [(folder / Path(part["filename"]).name, split) for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"this folder looks like a saved data set, but its description is damaged ({error}).",
            place=Place(path),
            remedy="Save it again with Dataset.save_to_disk.",
        ) from error
    notes = (f"not read, their names are no split's: {', '.join(skipped)}.",) if skipped else ()
    return Source(path, tuple(files), typed=True, notes=notes)


def _hub(name: str) -> Source:
    """A data set of the hub, through ``datasets`` (its cache, its tokens)."""
    repository, _, config = name.partition(":")
    try:
        loaded = importlib.import_module("datasets").load_dataset(repository, config or None)
    except Exception as error:  # the library and its network layers raise many unrelated types
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise DataError(
            f"there is no such file, and as a data set of the hub it cannot be loaded ({reason}).",
            place=Place(name),
            remedy="Check the path or the name (owner/name or owner/name:config) and the network.",
        ) from error
    parts = dict(loaded) if isinstance(loaded, Mapping) else {"": loaded}
    known = {split: rows for split, rows in parts.items() if not split or split_name(split)}
    skipped = [split for split in parts if split not in known]
    notes = (f"not read, their names are no split's: {', '.join(skipped)}.",) if skipped else ()
    return Source(name, (), typed=True, notes=notes, hub=known)


def _hub_rows(name: str, split: str, rows: Any) -> Rows:
    features = getattr(rows, "features", None) or {}
    classes = {column: names for column, feature in features.items() if (names := classes_of(feature))}
    label = f"{name}/{split}" if split else name
    for number, value in enumerate(rows, 1):
        yield table_row(dict(value), Place(label, number), split_name(split), classes)
