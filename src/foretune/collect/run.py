"""Collecting, top to bottom: prepare tasks → probe → score the base → announce → train every run of the design.

The store is the journal. A run is claimed there, trained in a worker that keeps the base model loaded, and written
there whole when it has ended, failures too; whatever kills a collector, the same command goes on, and at most the
runs under way are trained again. Any number of collectors may fill one store.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import known_dataset
from foretune.catalogue.models import known_model
from foretune.collect.cells import Cell, CollectedTask, cells
from foretune.collect.queue import Collected, Queue
from foretune.collect.scores import BaseAnswers
from foretune.collect.task_list import TaskList, load_list
from foretune.errors import Interrupted, OutputError, Place
from foretune.evaluation.base import Answer
from foretune.execution.calibration import matmul_rate
from foretune.execution.drive import Stopped, Watch, run_jobs, run_once
from foretune.execution.interrupts import interrupts
from foretune.execution.local import LocalExecutor
from foretune.execution.machine import detect
from foretune.execution.ray import RayExecutor
from foretune.execution.types import Executor, Job
from foretune.experience.store import Store, default_path
from foretune.files import FolderLock, read_json, remove_leftovers, write_json
from foretune.fit.account import versions
from foretune.fit.folder import RunFolder
from foretune.fit.history import machine_features, plain_features
from foretune.study.prepared import prepared_task

LIST = "list.json"
PROBE_ROWS = 32
SPLITS = ("validation", "test")
SECONDS_AN_HOUR = 3600.0
OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What is to be trained."""

    runs: int
    done: int
    """Runs that the store holds already"""
    run_hours: float
    """Forecast hours of the rest, on one worker"""
    wall_hours: float

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return dict(vars(self))


def collect(
    source: str | Path,
    output: Path,
    *,
    store: Path | None = None,
    workers: int = 1,
    threads: int = 1,
    time_s: float | None = None,
    dry: bool = False,
    on_event: OnEvent = lambda kind, payload: None,
    ray: str | None = None,
    executor: Callable[[Path], Executor] | None = None,
) -> Collected:
    """Train the runs of a task list that the store does not hold yet; ``dry`` stops after the announcement.

    ``output`` holds prepared tasks and logs, and nothing that a later session needs but speed. ``time_s`` limits this
    session. ``ray`` is the address of a cluster to train on instead of in local worker processes; ``executor`` makes
    any other from a folder for logs. Raises `Interrupted` after
    Ctrl-C or SIGTERM, `OutputError` for a folder of something else, and what its parts raise.
    """
    listed = load_list(source)
    _check_free(output, listed)
    with FolderLock(output), interrupts() as stopped, Store(store or default_path()) as opened:
        remove_leftovers(output)
        write_json(output / LIST, listed.model_dump(mode="json"))
        folder = RunFolder(output)
        shutil.rmtree(folder.trials, ignore_errors=True)
        made: Executor
        if executor is not None:
            made = executor(folder.logs)
        elif ray is not None:
            made = RayExecutor(folder.logs, address=ray, workers=workers, threads=threads)
        else:
            made = LocalExecutor(folder.logs, workers=workers, threads=threads)
        watch = Watch(stopped.is_set, lambda: None, on_event)
        job = _Collection(listed, folder, opened, made, watch, threads, time_s)
        try:
            return job.run(dry)
        except Stopped:
            raise Interrupted(
                "interrupted; every finished run is in the store.",
                place=Place(opened.path),
                remedy="The same command goes on.",
            ) from None
        finally:
            made.close()


def _check_free(output: Path, listed: TaskList) -> None:
    """Refuse a folder that holds something else, or the tasks of another list."""
    if not output.exists() or not any(path.name != ".lock" for path in output.iterdir()):
        return
    begun = output / LIST
    if begun.exists() and read_json(begun)["name"] == listed.name:
        return
    raise OutputError(
        f"this folder was not filled by collecting {listed.name}.",
        place=Place(output),
        remedy="Choose another --output.",
    )


