"""``foretune runs``: the finished runs under a folder, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foretune.units import format_duration


def runs(
    root: Annotated[
        Path, typer.Argument(metavar="[ROOT]", help="A run folder, or a folder above run folders.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List finished runs: what was tuned on what, how it ended, and how long it took."""
    from foretune.report.listing import list_runs
    from foretune.report.text import aligned, printable

    listed = list_runs(root)
    if as_json:
        typer.echo(json.dumps([run.to_json() for run in listed], ensure_ascii=False))
        return
    if not listed:
        typer.echo(f"No finished runs under {printable(str(root.absolute()))}.")
        return
    rows = [
        [
            run.folder,
            run.data,
            run.model,
            run.outcome if not run.problem else f"unreadable: {run.problem}",
            "" if run.seconds is None else format_duration(run.seconds),
            run.finished[:16].replace("T", " "),
        ]
        for run in listed
    ]
    typer.echo(printable(aligned(["folder", "data", "model", "against the base", "took", "finished"], rows)))
