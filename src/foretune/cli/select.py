"""``foretune select``: keep the rows worth training on, with the estimate before and a report after."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foretune.cli.options import AnswerColumn, AsJson, LabelColumn, PairColumn, PromptColumn, TextColumn
from foretune.errors import Interrupted, Place, UsageError
from foretune.units import format_bytes, format_duration

if TYPE_CHECKING:
    from foretune.selection.base import Cost, Speeds

LINE_S = 10.0
"""Between two progress lines."""


def select(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, a hub id, or the name of a data set.")] = None,
    method: Annotated[str, typer.Option(help="A selector or a chain, like ifd or ifd:60%+k-centre.")] = "random",
    keep: Annotated[str, typer.Option(help="How much to keep: 30%, 500, or '200k tokens'.")] = "30%",
    model: Annotated[str | None, typer.Option(help="The model that scores [default: the catalogue's].")] = None,
    target: Annotated[str | None, typer.Option(help="Rows like those to be good at.")] = None,
    previous: Annotated[str | None, typer.Option(help="Rows that the model was trained on before.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the kept rows go, as JSON lines [default: DATA-kept.jsonl].")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A selector's setting, like ifd.ratio=loss.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    context: Annotated[int, typer.Option(min=8, help="Longest row in tokens.")] = 2048,
    format: Annotated[str | None, typer.Option(help="How rows are written; found when not given.")] = None,
    prompt_column: PromptColumn = None,
    answer_column: AnswerColumn = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    task: Annotated[str | None, typer.Option(help="What the rows are; found from them.")] = None,
    on_bad_row: Annotated[
        Literal["error", "quarantine"], typer.Option(help="Stop at bad rows, or set them aside.")
    ] = "error",
    workers: Annotated[int, typer.Option(min=1, help="Processes that score, each with the model in memory.")] = 1,
    store: Annotated[Path | None, typer.Option(help="Folder that keeps scores between runs [default: cache].")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it will take.")] = False,
    list_selectors: Annotated[bool, typer.Option("--list", help="List the selectors with their costs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose the rows of DATA that are worth training on.

    Says first what it will take. Leaves the kept rows (best first), a manifest and a report. Ctrl-C loses nothing:
    the same command goes on with the scores there are.
    """
    if list_selectors:
        _list(as_json)
        return
    if data is None:
        raise UsageError("there is no data.", remedy="Say `foretune select DATA --method ifd --keep 30%`.")
    from foretune.catalogue.selection import names_in, parse_keep
    from foretune.data.columns import Columns
    from foretune.fit import select as job_of
    from foretune.fit.selected import other_rows

    output = output or Path(f"{Path(data).stem.replace(':', '-') or 'data'}-kept.jsonl")
    if not estimate:
        job_of.check_outputs(output, {"data": data, "target rows": target, "previous rows": previous})
    names_in(method)
    wanted, fields = parse_keep(keep), _fields(sets or [])
    columns = Columns(
        prompt=prompt_column, answer=answer_column, label=label_column, text=text_column, pair=pair_column
    )
    found, pool = job_of.read_pool(data, columns=columns, task=task, format=format, on_bad_row=on_bad_row)
    said = {"data.format": format, "data.task": task, "data.on_bad_row": on_bad_row}
    said |= {f"data.columns.{name}": column for name, column in columns.named().items()}
    options = {key: value for key, value in said.items() if value is not None}
    job = job_of.SelectionJob(
        examples=pool, task=found.task, method=method, keep=wanted, target=other_rows(target, found.task),
        previous=other_rows(previous, found.task), model=model, fields=fields, seed=seed,
        context_tokens=context, store=store,
    )  # fmt: skip
    cost = job_of.estimate(job, *(_speeds(data, model, options) if job.needs_model else ()))
    if not as_json or estimate:
        typer.echo(_estimate(cost, as_json))
    if estimate:
        return
    if found.quarantined and not as_json:
        typer.echo(f"{found.quarantined:,} of {found.rows_read:,} rows cannot be used; they are in {found.quarantine}")
    chosen, facts = _carried_out(job, output, workers, quiet=as_json)
    job_of.hand_over(job, chosen, facts, output, Path(data).name)
    paths = {name: str(path) for name, path in job_of.outputs(output).items()}
    if as_json:
        shown = {"estimate": vars(cost), "manifest": dict(chosen.manifest), "portrait": facts, "files": paths}
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    _tell(chosen.manifest, facts, paths)