@dataclass
class _Collection:
    """One session."""

    listed: TaskList
    folder: RunFolder
    store: Store
    executor: Executor
    watch: Watch
    threads: int
    time_s: float | None

    def run(self, dry: bool) -> Collected:
        """All phases."""
        since = time.monotonic()
        tasks = self._tasks()
        listed = cells(self.listed, list(tasks.values()))
        plan = self._announce(listed)
        if dry:
            return Collected(0, 0, plan.runs - plan.done, "only announced")
        base = self._base(tasks)
        hardware = self._known(tasks, base)
        queue = Queue(
            study=self.listed.name,
            cells=listed,
            base=base,
            folder=self.folder,
            store=self.store,
            hardware=hardware,
            versions={**versions(), "python": platform.python_version()},
            answered_rows=self.listed.evaluation.answered_rows,
            owner=f"{platform.node()[:32]}-{os.getpid()}",
        )
        return queue.work(self.executor, self.watch, lambda: self._over(since))

    def _over(self, since: float) -> bool:
        return self.time_s is not None and time.monotonic() - since > self.time_s

    def _tasks(self) -> dict[str, CollectedTask]:
        """Every task prepared and probed."""
        grid = self.listed.grid()
        (model,) = grid.model

        def say(line: str) -> None:
            self.watch.on_event("progress", {"line": line})

        config = {**grid.config("lora"), "rows_per_update": self.listed.rows_per_update}
        tasks, folders, jobs = {}, {}, {}
        for name in self.listed.tasks:
            folders[name] = RunFolder(self.folder.root / "tasks" / name)
            tasks[name] = task = prepared_task(grid, model, name, folders[name].root, say)
            self.watch.on_event("prepared", {"task": name, "rows": dict(task.rows)})
            payload = {"config": config, "rows": PROBE_ROWS, "generation": task.generation}
            jobs[folders[name].root / "probe.json"] = Job(f"probe-{name}", "probe", task.spec, payload)
        probes = run_once(self.executor, jobs, self.watch)
        return {
            name: CollectedTask(tasks[name], folders[name], probe) for name, probe in zip(tasks, probes, strict=True)
        }

    def _announce(self, listed: Sequence[Cell]) -> Plan:
        done = self.store.ended(self.listed.name)
        left = [cell for cell in listed if cell.run not in done]
        hours = sum(cell.seconds(self.listed.evaluation.answered_rows) for cell in left) / SECONDS_AN_HOUR
        plan = Plan(len(listed), len(listed) - len(left), hours, hours / self.executor.capacity())
        self.watch.on_event("plan", plan.to_json())
        return plan

    def _base(self, tasks: Mapping[str, CollectedTask]) -> dict[str, BaseAnswers]:
        """The untouched base's answers to the validation and test rows of every task, written once."""
        jobs = []
        for name, collected in tasks.items():
            for split in SPLITS:
                output, task = _base_answers(collected, split), collected.task
                if not output.exists() or not read_json(output)["complete"]:
                    payload = {
                        "output": str(output),
                        "split": split,
                        "rows": list(range(task.rows[split])),
                        "generation": task.generation,
                    }
                    jobs.append(Job(f"base-{split}-{name}", "evaluate", task.spec, payload))
        run_jobs(self.executor, jobs, self.watch, lambda job, result: None)
        return {
            name: BaseAnswers(**{
                split: tuple(Answer(**value) for value in read_json(_base_answers(collected, split))["answers"])
                for split in SPLITS
            })
            for name, collected in tasks.items()
        }  # fmt: skip

    def _known(self, tasks: Mapping[str, CollectedTask], base: Mapping[str, BaseAnswers]) -> str:
        """Tell the store what the runs are about; returns the machine's fingerprint."""
        machine = replace(detect(), threads=self.threads)
        for name, collected in tasks.items():
            self.store.record_task(collected.fingerprint, self._task_features(name, collected, base[name]))
            known = known_model(self.listed.model)
            license_name = known.license if known is not None else None
            facts = {**collected.task.facts["model"], "license": license_name, "dtype": collected.task.spec.model.dtype}
            self.store.record_model(collected.model, plain_features(facts))
        facts = {**machine_features(machine), "matmul_operations_per_s": matmul_rate(replace(machine, threads=1))}
        return self.store.record_hardware(machine.fingerprint, facts)

    def _task_features(self, name: str, collected: CollectedTask, base: BaseAnswers) -> dict[str, Any]:
        task = collected.task
        path = self.listed.tasks[name].path
        dataset = known_dataset(path)
        scores = base.on(task, range(task.rows["validation"]))
        features = {
            **task.facts["profile"],
            "rows": dict(task.rows),
            "log10_rows": math.log10(task.rows["train"]),
            "metric": task.spec.metric,
            "row_tokens": collected.probe["mean_row_tokens"],
            "name": name,
            "dataset": dataset.name if dataset is not None else None,
            "license": dataset.license if dataset is not None else None,
            **{f"base_{metric.removeprefix('base.')}": value for metric, (value, *_) in scores.items()},
        }
        return plain_features(features)


def _base_answers(collected: CollectedTask, split: str) -> Path:
    return (collected.folder.root / f"base-{split}.json").resolve()
