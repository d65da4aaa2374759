"""The rankings of a study's cells: made before the runs, each once, with what they took.

A run would make its ranking itself; made here, its seconds are known apart from training, and where runs are matched
on answer tokens the number of steps can follow from the length of the rows that were kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.catalogue.selection import NONE, Keep, Pool, declaration, names_in, needed, parse, selection_keys, work_of
from foretune.errors import UsageError
from foretune.execution.drive import Stopped, Watch, run_jobs
from foretune.execution.orders import subset
from foretune.execution.types import Executor, Job
from foretune.files import append_line, fingerprint, read_lines
from foretune.study.design import EPOCH_DIGITS, StudyCell
from foretune.study.grid import GridSpec
from foretune.study.tasks import StudyTask

Tasks = Mapping[tuple[str, str], StudyTask]
PREFIX = "select-"
"""Of the job of a ranking, before its key."""


def check_targets(grid: GridSpec) -> None:
    """Refuse arms that need a target on tasks that have none. Raises `UsageError`."""
    for arm in grid.arms:
        text = str(grid.config(arm).get("selection", NONE))
        if not needed(names_in(text))[1]:
            continue
        for name, task in grid.tasks.items():
            if task.target is None and arm in grid.arms_on(name):
                raise UsageError(
                    f"arm {arm} needs to know what the rows are for, and task {name} does not say.",
                    remedy=f"Give tasks.{name}.target a file, or validation.",
                )


def key_of(cell: StudyCell) -> str:
    """What a ranking is for, ``keep`` included."""
    return fingerprint([cell.model, cell.task, cell.size, cell.rows, cell.seed, selection_keys(cell.config)])


def selects(cell: StudyCell) -> bool:
    """Whether a cell trains on chosen rows."""
    return str(cell.config.get("selection", NONE)) != NONE


def ranked_cells(
    grid: GridSpec,
    listed: Sequence[StudyCell],
    tasks: Tasks,
    executor: Executor,
    watch: Watch,
    path: Path,
    left: Callable[[], float | None],
) -> tuple[StudyCell, ...] | None:
    """The cells with what their selections took; None when time ended before all were made.

    ``path`` keeps what is done. Raises `Stopped` when told to, and what selectors refuse.
    """
    matched = grid.horizon.match == "answer-tokens"
    known: dict[str, dict[str, Any]] = {entry["key"]: entry["facts"] for entry in read_lines(path)}
    missing = {key_of(cell): cell for cell in listed if matched or selects(cell)}
    missing = {key: cell for key, cell in missing.items() if key not in known}

    def told(job: Job, facts: dict[str, Any]) -> None:
        if not facts.pop("complete"):
            raise Stopped
        key = job.id.removeprefix(PREFIX)
        append_line(path, {"key": key, "facts": facts})
        known[key] = facts
        watch.on_event("selection", {"arm": missing[key].arm, "pair": missing[key].pair, **facts})

    first = {ranking_of(cell): key for key, cell in reversed(missing.items())}
    for keys in (first.values(), missing.keys() - set(first.values())):  # what shares a ranking reads it afterwards
        jobs = [_job(key, missing[key], tasks[missing[key].model, missing[key].task]) for key in missing if key in keys]
        run_jobs(executor, jobs, watch, told, out_of_time=lambda: (seconds := left()) is not None and seconds <= 0)
    if missing.keys() - known.keys():
        return None
    found = [replace(cell, selection=known[key_of(cell)]) if selects(cell) else cell for cell in listed]
    if not matched:
        return tuple(found)
    whole = {cell.pair: known[key_of(cell)]["answer_tokens"] for cell in listed if not selects(cell)}
    return tuple(_matched(cell, whole) for cell in found)


def _job(key: str, cell: StudyCell, task: StudyTask) -> Job:
    pool = None if cell.rows == task.rows["train"] else list(subset(cell.rows, task.rows["train"], cell.seed))
    payload = {"config": dict(cell.config), "seed": cell.seed, "rows": pool}
    return Job(f"{PREFIX}{key}", "select", task.spec, payload)


def ranking_of(cell: StudyCell) -> str:
    """Which ranking a cell reads: a nested one serves every share, one without a seed every seed."""
    settings = selection_keys(cell.config)
    text = str(settings["selection"])
    if text == NONE:
        return key_of(cell)
    declared = [declaration(name) for name in names_in(text)]
    if all(one.nested for one in declared) and len(parse(text)) == 1:
        settings.pop("keep")
    seed = cell.seed if any(one.follows_seed for one in declared) else None
    return fingerprint([cell.model, cell.task, cell.size, seed, settings])


def _matched(cell: StudyCell, whole: Mapping[str, float]) -> StudyCell:
    """The cell with as many steps as give it the answer tokens that the unselected arm of its pair sees."""
    if cell.selection is None:
        return cell
    if cell.pair not in whole:
        raise UsageError(
            "runs cannot be matched on answer tokens without an arm that trains on all rows.",
            remedy="Add an arm without a selection, or leave horizon.match out.",
        )
    factor = whole[cell.pair] / float(cell.selection["answer_tokens"])
    steps = max(1, round(cell.horizon * factor))
    epochs = max(round(float(cell.config["epochs"]) * steps / cell.horizon, EPOCH_DIGITS), 10.0**-EPOCH_DIGITS)
    return replace(cell, horizon=steps, config={**cell.config, "epochs": epochs})


def forecast_seconds(listed: Sequence[StudyCell], tasks: Tasks, probes: Mapping[tuple[str, str], Any]) -> float:
    """Seconds that all rankings will take, each once: nested ones serve every share, those without a seed every seed.

    Scores that different selectors share are counted for each.
    """
    total, seen = 0.0, set()
    for cell in listed:
        if not selects(cell):
            continue
        key = ranking_of(cell)
        if key in seen:
            continue
        seen.add(key)
        total += _ranking_seconds(cell, tasks[cell.model, cell.task], probes[cell.model, cell.task])
    return total


def _ranking_seconds(cell: StudyCell, task: StudyTask, probe: Mapping[str, Any]) -> float:
    text, keep = str(cell.config["selection"]), Keep("share", float(cell.config["keep"]))
    half = float(probe["mean_row_tokens"]) / 2
    target, previous = (len(read_lines(Path(task.spec.folder) / f"{name}.jsonl")) for name in ("target", "previous"))
    pool = Pool(cell.rows, keep.rows(cell.rows), half, half, target_rows=target, previous_rows=previous)
    work = work_of(text, pool, {k: v for k, v in cell.config.items() if "." in k}, keep)
    scored, trained = (
        work.scored_tokens / probe["score_tokens_per_s"],
        work.trained_tokens / probe["train_tokens_per_s"],
    )
    return float(scored + trained)
