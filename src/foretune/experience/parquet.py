"""Exchange: the whole store as one Parquet file a table, with a manifest and its provenance.

Parquet is what other tools read and what later versions import; leases, which mean nothing elsewhere, stay behind.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune import __version__
from foretune.errors import OutputError, Place, StoreError
from foretune.experience.migrations import current_version
from foretune.experience.store import RUNNING, TABLES, Store
from foretune.files import MANIFEST, atomic_folder, write_bytes, write_json

EXPORTED = tuple(table for table in TABLES if table != "lease")
PROVENANCE = "provenance.json"
Table = tuple[list[str], list[tuple[Any, ...]]]
"""Column names and rows."""
_TEXT, _WHOLE, _REAL = "string", "int64", "float64"
_TYPES: dict[str, str] = {
    **dict.fromkeys(("added_s", "seed", "horizon", "started_s", "finished_s", "peak_bytes"), _WHOLE),
    **dict.fromkeys(("step", "n_eval", "tokens"), _WHOLE),
    **dict.fromkeys(("value", "se", "train_s", "eval_s", "train_cpu_s", "eval_cpu_s"), _REAL),
    **dict.fromkeys(("predicted", "low", "high", "measured"), _REAL),
}
"""Columns that are not text: a table without rows keeps its types."""


def export(store: Store, folder: Path, *, study: str | None = None) -> dict[str, Any]:
    """Write the store, or one study's runs that have ended, to ``folder`` and return the provenance.

    The provenance says which versions, models, data sets with their licenses, and machines the runs come from. An
    earlier export there is replaced in one step. Raises `OutputError` when the folder holds anything else.
    """
    if folder.exists() and not _replaceable(folder):
        raise OutputError(
            "this is not an empty folder or an earlier export; it is left as it is.",
            place=Place(folder),
            remedy="Name another folder.",
        )
    rows: dict[str, int] = {}
    with atomic_folder(folder) as aside:
        tables = _chosen({table: store.table(table) for table in EXPORTED}, study)
        for table, (columns, values) in tables.items():
            write_bytes(aside / f"{table}.parquet", _parquet(columns, values))
            rows[table] = len(values)
        provenance = {"foretune": __version__, "store_version": current_version(), "rows": rows, **_sources(tables)}
        write_json(aside / PROVENANCE, provenance)
    return provenance


def _chosen(tables: dict[str, Table], study: str | None) -> dict[str, Table]:
    """The rows of a study's ended runs, and of what they refer to; all rows where no study is named."""
    if study is None:
        return tables
    columns, runs = tables["run"]
    at = {name: columns.index(name) for name in columns}
    kept = [run for run in runs if run[at["study"]] == study and run[at["status"]] != RUNNING]
    ids = {run[at["id"]] for run in kept}
    wanted = {table: {run[at[table]] for run in kept} for table in ("task", "model", "hardware", "config")}
    chosen = {
        table: (names, [row for row in rows if row[0] in wanted.get(table, ids)])
        for table, (names, rows) in tables.items()
    }
    return {**chosen, "run": (columns, kept)}


def _sources(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Where the runs come from: models, data sets and machines by their features, versions, studies."""
    columns, runs = tables["run"]
    features = {table: [json.loads(row[1]) for row in tables[table][1]] for table in ("task", "model", "hardware")}

    def listed(table: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
        found = [{name: item[name] for name in names if name in item} for item in features[table]]
        return sorted((dict(pairs) for pairs in {tuple(item.items()) for item in found if item}), key=str)

    versions = {run[columns.index("versions")] for run in runs}
    return {
        "studies": dict(Counter(run[columns.index("study")] for run in runs)),
        "models": listed("model", ("name", "license", "parameters")),
        "data": listed("task", ("name", "dataset", "license")),
        "machines": listed("hardware", ("processor", "accelerators.0.name", "cores", "threads")),
        "versions": [json.loads(text) for text in sorted(versions)],
    }


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
