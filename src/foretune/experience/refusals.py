"""SQLite's refusals in our own words: what happened, to which file, and what to do. Opens nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from foretune.errors import Place, StoreError, UsageError


def code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte is the primary code


def damaged(path: Path, how: str) -> StoreError:
    """The error for a store whose content cannot be trusted."""
    return StoreError(
        f"the experience store is damaged: {how}.",
        place=Place(path),
        remedy="Restore it from a copy, or move it aside with `foretune experience set-aside`: nothing is deleted.",
    )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's refusals into a `StoreError` with place and remedy."""
    elsewhere = "Make it writable, or name another file in $FORETUNE_STORE."
    try:
        yield
    except sqlite3.IntegrityError as error:
        unknown = "FOREIGN KEY" in str(error)
        remedy = "Record the run, task, model, hardware or configuration it names first." if unknown else ""
        raise UsageError(f"the store refuses this row: {error}.", remedy=remedy) from error
    except sqlite3.DatabaseError as error:
        match code(error):
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                raise damaged(path, str(error)) from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                what, remedy = "another process holds the store", "Wait for it to end and try again."
            case sqlite3.SQLITE_FULL:
                what, remedy = "the disk is full; nothing was written half", "Free some space and try again."
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                what, remedy = f"the store cannot be opened for writing ({error})", elsewhere
            case _:
                what, remedy = f"the store cannot be used ({error})", elsewhere
        raise StoreError(f"{what}.", place=Place(path), remedy=remedy) from error
    except OSError as error:
        raise StoreError(
            f"the store cannot be used ({error.strerror}).", place=Place(path), remedy=elsewhere
        ) from error
