"""What a study measures before its first run: a probe of every task, and the untouched base on every test set.

Each is measured once and kept in the task's folder; all workers take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from foretune.execution.drive import Watch, run_jobs, run_once
from foretune.execution.types import Executor, Job
from foretune.study.folder import StudyFolder, base_name
from foretune.study.grid import GridSpec
from foretune.study.prepared import check_weights
from foretune.study.results import read_answers, scored
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import OWN, split_name

PROBE_ROWS = 32
Tasks = Mapping[tuple[str, str], StudyTask]
"""By (model, task)"""


def probe(
    grid: GridSpec, tasks: Tasks, folder: StudyFolder, executor: Executor, watch: Watch
) -> dict[tuple[str, str], dict[str, Any]]:
    """Speeds, row lengths and the base's loss on every task.

    Raises `ModelError` where the base is another one than the study began with.
    """
    config, jobs = grid.config(grid.control), {}
    for task in tasks.values():
        payload = {"config": config, "rows": PROBE_ROWS, "generation": task.generation}
        path = folder.task(task.model, task.name).root / "probe.json"
        jobs[path] = Job(f"probe-{task.model}-{task.name}", "probe", task.spec, payload)
    found = dict(zip(tasks, run_once(executor, jobs, watch), strict=True))
    for key, task in tasks.items():
        check_weights(task, found[key])
    return found


def score_base(tasks: Iterable[StudyTask], folder: StudyFolder, executor: Executor, watch: Watch) -> None:
    """Score the untouched base model on every test set; its answers again where they stayed elsewhere."""
    asked = [(task, on, rows) for task in tasks for on, rows in {OWN: task.rows["test"], **task.tests}.items()]
    jobs = []
    for task, on, rows in asked:
        output = _answers(folder, task, on)
        if not output.exists():
            payload = {
                "output": str(output),
                "split": split_name(on),
                "rows": list(range(rows)),
                "generation": task.generation,
            }
            jobs.append(Job(f"{base_name(on)}-{task.model}-{task.name}", "evaluate", task.spec, payload))
    run_jobs(executor, jobs, watch, lambda job, result: None)
    for task, on, _ in asked:
        folder.task(task.model, task.name).once(base_name(on), partial(_scores, _answers(folder, task, on), task))


def _answers(folder: StudyFolder, task: StudyTask, tested_on: str) -> Path:
    return (folder.task(task.model, task.name).root / f"{base_name(tested_on)}-answers.json").resolve()


def _scores(answers: Path, task: StudyTask) -> dict[str, Any]:
    """[value, standard error, rows] of written answers by metric."""
    found = scored(read_answers(answers)[1], task)
    return {metric: [score.value, score.standard_error, score.n] for metric, score in found.items()}
