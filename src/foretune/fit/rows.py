"""Reading the data of a specification: its own rows, and the files given for validation and test, as one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from foretune.config.spec import FitSpec
from foretune.data import corpora
from foretune.data.columns import said_in
from foretune.data.read import ReadResult, read


@dataclass(frozen=True)
class Found:
    """The rows of a specification: its data, and the files given for validation and test."""

    data: ReadResult
    given: Mapping[str, ReadResult]

    @property
    def all(self) -> tuple[ReadResult, ...]:
        """What was read, the data first."""
        return (self.data, *self.given.values())


def read_all(spec: FitSpec, quarantine: Path | None = None) -> Found:
    """The data of a specification and its files for validation and test, read as one task.

    Bad rows of given files go to files of their own beside ``quarantine``. Raises `DataError` with file and line.
    """
    settings = spec.data
    data = read_rows(spec, str(settings.path), quarantine)
    given = {
        name: read_rows(
            spec,
            path,
            None if quarantine is None else quarantine.with_name(f"{name}-{quarantine.name}"),
            split_of=data,
        )
        for name, path in (("validation", settings.validation), ("test", settings.test))
        if path is not None
    }
    return Found(data, given)


def read_rows(
    spec: FitSpec,
    source: str,
    quarantine: Path | None = None,
    *,
    split_of: ReadResult | None = None,
    like: str | None = None,
) -> ReadResult:
    """The rows of ``source``, read as a specification says; raises `DataError` with file and line.

    A file that is a split of rows read before (``split_of``) is of their task, and a split column says nothing about
    it. ``like``: see `foretune.data.read.read`.
    """
    settings, columns = spec.data, said_in(spec.data)
    return read(
        corpora.locate(source),
        format=settings.format,
        columns=columns if split_of is None else replace(columns, split=None),
        task=settings.task or (None if split_of is None else split_of.task),
        like=like,
        on_bad_row=settings.on_bad_row,
        quarantine=quarantine,
    )
