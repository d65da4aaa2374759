"""``foretune report``: render a run's report again from its ``result.json`` and print the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")] = Path(),
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print verdict, path and the whole record as JSON.")] = False,
) -> None:
    """Render report.html from a run's result.json, and print the verdict and the comparison."""
    from foretune.report.html import write_report
    from foretune.report.record import read_record
    from foretune.report.text import rich_summary, summary
    from foretune.report.wording import outcome, verdict

    record = read_record(folder)
    folder = folder.parent if folder.is_file() else folder
    path = write_report(folder, record).absolute()
    if open_:
        typer.launch(str(path))
    if as_json:
        value = {
            "report": str(path),
            "outcome": outcome(record),
            "verdict": verdict(record),
            "record": record.to_json(),
        }
        typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(rich_summary(record, folder))
        console.print(f"report   {path}", markup=False, highlight=False)
    else:
        typer.echo(f"{summary(record, folder)}\nreport   {path}")
