"""``foretune study``: run a paired study, look at its results, list those that are shipped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.cli.options import AsJson, Plugins
from foretune.errors import UsageError
from foretune.units import format_duration, parse_duration

app = typer.Typer(no_args_is_help=True, help="Paired studies: arms × tasks × sizes × seeds, with intervals.")

LINE_S = 15.0
"""Between two progress lines of one run."""


@app.command("run")
def run(
    grid: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a shipped study.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study [default: NAME-study].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study begun in the output folder.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try runs once more that died or ran out of memory.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Your data instead of the grid's tasks: a file, or NAME=FILE; repeatable.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models instead of the grid's; repeatable.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Run on a Ray cluster: its address, auto, or local.")] = None,
    plugin: Plugins = None,
    limit: Annotated[
        str | None, typer.Option("--time", help="Stop after this long, like 2h; --resume goes on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every cell of a study and compare the arms in pairs.

    Says before the first run how many runs there are, how long they take and what they can detect. Ctrl-C, a kill
    or the end of --time lose nothing: the same command, or --resume, goes on. Ends with results.jsonl (a line a
    run), summary.json and table.md in the output folder.
    """
    if grid is None and not resume:
        raise UsageError(
            "there is no study to run.", remedy="Say `foretune study run GRID.yaml`; `foretune study list` shows some."
        )
    if grid is None and output is None:
        raise UsageError("--resume needs to know where.", remedy="Say `foretune study run --output FOLDER --resume`.")
    time_s = None if limit is None else parse_duration(limit)
    from foretune.plugins import load as load_plugins
    from foretune.study.kinds import ARMS, kind_of, module_of
    from foretune.study.results import ACCIDENTS
    from foretune.study.run import run_study
    from foretune.study.tables import plain

    load_plugins(plugin or ())
    folder = output or Path(f"{Path(str(grid)).stem.replace(':', '-')}-study")
    shown = _Json() if as_json else _Lines()
    if grid is not None and (kind := kind_of(grid)) != ARMS:
        given = {
            "--data": data, "--model": model, "--resume": resume, "--retry-failed": retry_failed,
            "--workers": workers != 1, "--ray": ray,
        }  # fmt: skip
        if lacking := [name for name, value in given.items() if value]:
            remedy = "Leave it out: the same command goes on where it stopped."
            raise UsageError(f"a study of the kind {kind} has no {' and no '.join(lacking)}.", remedy=remedy)
        answer = module_of(kind).run(grid, folder, time_s=time_s, on_event=shown.event)
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    asked: Any = grid
    if data or model:
        if grid is None:
            raise UsageError("--data and --model change a grid.", remedy="Name the grid they change.")
        from foretune.study.grid_file import load_grid, replaced

        asked = replaced(load_grid(grid), data or (), model or ())
    result = run_study(
        asked, folder, resume=resume, retry_failed=retry_failed, workers=workers, time_s=time_s, on_event=shown.event,
        ray=ray, plugins=plugin or (),
    )  # fmt: skip
    if as_json:
        facts = {"event": "finished", "folder": str(folder), "why": result.reason, "summary": result.summary.to_json()}
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo("")
    typer.echo(plain(result.summary))
    if not result.summary.complete:
        typer.echo(f"Stopped: {result.reason}. Continue with: foretune study run --output {folder} --resume")
    elif any(one["status"] in ACCIDENTS for one in result.summary.failed):
        typer.echo(f"Try those that failed once more: foretune study run --output {folder} --resume --retry-failed")
    typer.echo(f"results.jsonl, report.html, table.md and priors.yaml are in {folder}")


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a study, finished or not.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show what a study has found so far, and write its report.html, table.md and priors.yaml afresh."""
    from foretune.plugins import load as load_plugins
    from foretune.study.outputs import write_outputs
    from foretune.study.tables import markdown, plain

    load_plugins(plugin or ())
    found = write_outputs(folder)
    if as_json:
        typer.echo(json.dumps(found.summary.to_json(), ensure_ascii=False))
        return
    typer.echo(markdown(found.summary) if as_markdown else plain(found.summary))
    if not as_markdown:
        typer.echo(f"With charts: {found.material.folder.report}")


@app.command("rules")
def rules(
    folder: Annotated[Path | None, typer.Argument(help="The folder of a study; without it, published rules.")] = None,
    use: Annotated[
        bool, typer.Option("--use", help="Let plan and fit read these rules from beside the experience store.")
    ] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show the rules that a study resolves, and what it does not; without a folder those of the literature.

    Rules are written to priors.yaml in the study's folder. With --use they are copied beside the experience store,
    where every later plan and fit finds them; rules of other studies there stay.
    """
    from foretune.catalogue.rules import LITERATURE

    if folder is None:
        if use:
            raise UsageError("there is no study to take rules from.", remedy="Say `foretune study rules DIR --use`.")
        _show_rules([_plain_rule(rule) for rule in LITERATURE], [], as_json)
        return
    from foretune.plugins import load as load_plugins
    from foretune.study.outputs import use_rules, write_outputs

    load_plugins(plugin or ())
    found = write_outputs(folder)
    _show_rules([_plain_rule(rule) for rule in found.ruling.rules], list(found.ruling.unresolved), as_json)
    if use:
        path = use_rules(found)
        if not as_json:
            typer.echo(f"plan and fit now read {path}")


