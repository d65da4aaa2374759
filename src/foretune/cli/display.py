"""What a fit shows while it runs: bars on a terminal, plain lines elsewhere, JSON events with ``--json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from foretune.units import format_bytes, format_duration

if TYPE_CHECKING:
    from foretune.fit.job import FitResult

LINE_S = 15.0
"""Between two progress lines of one trial where there is no terminal."""


class Display(Protocol):
    """Sees the events of a fit."""

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Something happened."""
        ...

    def finish(self, result: FitResult) -> None:
        """The run is over."""
        ...


@contextmanager
def display(*, as_json: bool) -> Iterator[Display]:
    """The display that fits the output."""
    if as_json:
        yield JsonLines()
    elif sys.stdout.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines()


class JsonLines:
    """One JSON object a line: ``{"event": …, …}``."""

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Print the event."""
        if kind == "plan":
            payload = payload["plan"].to_json()
        typer.echo(json.dumps({"event": kind, "time": round(time.time(), 3), **payload}, ensure_ascii=False))

    def finish(self, result: FitResult) -> None:
        """Print the outcome."""
        from foretune.report.wording import verdict

        facts = {"event": "finished", "folder": str(result.folder), "verdict": verdict(result.record)}
        typer.echo(json.dumps(facts, ensure_ascii=False))


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._last: dict[str, float] = {}
        self._rules: Sequence[str] = ()

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        typer.echo(f"[{format_duration(time.monotonic() - self._since):>12}] {text}")

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Say what a reader of a log wants to know."""
        if kind == "plan":
            from foretune.cli.plan import lines, rules

            self._rules = rules(payload["plan"])
            for line in lines(payload["plan"]):
                typer.echo(line)
            typer.echo("")
        elif kind == "step" and "run" in payload:
            now = time.monotonic()
            if now - self._last.get(payload["run"], 0.0) > LINE_S:
                self._last[payload["run"]] = now
                self.say(f"{payload['run']}: step {payload['step']} of {payload['of']}, {_loss(payload['loss'])}")
        elif kind == "beat" and "selecting" in payload:
            now = time.monotonic()
            if now - self._last.setdefault("selection", now) > LINE_S:
                self._last["selection"] = now
                self.say(f"selection: {payload['selecting']}, {payload['done']} of {payload['of']}")
        elif (text := sentence(kind, payload, self._rules)) is not None:
            self.say(text)

    def finish(self, result: FitResult) -> None:
        """The comparison and where everything is."""
        from foretune.report.text import summary

        typer.echo("")
        typer.echo(summary(result.record, result.folder))


class Bars:
    """A progress bar for every running trial, sentences above them."""

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._rules: Sequence[str] = ()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Move the bars and say sentences above them."""
        if kind == "plan":
            from foretune.cli.plan import lines, rules

            self._rules = rules(payload["plan"])
            self._progress.print("\n".join(lines(payload["plan"])), markup=False, highlight=False)
        elif kind == "step" and "run" in payload:
            self._bar(payload["run"], payload["step"], payload["of"], _loss(payload["loss"]))
        elif kind == "beat" and "selecting" in payload:
            self._bar(f"selection: {payload['selecting']}", payload["done"], payload["of"], "")
        elif kind == "lease":
            lease = payload["lease"]
            self._bar(lease["run"], lease["from_step"], lease["horizon"], "")
            self._progress.print(sentence(kind, payload, self._rules), markup=False, highlight=False)
        elif (text := sentence(kind, payload, self._rules)) is not None:
            if kind == "observation" and payload["observation"]["final"]:
                run = payload["lease"]["run"]
                if run in self._tasks:
                    self._progress.remove_task(self._tasks.pop(run))
            self._progress.print(text, markup=False, highlight=False)

    def _bar(self, run: str, done: int, total: int, loss: str) -> None:
        if run not in self._tasks:
            self._tasks[run] = self._progress.add_task(run, total=total, loss=loss)
        self._progress.update(self._tasks[run], completed=done, loss=loss)

    def finish(self, result: FitResult) -> None:
        """The comparison and where everything is."""
        from foretune.report.text import rich_summary

        self._progress.stop()
        self._console.print(rich_summary(result.record, result.folder))


def _loss(value: float | None) -> str:
    return "loss not finite" if value is None else f"loss {value:.3f}"


def sentence(kind: str, payload: Mapping[str, Any], rules: Sequence[str] = ()) -> str | None:
    """An event in words, with ``rules`` cited by their numbers in the plan; None for what need not be said."""
    if kind == "progress":
        return str(payload["line"])
    if kind == "prepared":
        rows = payload["rows"]
        return f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test rows"
    if kind == "probe":
        return (
            f"probe: base loss {payload['base_loss']:.3f}, {payload['train_tokens_per_s']:.0f} tokens/s trained, "
            f"{payload['score_tokens_per_s']:.0f} scored"
        )
    if kind == "forecast":
        return after_probe(payload)
    if kind == "selection":
        share = f"{payload['kept']:,} rows kept"
        return f"{share}, ranked in {format_duration(payload['seconds'])}" if payload["seconds"] else share
    if kind == "base":
        value, error, count = payload["loss"]
        return f"base model: validation loss {value:.3f} ± {error:.3f} on {count} rows"
    if kind == "search":
        return " ".join(part for part in (payload["why"], payload["note"]) if part)
    if kind == "lease":
        from foretune.cli.plan import by_number

        lease = payload["lease"]
        return f"{lease['run']}: steps {lease['from_step']} to {lease['to_step']} — {by_number(lease['why'], rules)}"
    if kind == "observation":
        return _observed(payload["lease"], payload["observation"])
    if kind == "searched":
        return f"the search ended: {payload['why']}"
    if kind == "finalists":
        best = payload["candidates"][0]
        return f"best on all validation rows: {best['run']} at step {best['step']}, loss {best['loss'][0]:.3f}"
    return None


def after_probe(forecast: Mapping[str, Any]) -> str:
    """The second forecast: the whole fit, a run of the default LoRA or the only one, and the peak memory."""
    from foretune.cost.forecast import DEFAULT_RUN, SEARCH_PHASES

    phases = {phase["name"]: phase["seconds"] for phase in forecast["phases"]}
    first, seconds = next((name, phases[name]) for name in SEARCH_PHASES if name in phases)
    first = f"the {first}" if first == DEFAULT_RUN else first
    return (
        f"after the probe: whole run {_between(forecast['seconds'], format_duration)}; {first}"
        f" {_between(seconds, format_duration)} for {forecast['steps_per_run']} steps;"
        f" memory {_between(forecast['memory_bytes'], format_bytes)}"
    )


def _between(bounds: Sequence[float], show: Callable[[float], str]) -> str:
    low, value, high = (show(bound) for bound in bounds)
    return value if low == high else f"{value} ({low} to {high})"


def _observed(lease: Mapping[str, Any], observation: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, (value, _, _) in observation["metrics"].items())
    outcome = scores or f"{observation['status']} {observation['detail']}".strip()
    return f"{lease['run']}: at step {observation['step']} of {lease['horizon']}: {outcome}"
