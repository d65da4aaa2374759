"""What a study measures before its first run: a probe of every task, and the untouched base on every test set.

Each is measured once (speeds once a machine) and kept in the task's folder; all workers take part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from foretune.cost.machine import Machine
from foretune.execution.drive import Watch, run_jobs, run_once
from foretune.execution.types import Executor, Job
from foretune.files import read_json, write_json
from foretune.study.folder import StudyFolder, base_name
from foretune.study.grid import GridSpec
from foretune.study.prepared import check_weights
from foretune.study.results import read_answers, scored
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import OWN, split_name

PROBE_ROWS = 32
OF_THE_STUDY = ("mean_row_tokens", "base_loss", "weights_hash")
"""What a study keeps of its first probe wherever it goes on; all else says how fast a machine is"""
Tasks = Mapping[tuple[str, str], StudyTask]
"""By (model, task)"""


def probe(
    grid: GridSpec, tasks: Tasks, folder: StudyFolder, machine: Machine, executor: Executor, watch: Watch
) -> dict[tuple[str, str], dict[str, Any]]:
    """Row lengths and the base's loss on every task, as when the study began, and speeds on this machine.

    Raises `ModelError` where the base is another one than the study began with.
    """
    config, jobs, first = grid.config(grid.control), {}, {}
    for key, task in tasks.items():
        payload = {"config": config, "rows": PROBE_ROWS, "generation": task.generation}
        root = folder.task(task.model, task.name).root
        first[key] = root / "probe.json"
        if first[key].exists():
            check_weights(task, read_json(first[key]))
        path = root / f"probe-{machine.fingerprint}.json"
        jobs[path] = Job(f"probe-{task.model}-{task.name}", "probe", task.spec, payload)
    here = dict(zip(tasks, run_once(executor, jobs, watch), strict=True))
    for key, path in first.items():
        if not path.exists():
            write_json(path, here[key])
        here[key].update({fact: value for fact, value in read_json(path).items() if fact in OF_THE_STUDY})
    return here


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
