"""A study, top to bottom: prepare tasks → probe → announce → choose learning rates → run all cells → table.

Every phase leaves its result in the study's folder, so that a killed or interrupted study continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretune.cost.machine import Machine
from foretune.errors import Interrupted, Place, TrainingError
from foretune.execution.drive import Stopped, Watch
from foretune.execution.interrupts import interrupts
from foretune.execution.local import LocalExecutor
from foretune.execution.machine import detect
from foretune.execution.ray import RayExecutor
from foretune.execution.types import Executor
from foretune.files import FolderLock, canonical_json, fingerprint, read_lines, write_json
from foretune.fit.account import versions
from foretune.fit.folder import Clock
from foretune.fit.history import Recorder
from foretune.plugins import load as load_plugins
from foretune.study import forecast
from foretune.study.before import trained_before
from foretune.study.cells import Cells
from foretune.study.design import Rates, StudyCell, cells, notes, rate_label
from foretune.study.folder import StudyFolder, saved_grid
from foretune.study.grid import GridSpec
from foretune.study.grid_file import find_grid, load_grid
from foretune.study.measured import probe, score_base
from foretune.study.outputs import write_outputs
from foretune.study.parents import is_parent, make_parent
from foretune.study.prepared import prepared_task
from foretune.study.rates import chosen_rates, deciding, sweep_cells, widened
from foretune.study.results import Line, read_results
from foretune.study.selections import check_targets, forecast_seconds, key_of, ranked_cells
from foretune.study.summary import Summary
from foretune.study.tasks import StudyTask

OnEvent = Callable[[str, Mapping[str, Any]], None]
Pair = tuple[str, str]
"""(model, task)"""


@dataclass(frozen=True)
class StudyResult:
    """What a study hands back."""

    folder: Path
    summary: Summary
    reason: str
    """Why it ended"""


def run_study(
    source: str | Path | GridSpec | None,
    output: Path,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    workers: int = 1,
    time_s: float | None = None,
    on_event: OnEvent = lambda kind, payload: None,
    worker: list[str] | None = None,
    ray: str | None = None,
    plugins: Sequence[Path] = (),
) -> StudyResult:
    """Run the study ``source`` (a file, a preset's name, a grid) in ``output``, or continue what was begun there.

    With ``resume`` something must have been begun, and ``source`` may be None. With ``retry_failed`` runs that an
    accident ended (a dead or silent worker, memory, a refusal) are tried once more. ``time_s`` limits this session.
    ``ray`` is the address of a Ray cluster that sees ``output`` under the same path (or ``local``), to run the cells
    there. ``plugins`` are files that add methods or metrics.
    Raises `Interrupted` after Ctrl-C, `TrainingError` when no run has a result, and what its parts raise.
    """
    load_plugins(plugins)
    grid, text = _grid(source, output, resume)
    folder = StudyFolder(output)
    folder.check_free()
    with FolderLock(output), interrupts() as stopped:
        begun = folder.begin(grid, text, datetime.now(UTC).isoformat(timespec="seconds"))
        clock = Clock(folder.clock)
        watch = Watch(stopped.is_set, clock.tick, on_event)
        before = clock.used()

        def left() -> float | None:
            return None if time_s is None else max(0.0, time_s - (clock.used() - before))

        executor: LocalExecutor | RayExecutor
        if ray is not None:
            executor = RayExecutor(folder.logs, address=ray, workers=workers, plugins=plugins)
        else:
            executor = LocalExecutor(folder.logs, workers=workers, plugins=plugins, command=worker)
        study = _Study(grid, folder, executor, watch, clock, left, workers, begun["started"], retry_failed)
        try:
            with executor:
                return study.run()
        except Stopped:
            raise Interrupted(
                "interrupted; nothing is lost.",
                place=Place(output),
                remedy=f"Continue with: foretune study run --output {output} --resume",
            ) from None


def _grid(source: str | Path | GridSpec | None, output: Path, resume: bool) -> tuple[GridSpec, str]:
    if resume or source is None:
        saved = saved_grid(output)
        text = (output / "grid.yaml").read_text(encoding="utf-8")
        if source is None:
            return saved, text
    if isinstance(source, GridSpec):
        return source, canonical_json(source.model_dump(mode="json")) + "\n"
    assert source is not None
    return load_grid(source), find_grid(source).read_text(encoding="utf-8-sig")


@dataclass
class _Study:
    """One study under way."""

    grid: GridSpec
    folder: StudyFolder
    executor: Executor
    watch: Watch
    clock: Clock
    left: Callable[[], float | None]
    workers: int
    started: str
    retry: bool

    def run(self) -> StudyResult:
        """All phases."""
        check_targets(self.grid)
        with self.clock.phase("parents"):
            if not self._parents():
                return self._finish("the time is over; the parents are not pre-trained yet")
        if self.grid.before is not None:
            with self.clock.phase("before"):
                model = trained_before(self.grid.before, self.grid.model, self.folder.before, self.executor, self.watch)
                self.grid = self.grid.model_copy(update={"model": model})
        with self.clock.phase("preparing"):
            tasks = self._tasks()
        machine = detect()
        with self.clock.phase("probe"):
            probes = probe(self.grid, tasks, self.folder, machine, self.executor, self.watch)
        tokens = {key: float(probe["mean_row_tokens"]) for key, probe in probes.items()}
        seconds = self._seconds(tasks, probes, machine)
        sweep, provisional = (
            sweep_cells(self.grid, tasks.values(), tokens, deciding(self.grid, tasks.values()).values()),
            cells(self.grid, tasks.values(), {}, tokens),
        )
        self._announce(tasks, probes, sweep, provisional, seconds)
        with self.clock.phase("base model"):
            score_base(tasks.values(), self.folder, self.executor, self.watch)
        with self.clock.phase("learning rates"):
            rates = self._rates(tasks, sweep, seconds, probes, machine)
        if rates is None:
            return self._finish("the time is over; learning rates are not chosen yet")
        listed = cells(self.grid, tasks.values(), rates, tokens)
        with self.clock.phase("selections"):
            ranked = ranked_cells(
                self.grid, listed, tasks, self.executor, self.watch, self.folder.selections, self.left
            )
        if ranked is None:
            return self._finish("the time is over; rows are not ranked yet")
        listed = ranked
        with self.clock.phase("runs"):
            recorders = self._recorders(listed, tasks, probes, machine, self.grid.name)
            work = Cells(
                self.grid.name, self.folder.root, listed, tasks, seconds, self.folder.journal, self.folder.trials,
                self.folder.answers, self.folder.results, recorders, self.retry,
            )  # fmt: skip
            reason = self._run_cells(work, recorders)
        return self._finish(reason)

    # -- before the first run

    def _parents(self) -> bool:
        """Pre-train the parents that the grid names and put their folders in; False when time is over before."""
        found = {}
        for name, settings in self.grid.model.items():
            if not is_parent(settings.source):
                continue

            def stopped() -> bool:
                self.watch.tick()
                seconds = self.left()
                return self.watch.stop() or (seconds is not None and seconds <= 0)

            folder = make_parent(settings.source, progress=self._say, stopped=stopped)
            if folder is None:
                if self.watch.stop():
                    raise Stopped
                return False
            found[name] = settings.model_copy(update={"source": str(folder)})
        if found:
            self.grid = self.grid.model_copy(update={"model": {**self.grid.model, **found}})
        return True

    def _say(self, text: str) -> None:
        self.watch.on_event("progress", {"line": text})

    def _tasks(self) -> dict[Pair, StudyTask]:
        found = {}
        for model in self.grid.model:
            for name in self.grid.tasks:
                folder = self.folder.task(model, name).root
                found[model, name] = prepared_task(self.grid, model, name, folder, self._say)
                task = found[model, name]
                facts = {"model": model, "task": name, "rows": dict(task.rows), "tests": dict(task.tests)}
                self.watch.on_event("prepared", facts)
        return found

    def _seconds(
        self, tasks: Mapping[Pair, StudyTask], probes: Mapping[Pair, Mapping[str, Any]], machine: Machine
    ) -> Callable[[StudyCell], float]:
        control = str(self.grid.config(self.grid.control)["method"])
        factors = {
            model: forecast.method_factors(machine.fingerprint, _model_key(probes, model), control)
            for model in self.grid.model
        }

        def seconds(cell: StudyCell) -> float:
            key = (cell.model, cell.task)
            factor = factors[cell.model].get(str(cell.config["method"]), 1.0)
            return forecast.cell_seconds(cell, tasks[key], probes[key], factor)

        return seconds

    def _announce(
        self,
        tasks: Mapping[Pair, StudyTask],
        probes: Mapping[Pair, Mapping[str, Any]],
        sweep: Sequence[StudyCell],
        listed: Sequence[StudyCell],
        seconds: Callable[[StudyCell], float],
    ) -> None:
        untried = forecast.left(sweep, read_results(self.folder.rates), by_rate=True)
        missing = forecast.left(listed, read_results(self.folder.results))
        ranked = {entry["key"] for entry in read_lines(self.folder.selections)}
        choosing_s = forecast_seconds([cell for cell in missing if key_of(cell) not in ranked], tasks, probes)
        hours = (choosing_s + sum(map(seconds, [*untried, *missing]))) / forecast.SECONDS_AN_HOUR
        sd, source = forecast.known_spread(self.grid, [task.primary for task in tasks.values()])
        block, pooled = forecast.detectable(self.grid, sd)
        design = forecast.Design(
            runs=len(listed),
            sweep_runs=len(sweep),
            done=len(sweep) + len(listed) - len(untried) - len(missing),
            run_hours=hours,
            wall_hours=hours / self.workers,
            seeds=len(self.grid.seeds),
            units=len(self.grid.seeds) * len(self.grid.tasks),
            sd=sd,
            sd_source=source,
            detectable=block,
            detectable_pooled=pooled,
            rates=rate_label(self.grid),
            notes=notes(self.grid),
        )
        if not self.folder.design.exists():  # the first one stays: what was said before any result was seen
            write_json(self.folder.design, design.to_json())
        primary = next(iter(tasks.values())).primary
        self.watch.on_event("design", {**design.to_json(), "sentences": forecast.sentences(design, primary)})

    # -- runs

    def _rates(
        self,
        tasks: Mapping[Pair, StudyTask],
        sweep: Sequence[StudyCell],
        seconds: Callable[[StudyCell], float],
        probes: Mapping[Pair, Mapping[str, Any]],
        machine: Machine,
    ) -> Rates | None:
        """Swept rates by (model, task, arm); None when time ended before they were known."""
        if not sweep:
            return {}
        tokens = {key: float(probe["mean_row_tokens"]) for key, probe in probes.items()}
        sweeps = deciding(self.grid, tasks.values())
        listed, expected = tuple(sweep), 0
        lines: list[Line] = []
        for round_number in range(1 + self.grid.learning_rate.widen):
            if round_number:  # only the rounds before: what an earlier session has widened is there already
                further = widened(lines[:expected], sweeps.values())
                listed = sweep_cells(self.grid, tasks.values(), tokens, sweeps.values(), further)
            if not listed:
                break
            expected += len(listed)
            name = f"{self.grid.name}:rates" + (f"-{round_number}" if round_number else "")  # runs are counted afresh
            recorders = self._recorders(listed, tasks, probes, machine, name)
            work = Cells(
                self.grid.name, self.folder.root, listed, tasks, seconds, self.folder.sweep_journal_of(round_number),
                self.folder.sweep_trials / str(round_number), self.folder.answers, self.folder.rates, recorders,
                self.retry,
            )  # fmt: skip
            self._run_cells(work, recorders)
            lines = read_results(self.folder.rates)
            if len(lines) < expected:
                return None
        rates, remarks = chosen_rates(self.grid, lines, sweeps)
        named = {sweeps[key].named(self.grid): rate for key, rate in rates.items()}
        self.watch.on_event("rates", {"rates": named, "notes": remarks})
        return rates

    def _run_cells(self, work: Cells, recorders: Mapping[Any, Recorder]) -> str:
        try:
            return work.run(self.executor, self.watch, self.left)
        finally:
            for recorder in recorders.values():
                recorder.close()

    def _recorders(
        self,
        listed: Sequence[StudyCell],
        tasks: Mapping[Pair, StudyTask],
        probes: Mapping[Pair, Mapping[str, Any]],
        machine: Machine,
        study: str,
    ) -> dict[tuple[str, str, str], Recorder]:
        """One recorder a block: what is trained on fewer rows is another task to the experience."""
        place = fingerprint([self.started, str(self.folder.root.resolve())], 6)
        found: dict[tuple[str, str, str], Recorder] = {}
        for cell in listed:
            if cell.block in found:
                continue
            task, probe = tasks[cell.model, cell.task], probes[cell.model, cell.task]
            profile = task.facts["profile"]
            found[cell.block] = Recorder(
                prefix=f"{study}-{place}",
                task=fingerprint([profile["fingerprint"], cell.rows]),
                task_features={
                    **profile, "rows.train": cell.rows, "data": profile["fingerprint"],
                    "base_loss": probe["base_loss"], "metric": task.spec.metric,
                },
                model=_model_key(probes, cell.model),
                model_features=task.facts["model"],
                machine=machine,
                versions=versions(),
                study=study,
            )  # fmt: skip
        return found

    # -- the end

    def _finish(self, reason: str) -> StudyResult:
        """Table, report and summary of what there is. Raises `TrainingError` when every run has failed."""
        summary = write_outputs(self.folder.root).summary
        lines = read_results(self.folder.results)
        if lines and not any(entry["scores"].get("test") for entry in lines):
            raise TrainingError(
                f"no run of the study has a result ({lines[0]['arm']}: {lines[0]['status']} {lines[0]['detail']}).",
                place=Place(self.folder.root),
                remedy="The logs in the study's folder say more.",
            )
        return StudyResult(self.folder.root, summary, reason)


def _model_key(probes: Mapping[Pair, Mapping[str, Any]], model: str) -> str:
    """The fingerprint of a model's weights, as ``fit`` stores it."""
    return next(str(probe["weights_hash"])[:16] for (name, _), probe in probes.items() if name == model)
