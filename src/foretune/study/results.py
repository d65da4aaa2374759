"""One line a run: configuration, how it ended, test scores with errors, seconds, tokens, memory, where its answers are.

A failure is a line with its status and no score. The lines hold everything that the statistics need. A run that was
tested on several sets of rows has their scores under ``tests``; `views` gives such a line once for every set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.files import read_json, read_lines
from foretune.search.runs import Run
from foretune.search.types import FAILURES, Score
from foretune.study.design import StudyCell
from foretune.study.statistics import Block, Values
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import OWN, split_name

FINISHED = "finished"
ACCIDENTS = FAILURES - {"diverged"}
"""Ends of a run that may be the machine's fault and not the configuration's"""
TRANSLATION_METRICS = ("chrf", "bleu")
CALIBRATION_METRICS = ("brier", "calibration_error")
SIGNED = ("bleu", "chrf")
"""Metrics whose numbers mean something only with sacreBLEU's signature."""
Line = dict[str, Any]
MIXED = "Tasks have different outcomes, so they are not pooled."


def scored(answers: Sequence[Answer], task: StudyTask) -> dict[str, Score]:
    """The scores of answers to the test rows, the outcome first."""
    names = [task.primary, task.spec.metric, *(TRANSLATION_METRICS if task.translation else ())]
    if task.spec.task != "regression":
        names.append("loss")
    if task.spec.model.kind != "encoder":
        names.append("loss_per_byte")
    elif task.spec.task == "classification":
        names += CALIBRATION_METRICS
    answered = all(answer.prediction is not None for answer in answers)
    found = {}
    for name in dict.fromkeys(names):
        if METRICS[name].needs_generation and not answered:
            continue
        result = METRICS[name].score(answers)
        found[name] = Score(result.value, result.standard_error, len(answers))
    return found


def signatures(names: Iterable[str], answers: Sequence[Answer]) -> dict[str, str]:
    """SacreBLEU's signatures of those metrics that have one, by metric."""
    found = {}
    for name in names:
        metric = METRICS[name]
        if name in SIGNED:
            found[name] = str((metric.score(answers[:1]).details or {})["signature"])
    return found


def read_answers(path: Path, tested_on: str = OWN) -> tuple[int | None, list[Answer]]:
    """(the step of the checkpoint that answered, its answers to a test set). Raises `StoreError` without the file."""
    if not path.is_file():
        raise StoreError(
            "the answers of a finished run are gone.", place=Place(path), remedy="Start the study in a new folder."
        )
    content = read_json(path)
    answers = content["further"][split_name(tested_on)] if tested_on else content["answers"]
    return content.get("step"), [Answer(**value) for value in answers]


def read_statistics(path: Path) -> dict[str, float]:
    """What the method said of itself over the rows that were answered, such as how open its gates were."""
    return dict(read_json(path).get("statistics", {}))


def line(study: str, cell: StudyCell, run: Run, task: StudyTask, answers: Path | None, root: Path) -> Line:
    """The line of an ended run; ``answers`` is its file of answers, or None where none are asked for."""
    ok = run.status == FINISHED
    scores: dict[str, dict[str, Score]] = {}
    tests: dict[str, dict[str, Score]] = {}
    signed: dict[str, str] = {}
    statistics: dict[str, float] = {}
    step: int | None = None
    if ok:
        best = min(run.curve, key=lambda s: (run.curve[s]["loss"].value, s)) if run.curve else run.step
        step = best if task.best else run.step
        scores["validation"] = dict(run.curve.get(step, {}))
        if answers is not None:
            step, rows = read_answers(answers)
            scores["validation"] = dict(run.curve.get(step or 0, scores["validation"]))
            scores["test"] = scored(rows, task)
            signed = signatures(scores["test"], rows)
            tests = {name: scored(read_answers(answers, name)[1], task) for name in task.tests}
            statistics = read_statistics(answers)
    return {
        "study": study,
        "cell": cell.cell.key,
        "run": run.id,
        "model": cell.model,
        "task": cell.task,
        "arm": cell.arm,
        "size": cell.size,
        "rows": cell.rows,
        "seed": cell.seed,
        "pair": cell.pair,
        "status": run.status,
        "detail": run.detail,
        "primary": task.primary,
        "direction": METRICS[task.primary].direction,
        "scores": {split: _plain(values) for split, values in scores.items()},
        "step": step,
        "horizon": run.horizon,
        "train_s": run.train_s,
        "train_cpu_s": run.train_cpu_s,
        "eval_s": run.eval_s,
        "tokens": run.tokens,
        "peak_bytes": run.peak_bytes,
        "answers": None if answers is None or not ok else str(answers.relative_to(root)),
        "config": dict(cell.config),
        "trainable": task.arms[cell.arm].trainable,
        "parameters": task.arms[cell.arm].parameters,
        "kind": task.spec.model.kind,
        "task_kind": task.spec.task,
        "covariates": dict(task.covariates),
        **({"tests": {name: _plain(values) for name, values in tests.items()}} if tests else {}),
        **({"statistics": statistics} if statistics else {}),
        **({"signatures": signed} if signed else {}),
        **({"selection": dict(cell.selection)} if cell.selection else {}),
    }


def _plain(scores: Mapping[str, Score]) -> dict[str, list[float]]:
    return {name: [s.value, s.standard_error, s.n] for name, s in scores.items()}


def views(lines: Iterable[Line]) -> Iterator[Line]:
    """Every line once for each test set of its run: ``tested_on`` is its name, ``scores.test`` are its scores."""
    for entry in lines:
        yield {**entry, "tested_on": OWN}
        for name, scores in entry.get("tests", {}).items():
            yield {**entry, "tested_on": name, "scores": {**entry["scores"], "test": scores}}


def mixed(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether ``entries`` (lines, or blocks' fields) are measured by different outcomes, which have no common mean."""
    return len({(entry["primary"], entry["direction"]) for entry in entries}) > 1


def block_of(entry: Line) -> Block:
    """Where seeds repeat the same comparison: (model, task, size, test set)."""
    return entry["model"], entry["task"], entry["size"], entry.get("tested_on", OWN)


def read_results(path: Path) -> list[Line]:
    """The lines so far, in the order of the runs' ends; of a cell the first counts that no accident ended."""
    by_cell: dict[str, Line] = {}
    for entry in read_lines(path):
        if by_cell.get(entry["cell"], entry)["status"] in ACCIDENTS:
            by_cell[entry["cell"]] = entry
        by_cell.setdefault(entry["cell"], entry)
    return list(by_cell.values())


def outcomes(lines: Sequence[Line], metric: str | None = None) -> dict[Block, Values]:
    """A metric (the primary outcome) on the test rows by block, arm and seed; by test set where lines are `views`."""
    blocks: dict[Block, dict[str, dict[Any, float]]] = {}
    for entry in lines:
        arms = blocks.setdefault(block_of(entry), {})
        results = arms.setdefault(entry["arm"], {})
        score: Mapping[str, Sequence[float]] = entry["scores"].get("test", {})
        name = metric or entry["primary"]
        if name in score:
            results[entry["seed"]] = float(score[name][0])
    return blocks  # type: ignore[return-value]