def _plain_rule(rule: Any) -> dict[str, Any]:
    return {"id": rule.id, "rule": rule.citation, "advice": dict(rule.advice), "avoid": list(rule.avoid)}


def _show_rules(made: list[dict[str, Any]], unresolved: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"rules": made, "not_resolved": unresolved}, ensure_ascii=False))
        return
    for rule in made:
        advice = ", ".join(f"{key} = {value}" for key, value in rule["advice"].items())
        typer.echo(f"{rule['id']}: {rule['rule']}{f'; advises {advice}' if advice else ''}")
    if not made:
        typer.echo("no rule: nothing that was tried is resolved")
    for line in unresolved:
        typer.echo(f"- {line}")


@app.command("list")
def list_studies(as_json: AsJson = False) -> None:
    """List the studies that are shipped."""
    from foretune.report.text import aligned
    from foretune.study.grid_file import load_grid, presets
    from foretune.study.kinds import ARMS, kind_of, module_of

    rows: list[dict[str, Any]] = []
    for name in presets():
        if (kind := kind_of(name)) != ARMS:
            rows.append({"name": name, "runs": 0, "arms": [], "tasks": [], "about": module_of(kind).about(name)})
            continue
        grid = load_grid(name)
        arms = sum(len(grid.arms_on(task)) for task in grid.tasks)
        cells = len(grid.model) * arms * len(grid.sizes) * len(grid.seeds)
        rows.append(
            {"name": name, "runs": cells, "arms": list(grid.arms), "tasks": list(grid.tasks), "about": grid.about}
        )
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = [[r["name"], str(r["runs"] or "–"), r["about"]] for r in rows]
    typer.echo(aligned(["study", "runs", "about"], table, left=(0, 2)))


class _Json:
    """One JSON object a line."""

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Print the event."""
        typer.echo(json.dumps({"event": kind, "time": round(time.time(), 3), **payload}, ensure_ascii=False))


class _Lines:
    """Plain lines with the time since the start."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._last: dict[str, float] = {}

    def event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Say what a reader wants to know."""
        if kind == "step" and "run" in payload:
            now = time.monotonic()
            if now - self._last.setdefault(payload["run"], now) < LINE_S:
                return
            self._last[payload["run"]] = now
        for text in sentences(kind, payload):
            typer.echo(f"[{format_duration(time.monotonic() - self._since):>12}] {text}")


def sentences(kind: str, payload: Mapping[str, Any]) -> list[str]:
    """An event in words; nothing for what need not be said."""
    if kind == "progress":
        return [str(payload["line"])]
    if kind == "prepared":
        rows = payload["rows"]
        counted = f"{rows['train']:,} training, {rows['validation']:,} validation, {rows['test']:,} test rows"
        further = "".join(f", {number:,} of {name}" for name, number in payload.get("tests", {}).items())
        return [f"{payload['task']}: {counted}{further}"]
    if kind == "design":
        return [str(line) for line in payload["sentences"]]
    if kind == "selection":
        return [f"{payload['arm']} on {payload['pair']}: {payload['kept']:,} rows kept in {payload['seconds']:.1f} s"]
    if kind == "rates":
        chosen = ", ".join(f"{arm} {rate:g}" for arm, rate in payload["rates"].items())
        return [f"learning rates: {chosen}", *payload["notes"]]
    if kind == "step" and "run" in payload:
        loss = "not finite" if payload["loss"] is None else f"{payload['loss']:.3f}"
        return [f"{_which(payload)}: step {payload['step']} of {payload['of']}, loss {loss}"]
    if kind == "observation" and payload["observation"]["final"]:
        return [f"{_which(payload)}: {_ending(payload['observation'])}"]
    return []


def _which(payload: Mapping[str, Any]) -> str:
    return f"run {payload['number']} of {payload['cells']}, {payload['arm']} on {payload['pair']}"


def _ending(observation: Mapping[str, Any]) -> str:
    if observation["status"] != "ok":
        return f"{observation['status']} {observation['detail']}".strip()
    value, error, _ = observation["metrics"]["loss"]
    return f"validation loss {value:.4f} ± {error:.4f}"
