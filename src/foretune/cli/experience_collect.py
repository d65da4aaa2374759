"""``foretune experience collect``: train a shared design of configurations over a task list, into the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.units import format_duration, parse_duration

LONGEST_DETAIL = 100
SECONDS_AN_HOUR = 3600.0


def collect(
    tasks: Annotated[str, typer.Argument(help="A task list: a YAML file, or the name of a shipped one.")],
    output: Annotated[Path | None, typer.Option(help="Folder for prepared tasks and logs [NAME-collection].")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="The store's file; default: your own.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time, each in a process of its own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Train on a Ray cluster: its address, auto, or local.")] = None,
    limit: Annotated[str | None, typer.Option("--time", help="Stop after this long, like 2h.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Prepare, say what there is to do, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Train the runs of a task list that the store does not hold yet.

    Says before the first run how many runs there are and how long they take. Every rung is recorded with loss and
    metric, the test rows are scored at the end, failures are kept. Ctrl-C, SIGTERM and a kill lose at most the runs
    under way: the same command goes on. Several collectors may fill one store.
    """
    from foretune.collect.run import collect as run

    folder = output or Path(f"{Path(tasks).stem}-collection")
    shown = _Shown(as_json)
    time_s = None if limit is None else parse_duration(limit)
    result = run(
        tasks,
        folder,
        store=store,
        workers=workers,
        threads=threads,
        time_s=time_s,
        dry=dry,
        ray=ray,
        on_event=shown.event,
    )
    shown.event("finished", result.to_json())


class _Shown:
    """Events as JSON, or as lines with the time since the start."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._since = time.monotonic()

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Print an event, if there is something to say about it."""
        if self._as_json:
            typer.echo(json.dumps({"event": kind, "time": round(time.time(), 3), **payload}, ensure_ascii=False))
        elif (said := sentence(kind, payload)) is not None:
            typer.echo(f"[{format_duration(time.monotonic() - self._since):>12}] {said}")


def sentence(kind: str, payload: Mapping[str, Any]) -> str | None:
    """An event in words; None for what need not be said."""
    match kind:
        case "progress":
            return str(payload["line"])
        case "prepared":
            rows = payload["rows"]
            return f"{payload['task']}: {rows['train']} training, {rows['validation']} validation, {rows['test']} test"
        case "plan":
            left, hours = payload["runs"] - payload["done"], payload["run_hours"]
            wall = format_duration(payload["wall_hours"] * SECONDS_AN_HOUR)
            return f"{payload['runs']} runs, {payload['done']} of them done; {left} left: {hours:.1f} run-hours, {wall}"
        case "ended":
            scores = payload.get("scores", {})
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            how = payload["status"] + (f" ({payload['detail'][:LONGEST_DETAIL]})" if payload["detail"] else "")
            where = f"{payload['done']} of {payload['runs']}: {payload['arm']} on {payload['task']}"
            took = f", {format_duration(payload['seconds'])}" if "seconds" in payload else ""
            return f"{where}: {how}{took}" + (f"; {payload['split']} {listed}" if listed else "")
        case "waiting":
            return f"waiting for other collectors, which hold {payload['runs']} runs"
        case "finished":
            counted = f"{payload['finished']} finished, {payload['failed']} failed, {payload['left']} left"
            return f"{counted}: {payload['reason']}"
    return None
