"""The main job, top to bottom: plan → prepare → probe → search → re-evaluate → compare → hand over → remember.

Every phase leaves its result in the run folder before the next begins, so a killed or interrupted run continues
where it was; a finished phase is never repeated. The time budget covers all of it but the download of a model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.selection import NONE
from foretune.config.resolve import write_resolved
from foretune.errors import Interrupted, OutputError, Place
from foretune.execution.drive import Stopped, Watch, run_job
from foretune.execution.interrupts import interrupts
from foretune.execution.local import LocalExecutor
from foretune.execution.ray import RayExecutor
from foretune.execution.types import Executor, Job
from foretune.files import FolderLock, fingerprint, write_json
from foretune.fit.account import VERSIONED, Outcome, environment, record, tested
from foretune.fit.finals import Evaluator, answer_test_rows, checkpoint_of, chosen_by_validation, on_rows
from foretune.fit.folder import Clock, RunFolder
from foretune.fit.hindsight import learnt_rows
from foretune.fit.history import Recorder
from foretune.fit.method_choice import method_notes
from foretune.fit.outlook import replan
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared, prepare
from foretune.fit.probe_plan import measured
from foretune.fit.request import FitRequest, saved_identity
from foretune.fit.schedule import Schedule, Speeds, plan_end
from foretune.fit.trials import Search, budget_of, open_search, run_trials, time_budget
from foretune.report.card import write_card
from foretune.report.html import write_report
from foretune.report.record import ExportInfo, RunRecord, read_record, write_record
from foretune.search.ranking import Finalist, finalists
from foretune.search.runs import Run
from foretune.search.types import Lease, Observation
from foretune.training import checkpoint

PROBE_ROWS = 64
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
        clock = Clock(output / "clock.json")
        watch = Watch(interrupted.is_set, clock.tick, on_event)
        executor = _executor(plan, request, folder.logs, worker)
        job = _Fit(plan, folder, clock, watch, executor, on_event, command, started)
        try:
            with executor:
                return FitResult(output, job.run())
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


@dataclass
class _Fit:
    """One fit under way."""

    plan: Plan
    folder: RunFolder
    clock: Clock
    watch: Watch
    executor: Executor
    on_event: OnEvent
    command: str
    started: str

    def run(self) -> RunRecord:
        """All phases."""
        with self.clock.phase("reading and splitting"):
            prepared = self._prepared()
        self.on_event("prepared", prepared.to_json())
        with self.clock.phase("probe"):
            probe = self.folder.once("probe", lambda: self._job("probe", prepared, self._probe_payload(prepared)))
        self.on_event("probe", probe)
        refined = replan(self.plan, measured(probe), self.clock.spent("reading and splitting", "probe"))
        self.on_event("forecast", refined.forecast.to_json())
        generation = self._generation(prepared)
        end = plan_end(
            Speeds.of(probe),
            rows=prepared.rows,
            most_rows=self.plan.resolution["evaluation.max_rows"],
            shots=self._shots(prepared),
            generation=generation,
            time_s=self._time_s(),
        )
        most_rows = int(self.plan.resolution["evaluation.max_rows"])
        schedule = Schedule(
            prepared.task, self.folder, prepared.rows["validation"], most_rows, Speeds.of(probe), generation
        )
        evaluator = Evaluator(prepared, self.folder, self.executor, self.watch, self._left)
        with self.clock.phase("base model"):
            base = self._base_validation(evaluator, end.validation_rows, schedule)
        self.on_event("base", base)
        selected = self._selected(prepared)
        search = open_search(
            self.plan, prepared, schedule, budget_of(self.plan, self.clock, end), self.folder.journal, self.folder.once,
            task=self._task_features(prepared, probe), base_losses=tuple(base["rungs"]),
        )  # fmt: skip
        recorder = self._recorder(prepared, probe)
        self.on_event("search", {"horizon": search.horizon.steps, "why": search.horizon.why, "note": end.note})
        with self.clock.phase("trials"):
            watch = replace(self.watch, on_event=self._recorded(recorder, search))
            reason = self.folder.once(
                "searched", lambda: run_trials(search, self.executor, schedule, watch, self.clock, self._time_s(), end)
            )
        self.on_event("searched", {"why": reason})
        best = search.strategy.finalists(search.core.runs)
        with self.clock.phase("re-evaluation"):
            candidates = self.folder.once("finalists", lambda: chosen_by_validation(evaluator, best, end))
        self.on_event("finalists", {"candidates": candidates})
        winner, default = self._winner(search, candidates), self._default(search)
        with self.clock.phase("comparison"):
            systems = answer_test_rows(evaluator, winner, candidates[0]["step"], default, end, generation=generation)
        with self.clock.phase("export"):
            exported = self._exported(prepared, winner, candidates[0]["step"])
        outcome = Outcome(
            plan=self.plan,
            refined=refined,
            prepared=prepared,
            probe=probe,
            runs=search.core.runs,
            candidates=candidates,
            systems=systems,
            base_validation=base,
            exported=exported,
            phases=self.clock.phases,
            used_s=self.clock.used(),
            notes=[
                note
                for note in (
                    search.horizon.why,
                    end.note,
                    f"The search ended: {reason}.",
                    candidates[0].get("why", ""),
                    *self._method_notes(winner),
                )
                if note
            ],
            warnings=self._warnings(search),
            started=self.started,
            generation=generation,
            command=self.command,
            run_id=self._run_id(),
            selected=selected,
        )
        result = self._hand_over(record(outcome), search)
        self._remember(recorder, search, outcome)
        return result

    def _recorder(self, prepared: Prepared, probe: Mapping[str, Any]) -> Recorder:
        profile = prepared.facts["profile"]
        return Recorder(
            prefix=self._run_id(),
            task=profile["fingerprint"],
            task_features=self._task_features(prepared, probe),
            model=str(probe["weights_hash"])[:16],
            model_features={
                "name": Path(self.plan.model.source).name,
                "kind": self.plan.model.shapes.kind,
                "family": self.plan.model.shapes.architecture,
                "parameters": self.plan.model.shapes.parameters,
                "width": self.plan.model.shapes.width,
                "layers": self.plan.model.shapes.layers,
                "vocabulary": self.plan.model.shapes.vocabulary,
            },
            machine=self.plan.machine,
            versions={name: str(value) for name, value in environment(self.plan).items() if name in VERSIONED},
        )

    def _task_features(self, prepared: Prepared, probe: Mapping[str, Any]) -> dict[str, Any]:
        profile = prepared.facts["profile"]
        return {**profile, "base_loss": probe["base_loss"], "metric": prepared.task.metric}

    def _recorded(self, recorder: Recorder, search: Search) -> OnEvent:
        """Passes events on and adds runs and observations to the experience."""

        def see(kind: str, payload: Mapping[str, Any]) -> None:
            if kind == "lease":
                lease = Lease.from_json(payload["lease"])
                run = search.core.run(lease.run)
                recorder.run(lease.run, lease.config, seed=lease.seed, horizon=lease.horizon, arm=run.arm)
            elif kind == "observation":
                recorder.observation(payload["lease"]["run"], Observation.from_json(payload["observation"]))
            self.on_event(kind, payload)

        return see

    def _remember(self, recorder: Recorder, search: Search, outcome: Outcome) -> None:
        """How the runs ended, the test scores of the winner, and the forecast beside the truth."""
        runs = search.core.runs
        recorder.forecast(runs[0].id, learnt_rows(outcome.seen))
        for run, step, scores in tested(outcome):
            recorder.observation(run, Observation(step, scores), split="test")
        recorder.finished(runs)
        recorder.close()

    def _run_id(self) -> str:
        return f"{Path(self.folder.root).name}-{fingerprint([self.started, str(self.folder.root.resolve())], 6)}"

    # -- parts

    def _prepared(self) -> Prepared:
        value = self.folder.once(
            "prepared",
            lambda: prepare(self.plan, self.folder, lambda line: self.on_event("progress", {"line": line})).to_json(),
        )
        return Prepared.from_json(value)

    def _job(self, kind: Any, prepared: Prepared, payload: Mapping[str, Any]) -> dict[str, Any]:
        return run_job(self.executor, Job(f"{kind}", kind, prepared.task, payload), self.watch)

    def _selected(self, prepared: Prepared) -> dict[str, Any]:
        """What ranking the rows took; {} where all are trained on. Trials read the ranking from the task's folder."""
        config = self.plan.resolution.fixed_training()
        if str(config.get("selection", NONE)) == NONE:
            return {}

        def rank() -> dict[str, Any]:
            done = self._job("select", prepared, {"config": config, "seed": prepared.task.seed})
            if not done["complete"]:
                raise Stopped
            return done

        with self.clock.phase("selection"):
            selected: dict[str, Any] = self.folder.once("selection", rank)
        self.on_event("selection", selected)
        return selected

    def _probe_payload(self, prepared: Prepared) -> dict[str, Any]:
        config = {**DEFAULT_LORA, **{k: v for k, v in self.plan.config.items() if k == "rows_per_update"}}
        return {"config": config, "rows": PROBE_ROWS, "generation": self._generation(prepared)}

    def _generation(self, prepared: Prepared) -> bool:
        wanted = bool(self.plan.resolution["evaluation.generation"])
        return wanted and prepared.task.model.kind != "encoder" and prepared.task.task != "language-modelling"

    def _shots(self, prepared: Prepared) -> int:
        shots = int(self.plan.resolution["evaluation.retrieved_examples"])
        return shots if self._generation(prepared) and prepared.task.model.kind == "causal" else 0

    def _time_s(self) -> float | None:
        return time_budget(self.plan)

    def _left(self) -> float | None:
        total = self._time_s()
        return None if total is None else max(0.0, total - self.clock.used())

    def _base_validation(self, evaluator: Evaluator, rows: int, schedule: Schedule) -> dict[str, Any]:
        """The base's loss on the validation rows of the end, and on those of each rung."""
        from foretune.evaluation.base import Answer
        from foretune.evaluation.metrics import METRICS

        def measure() -> dict[str, Any]:
            chosen = list(evaluator.rows("validation", rows))
            payload = {"split": "validation", "rows": chosen, "generation": False}
            content = evaluator.answers("validation-base", payload)
            answers = [Answer(**value) for value in content["answers"]]
            result = METRICS["loss"].score(answers)
            rungs = [METRICS["loss"].score(on_rows(answers, chosen)).value for chosen in schedule.rungs_rows()]
            return {"loss": [result.value, result.standard_error, len(answers)], "rungs": rungs}

        return dict(self.folder.once("base", measure))

    def _winner(self, search: Search, candidates: list[dict[str, Any]]) -> Run:
        return search.core.run(candidates[0]["run"])

    def _default(self, search: Search) -> Finalist | None:
        """The default LoRA with the step that speaks for it, also where what the user fixed keeps it from winning."""
        runs = [run for run in search.core.runs if run.arm == "default"]
        return next(iter(finalists(runs, search.strategy.metric)), None)

    def _warnings(self, search: Search) -> list[str]:
        return [f"Trial {run.id} ended as {run.status}: {run.detail}" for run in search.core.runs if run.failed]

    def _method_notes(self, winner: Run) -> list[str]:
        done = self.folder.once("export", dict)  # written by the export before
        return method_notes(winner.config, done.get("statistics", {}))

    def _exported(self, prepared: Prepared, winner: Run, step: int) -> list[ExportInfo]:
        def export() -> dict[str, Any]:
            payload = {
                **checkpoint_of(self.folder, winner, step),
                "output": str(self.folder.adapter.resolve()),
                "base": self._base_name(prepared),
            }
            return self._job("export", prepared, payload)

        done = self.folder.once("export", export)
        kind = "full" if winner.config["method"] == "full" else "adapter"
        infos = [ExportInfo(kind, "adapter", done["verified"], done["detail"])]  # type: ignore[arg-type]
        form = self.plan.resolution.spec.output.deploy
        if form != "adapter":
            infos.append(self._deployed(form, prepared))
        return infos

    def _base_name(self, prepared: Prepared) -> str:
        """What ``adapter_config.json`` names as its base: a folder that exists here, or the hub id."""
        return prepared.task.model.source

    def _deployed(self, form: Any, prepared: Prepared) -> ExportInfo:
        from foretune.export.job import export_run

        target = self.folder.root / form

        def export() -> dict[str, Any]:
            shutil.rmtree(target, ignore_errors=True)
            path, check = export_run(self.folder.adapter, target, form, base=Path(prepared.task.model.source))
            return {"folder": str(path.relative_to(self.folder.root)), "detail": check.detail}

        done = self.folder.once(f"export-{form}", export)
        return ExportInfo(form, done["folder"], True, done["detail"])

    def _hand_over(self, result: RunRecord, search: Search) -> RunRecord:
        """Write card and report, then the record, whose presence says that the run is finished."""
        write_card(self.folder.adapter, result)
        write_report(self.folder.root, result)
        write_json(self.folder.root / "search.json", search.core.state())
        write_record(self.folder.root, result)
        for run in search.core.runs:
            kept = {result.winner.best_step} if result.winner is not None and run.id == result.winner.run else set()
            checkpoint.retain(self.folder.trial(run.id), {step for step in kept if step is not None})
        return result
