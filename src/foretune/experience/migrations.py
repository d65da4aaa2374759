"""Versions of the store: how a new one is made, how an old one becomes a new one, which ones are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from foretune.errors import Place, StoreError

APPLICATION_ID = 0x46545558
"""Marks a SQLite file as ours ("FTUX")."""

Migration = Callable[[sqlite3.Connection], None]


def _create(connection: sqlite3.Connection) -> None:
    schema = resources.files("foretune.experience").joinpath("schema.sql").read_text(encoding="utf-8")
    for statement in _statements(schema):
        connection.execute(statement)


def _add_processor_seconds(connection: sqlite3.Connection) -> None:
    """What other load on the machine does not change; NULL where it was not measured."""
    for column in ("train_cpu_s", "eval_cpu_s"):
        connection.execute(f"ALTER TABLE observation ADD COLUMN {column} REAL CHECK ({column} BETWEEN 0.0 AND 1.0e300)")


MIGRATIONS: tuple[Migration, ...] = (_create, _add_processor_seconds)
"""``MIGRATIONS[v]`` takes a store from version v to v + 1, inside one transaction; a new store starts at 0."""


def current_version() -> int:
    """The version that this Foretune writes."""
    return len(MIGRATIONS)


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the store, 0 for an empty file. Raises `StoreError` for a foreign or a newer one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (tables or version or owner):
        raise StoreError(
            "this is a database of another program.",
            place=Place(path),
            remedy="Name another file in $FORETUNE_STORE.",
        )
    if version > current_version():
        raise StoreError(
            f"the store has version {version}; this Foretune knows versions up to {current_version()}.",
            place=Place(path),
            remedy="Upgrade Foretune, or name another file in $FORETUNE_STORE.",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a store up to date inside the caller's transaction, whatever another process did before it began."""
    for step in MIGRATIONS[check_version(connection, path) :]:
        step(connection)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {current_version()}")


def _statements(script: str) -> list[str]:
    """The statements of an SQL script: `executescript` would end the transaction it runs in."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
