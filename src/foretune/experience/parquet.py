"""Exchange: the whole store as one Parquet file a table, with a manifest and its provenance.

Parquet is what other tools read and what later versions import; leases, which mean nothing elsewhere, stay behind.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from foretune import __version__
from foretune.errors import OutputError, Place, StoreError
from foretune.experience.migrations import current_version
from foretune.experience.store import TABLES, Store
from foretune.files import MANIFEST, atomic_folder, write_bytes, write_json

EXPORTED = tuple(table for table in TABLES if table != "lease")
PROVENANCE = "provenance.json"
_TEXT, _WHOLE, _REAL = "string", "int64", "float64"
_TYPES: dict[str, str] = {
    **dict.fromkeys(("added_s", "seed", "horizon", "started_s", "finished_s", "peak_bytes"), _WHOLE),
    **dict.fromkeys(("step", "n_eval", "tokens"), _WHOLE),
    **dict.fromkeys(("value", "se", "train_s", "eval_s", "train_cpu_s", "eval_cpu_s"), _REAL),
    **dict.fromkeys(("predicted", "low", "high", "measured"), _REAL),
}
"""Columns that are not text: a table without rows keeps its types."""


def export(store: Store, folder: Path) -> dict[str, Any]:
    """Write the store to ``folder`` and return the provenance (versions and rows by table).

    An earlier export there is replaced in one step. Raises `OutputError` when the folder holds anything else.
    """
    if folder.exists() and not _replaceable(folder):
        raise OutputError(
            "this is not an empty folder or an earlier export; it is left as it is.",
            place=Place(folder),
            remedy="Name another folder.",
        )
    rows: dict[str, int] = {}
    with atomic_folder(folder) as aside:
        for table in EXPORTED:
            columns, values = store.table(table)
            write_bytes(aside / f"{table}.parquet", _parquet(columns, values))
            rows[table] = len(values)
        provenance = {"foretune": __version__, "store_version": current_version(), "rows": rows}
        write_json(aside / PROVENANCE, provenance)
    return provenance


def read_table(folder: Path, table: str) -> list[dict[str, Any]]:
    """The rows of an exported table. Raises `StoreError` when its file is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{table}.parquet"
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"this table cannot be read: {error}.", place=Place(path)) from error
    return rows


def _replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    present = {path.name for path in folder.iterdir()}
    return present <= {MANIFEST, PROVENANCE, *(f"{table}.parquet" for table in EXPORTED)}


def _parquet(columns: list[str], rows: list[tuple[Any, ...]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.type_for_alias(_TYPES.get(column, _TEXT))) for column in columns])
    table = pa.table([[row[i] for row in rows] for i in range(len(columns))], schema=schema)
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
