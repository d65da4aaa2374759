"""The main job, top to bottom: plan → prepare → probe → search → re-evaluate → compare → hand over → remember.

Every phase leaves its result in the run folder before the next begins, so a killed or interrupted run continues
where it was; a finished phase is never repeated. The time budget covers all of it but the download of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretune.config.resolve import write_resolved
from foretune.errors import Interrupted, OutputError, Place
from foretune.execution.drive import Stopped, Watch
from foretune.execution.group import group_command
from foretune.execution.interrupts import interrupts
from foretune.execution.local import LocalExecutor
from foretune.execution.ray import RayExecutor
from foretune.files import FolderLock
from foretune.fit.account import Outcome, record
from foretune.fit.begun import with_rows_as_begun
from foretune.fit.finals import Evaluator, answer_test_rows, chosen_by_validation
from foretune.fit.folder import Clock, RunFolder
from foretune.fit.handover import exported, hand_over
from foretune.fit.method_choice import method_notes
from foretune.fit.opening import opened
from foretune.fit.plan import Plan
from foretune.fit.remember import recorded, recorder, remember
from foretune.fit.request import FitRequest, saved_identity
from foretune.fit.schedule import before_export
from foretune.fit.session import Session
from foretune.fit.trials import Search, budget_of, open_search, run_trials
from foretune.fit.warm_start import warm_start_notes
from foretune.report.record import RunRecord, read_record
from foretune.search.ranking import Finalist, finalists

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FitResult:
    """What a fit hands back."""

    folder: Path
    record: RunRecord

    @property
    def adapter(self) -> Path:
        """The folder of the adapter (or of the whole model after full fine-tuning)."""
        return self.folder / "adapter"


def run_fit(
    plan: Plan,
    request: FitRequest,
    output: Path,
    *,
    on_event: OnEvent = lambda kind, payload: None,
    command: str = "foretune.fit",
    worker: list[str] | None = None,
) -> FitResult:
    """Carry out ``plan`` (made from ``request``) in the folder ``output``, or continue what was begun there.

    Raises `Interrupted` after Ctrl-C or SIGTERM (the run can be resumed), and every `ForetuneError` of its parts.
    ``worker`` replaces the command that starts a worker process.
    """
    folder = RunFolder(output)
    folder.check_free()
    with FolderLock(output), interrupts() as interrupted:
        _check_same(folder, request)
        if folder.finished:
            return FitResult(output, read_record(output))
        folder.clean()
        started = _start(folder, plan, request, command)
        plan = with_rows_as_begun(plan, folder.once)
        clock = Clock(output / "clock.json")
        watch = Watch(interrupted.is_set, clock.tick, on_event)
        executor = _executor(plan, request, folder.logs, worker)
        session = Session(plan, folder, clock, watch, executor, on_event, command, started)
        try:
            with executor:
                return FitResult(output, _carry_out(session))
        except Stopped:
            raise Interrupted(
                "interrupted; nothing is lost.",
                place=Place(output),
                remedy=f"Continue with: foretune fit --resume {output}",
            ) from None


def _executor(plan: Plan, request: FitRequest, logs: Path, worker: list[str] | None) -> LocalExecutor | RayExecutor:
    settings, plugins = plan.resolution.spec.search, [Path(plugin) for plugin in request.plugins]
    if settings.ray is not None:
        return RayExecutor(logs, address=settings.ray, workers=settings.workers, plugins=plugins)
    if settings.processes > 1:
        worker = group_command(settings.processes)
    return LocalExecutor(logs, workers=settings.workers, plugins=plugins, command=worker)


def _check_same(folder: RunFolder, request: FitRequest) -> None:
    """Refuse a request that is not the one begun (or finished) in this folder."""
    begun = saved_identity(folder.root)
    if begun is None or begun == request.identity or request.resumed:
        return
    remedy = "Choose another --output."
    if not folder.finished:
        remedy = f"Continue it with `foretune fit --resume {folder.root}`, or choose another --output."
    raise OutputError(
        "another run was begun in this folder, with other settings.", place=Place(folder.root), remedy=remedy
    )


def _start(folder: RunFolder, plan: Plan, request: FitRequest, command: str) -> str:
    """Write what the run is; returns when it was started."""
    if not folder.started:
        request.save(folder.root)
    if not folder.resolved.exists():
        write_resolved(folder.resolved, plan.resolution)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return str(folder.once("run", lambda: {"started": now, "command": command})["started"])


def _carry_out(session: Session) -> RunRecord:
    """All phases of a fit."""
    opening = opened(session)
    common, prepared, end = opening.common, opening.prepared, opening.end
    search = open_search(
        session.plan, common, budget_of(session.plan, session.clock, end), session.folder.journal, session.folder.once,
        task=opening.task_features, base_losses=opening.base_losses, warm_start=opening.warm_start,
    )  # fmt: skip
    session.on_event("search", {"horizon": search.horizon.steps, "why": search.horizon.why, "note": end.note})
    experience = recorder(session, opening)
    watch = replace(session.watch, on_event=recorded(experience, search.core, opening, session.on_event))
    reason = session.once(
        "searched", "trials", lambda: run_trials(search, session, common.schedule, end, watch, opening.warm_start)
    )
    session.on_event("searched", {"why": reason})
    evaluator = Evaluator(
        prepared, session.folder, session.executor, session.watch, lambda: before_export(session.left())
    )
    best = search.strategy.finalists(search.core.runs)
    candidates = session.once("finalists", "re-evaluation", lambda: chosen_by_validation(evaluator, best, end))
    session.on_event("finalists", {"candidates": candidates})
    winner, step = search.core.run(candidates[0]["run"]), int(candidates[0]["step"])
    default = _default(search)
    with session.clock.phase("comparison"):
        systems, missing = answer_test_rows(evaluator, winner, step, default, end, generation=opening.generation)
    exports, statistics = exported(session, prepared, winner, step)
    outcome = Outcome(
        plan=session.plan,
        refined=opening.refined,
        prepared=prepared,
        probe=opening.probe,
        runs=search.core.runs,
        candidates=candidates,
        systems=systems,
        default=default,
        base_validation=opening.base,
        exported=exports,
        phases=session.clock.phases,
        used_s=session.clock.used(),
        notes=[
            *filter(None, (*opening.notes, search.horizon.why, end.note)),
            f"The search ended: {reason}.",
            *missing,
            *filter(None, (candidates[0].get("why", ""), *method_notes(winner.config, statistics))),
            *warm_start_notes(winner, opening.warm_start),
        ],
        warnings=[f"Trial {run.id} ended as {run.status}: {run.detail}" for run in search.core.runs if run.failed],
        started=session.started,
        generation=opening.generation,
        command=session.command,
        run_id=session.run_id,
        selected=opening.selected,
    )
    result = hand_over(session, record(outcome), search.core)
    remember(experience, outcome)
    return result


def _default(search: Search) -> Finalist | None:
    """The default LoRA with the step that speaks for it, also where what the user fixed keeps it from winning."""
    runs = [run for run in search.core.runs if run.is_default]
    return next(iter(finalists(runs, search.strategy.metric)), None)
