"""``foretune doctor``: what this machine is, and what a fit here would stumble over."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from foretune.cli.options import AsJson
from foretune.errors import ForetuneError

_MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


def doctor(as_json: AsJson = False) -> None:
    """Check Python, packages, processor, memory, disk and store. Exit code 1 when a fit here would fail."""
    from foretune.execution.health import check_all
    from foretune.execution.machine import detect

    machine = detect()
    checks = check_all(machine)
    failed = [check for check in checks if check.state == "fail"]
    if as_json:
        value = {"ok": not failed, "machine": machine.to_json(), "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        for check in checks:
            typer.echo(f"{_MARKS[check.state]}  {check.name:<18} {check.found}")
            if check.remedy:
                typer.echo(f"{'':<25}{check.remedy}")
        typer.echo(f"{len(failed)} of {len(checks)} checks failed." if failed else "A fit can run here.")
    if failed:
        raise typer.Exit(ForetuneError.exit_code)