def _carried_out(job: Any, output: Path, workers: int, *, quiet: bool) -> Any:
    """Run the selection with progress and a way to stop."""
    from foretune.execution.interrupts import interrupts
    from foretune.fit.select import run_selection
    from foretune.selection.base import SelectionStopped

    progress = _Progress(quiet)
    with interrupts() as stopped:
        try:
            return run_selection(job, workers=workers, on_progress=progress, stopped=stopped.is_set)
        except SelectionStopped:
            raise Interrupted(
                "interrupted; the scores so far are kept.",
                place=Place(output),
                remedy="The same command goes on with them.",
            ) from None


class _Progress:
    """Lines with what is left, at most one in `LINE_S` seconds."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._what = ""
        self._began = self._said = time.monotonic()
        self._from = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `Request.on_progress`."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._said, self._from = what, now, now, done
            return
        if self.quiet or now - self._said < LINE_S or done <= self._from:
            return
        self._said = now
        left = (total - done) * (now - self._began) / (done - self._from)
        typer.echo(f"{what.replace('-', ' ')}: {done:,} of {total:,}, about {format_duration(left)} left")


def _fields(sets: list[str]) -> dict[str, Any]:
    """``--set ifd.ratio=loss`` as selectors' settings. Raises `UsageError` for what is none."""
    from foretune.catalogue.selection import config_part
    from foretune.config.load import nearest, scalar

    space, fields = config_part(), {}
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {assignment} is no selector's setting.", remedy="Write it like ifd.ratio=loss.")
        if key not in space.names():
            raise UsageError(f"{key} is not a selector's setting.", remedy=nearest(key, space.names()))
        fields[key] = space[key].check(scalar(value))
    return fields


def _speeds(data: str, model: str | None, options: Mapping[str, Any]) -> tuple[Speeds, tuple[float, float]]:
    """What a plan of the same data and model knows: this machine's speed, and the mean row's tokens."""
    from foretune.fit import plan
    from foretune.fit.history import known_history
    from foretune.selection.base import Speeds

    history, outcomes = known_history()
    made = plan(data, model=model, options=options, history=history, outcomes=outcomes)
    units = made.forecast.units
    speeds = Speeds(
        score_tokens_per_s=units.score_tokens_per_s.value,
        train_tokens_per_s=units.train_tokens_per_s.value,
        operations_per_token=2.0 * made.model.shapes.parameters,
    )
    return speeds, (made.rows.count.row.prompt, made.rows.count.row.answer)


def _estimate(cost: Cost, as_json: bool) -> str:
    if as_json:
        return json.dumps(vars(cost))
    if not cost.seconds and not cost.tokens:
        return "estimate: no model pass, next to nothing"
    work = f"{cost.tokens:,} tokens" if cost.tokens else "no model pass"
    return (
        f"estimate: {work}, about {format_duration(cost.seconds)}, {format_bytes(cost.memory_bytes)} beside the model, "
        f"{format_bytes(cost.disk_bytes)} of scores on disk"
    )


def _tell(manifest: Mapping[str, Any], facts: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    """The end on the terminal."""
    from foretune.report.selection_page import cost_sentence, measure_rows, summary
    from foretune.report.text import aligned, printable

    typer.echo(f"{summary(facts)}. {cost_sentence(manifest)}")
    typer.echo(aligned(["measure", "kept", "random rows"], measure_rows(facts)))
    for name, one in facts["sources"].items():
        typer.echo(printable(f"  {name}: {one['kept']:,} of {one['rows']:,} rows"))
    typer.echo(f"rows: {paths['rows']}\nmanifest: {paths['manifest']}\nreport: {paths['report']}")


def _list(as_json: bool) -> None:
    """Every selector with what it needs and costs."""
    from foretune.catalogue.selectors import SELECTORS
    from foretune.report.text import aligned

    rows = [
        {
            "name": one.name, "about": one.about, "family": one.family, "cost": one.cost,
            "needs": [word for word, needs in (("model", one.needs_model), ("target", one.needs_target)) if needs],
            "moment": one.moment, "settings": list(one.space.names()), "source": one.source,
        }
        for one in SELECTORS.values()
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = [[str(r["name"]), " ".join(r["needs"]) or "–", str(r["cost"]), str(r["about"])] for r in rows]
    typer.echo(aligned(["selector", "needs", "cost", "about"], table, left=range(4)))
