"""``foretune experience``: what earlier runs are remembered, and taking them elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.cli.experience_collect import collect
from foretune.cli.options import AsJson
from foretune.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from foretune.experience.records import ObservationRow, RunRow
    from foretune.experience.store import Store

app = typer.Typer(no_args_is_help=True, help="The runs Foretune remembers: list, count, collect, take elsewhere.")
app.command()(collect)

StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="The store's file; default: $FORETUNE_STORE, or experience.sqlite in the cache."),
]
SHOWN_RUNS = 20


def _open(path: Path | None) -> Store | None:
    """The store, or None where there is none yet: reading makes no new one."""
    from foretune.experience.store import Store, default_path

    place = path or default_path()
    return Store(place) if place.exists() else None


@app.command("list")
def list_runs(
    store: StorePath = None,
    study: Annotated[str | None, typer.Option(help="Only runs of this study.")] = None,
    task: Annotated[str | None, typer.Option(help="Only runs on the task with this fingerprint.")] = None,
    status: Annotated[str | None, typer.Option(help="Only runs that ended so: finished, diverged, oom …")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show the last so many; 0 for all.")] = SHOWN_RUNS,
    as_json: AsJson = False,
) -> None:
    """List remembered runs, the newest last."""
    opened = _open(store)
    if opened is None:
        typer.echo("[]" if as_json else "No runs are remembered yet.")
        return
    with opened:
        found = opened.runs(study=study, task=task, status=status)
        shown = found[-limit:] if limit else found
        described = [_described(row, opened.curve(row.record.id)) for row in shown]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    if not found:
        typer.echo("No runs are remembered that fit.")
        return
    typer.echo(f"{len(shown)} of {format_count(len(found))} runs")
    _table(described)


def _described(row: RunRow, curve: list[ObservationRow]) -> dict[str, Any]:
    losses = [seen for seen in curve if seen.split == "validation" and seen.metric == "loss"]
    return {
        **asdict(row.record),
        "settings": dict(row.settings),
        "status": row.status,
        "started_s": row.started_s,
        "finished_s": row.finished_s,
        "peak_bytes": row.peak_bytes,
        "step": max((seen.step for seen in curve), default=0),
        "validation_loss": losses[-1].value if losses else None,
        "validation_loss_error": losses[-1].se if losses else None,
    }


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "task", "method", "learning rate", "steps", "validation loss", "status", box=None)
    for row in rows:
        loss, error = row["validation_loss"], row["validation_loss_error"]
        spread = f" ± {error:.4f}" if error else ""  # imported results often come without
        rate = row["settings"].get("learning_rate")
        table.add_row(
            row["id"],
            row["task"][:8],
            str(row["settings"].get("method", "")),
            "" if rate is None else f"{rate:.3g}",
            f"{row['step']}/{row['horizon']}",
            "" if loss is None else f"{loss:.4f}{spread}",
            row["status"],
        )
    Console().print(table)


@app.command("stats")
def show_stats(store: StorePath = None, as_json: AsJson = False) -> None:
    """Count what is remembered and what ships with Foretune, and check that the file is sound."""
    from foretune.experience.past import bundled_counts
    from foretune.experience.store import default_path

    opened, shipped = _open(store), bundled_counts()
    if not as_json:
        runs = ", ".join(f"{format_count(count)} of {study}" for study, count in shipped.items())
        typer.echo(f"runs that ship with Foretune: {runs or 'none'}")
    if opened is None:
        place = store or default_path()
        empty = {"path": str(place), "rows": {}, "shipped": shipped}
        typer.echo(json.dumps(empty) if as_json else f"{place}: nothing is remembered yet.")
        return
    with opened:
        stats = {**opened.stats(), "shipped": shipped}
        machines = {key: opened.machine_record(key) for (key, *_) in opened.table("hardware")[1]}
    stats["machines"] = {
        key: [{**asdict(entry), "tokens_per_s": entry.tokens_per_s} for entry in entries]
        for key, entries in machines.items()
    }
    if as_json:
        typer.echo(json.dumps(stats, indent=2))
        return
    state = "sound" if stats["sound"] else "DAMAGED"
    typer.echo(f"{stats['path']}: {format_bytes(stats['bytes'])}, version {stats['version']}, {state}")
    for table, count in stats["rows"].items():
        typer.echo(f"  {table:12} {format_count(count):>9}")
    for what, counts in (("ended as", stats["runs_by_status"]), ("method", stats["runs_by_method"])):
        for name, count in counts.items():
            typer.echo(f"  {what} {name}: {format_count(count)}")
    for quantity, error in stats["forecast_error"].items():
        typer.echo(f"  forecast of {quantity}: off by {100 * error['median']:.0f} % (median of {error['n']})")
    for machine, entries in machines.items():
        for entry in entries:
            typer.echo(
                f"  machine {machine[:8]}, model {entry.model[:8]}, {entry.method}: {entry.tokens_per_s:.0f} tokens/s "
                f"over {format_duration(entry.train_s)}"
            )


@app.command("export")
def export_store(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, or an earlier export, which is replaced.")],
    store: StorePath = None,
    study: Annotated[str | None, typer.Option(help="Only the ended runs of this study or task list.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write what is remembered as Parquet, one file a table, with where it comes from."""
    from foretune.errors import Place, StoreError
    from foretune.experience.parquet import export
    from foretune.experience.store import default_path

    opened = _open(store)
    if opened is None:
        raise StoreError(
            "there is no store here.", place=Place(store or default_path()), remedy="Run `foretune fit` first."
        )
    with opened:
        provenance = export(opened, folder, study=study)
    total = sum(provenance["rows"].values())
    typer.echo(json.dumps(provenance, indent=2) if as_json else f"{folder}: {format_count(total)} rows.")


@app.command("import")
def import_results(
    source: Annotated[
        Path, typer.Argument(help="An exported folder, peft's comparison results (JSON), a sweep (CSV), or a folder.")
    ],
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Add the runs of another store or of public results; importing the same again changes nothing."""
    from foretune.experience.importers import import_into
    from foretune.experience.store import Store

    with Store(store) as opened:
        done = import_into(opened, source)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    how = ", ".join(f"{format_count(count)} {status}" for status, count in sorted(done.by_status.items()))
    typer.echo(
        f"{format_count(done.runs)} runs in {format_count(done.files)} files ({how}); {format_count(done.new)} new."
    )


@app.command("set-aside")
def set_store_aside(store: StorePath = None, as_json: AsJson = False) -> None:
    """Move the store out of the way, deleting nothing; the next run begins a new one."""
    from foretune.experience.store import default_path, set_aside

    place = store or default_path()
    target = set_aside(place)
    moved = {"from": str(place), "to": str(target)}
    typer.echo(json.dumps(moved) if as_json else f"{place} is now {target}.")
