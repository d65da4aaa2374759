"""One line a run: configuration, how it ended, test scores with errors, seconds, tokens, memory, where its answers are.

A failure is a line with its status and no score. The lines hold everything that the statistics need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.files import read_json, read_lines
from foretune.search.runs import Run
from foretune.search.types import Score
from foretune.study.design import StudyCell
from foretune.study.statistics import Block, Values
from foretune.study.tasks import StudyTask

FINISHED = "finished"
TRANSLATION_METRICS = ("chrf", "bleu")
SIGNED = ("bleu", "chrf")
"""Metrics whose numbers mean something only with sacreBLEU's signature."""
Line = dict[str, Any]


def scored(answers: Sequence[Answer], task: StudyTask) -> dict[str, Score]:
    """The scores of answers to the test rows, the outcome first."""
    names = [task.primary, task.spec.metric, *(TRANSLATION_METRICS if task.translation else ())]
    if task.spec.task != "regression":
        names.append("loss")
    if task.spec.model.kind != "encoder":
        names.append("loss_per_byte")
    elif task.spec.task == "classification":
        names.append("brier")
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


def read_answers(path: Path) -> tuple[int | None, list[Answer]]:
    """(the step of the checkpoint that answered, its answers). Raises `StoreError` when the file is gone."""
    if not path.is_file():
        raise StoreError(
            "the answers of a finished run are gone.", place=Place(path), remedy="Start the study in a new folder."
        )
    content = read_json(path)
    return content.get("step"), [Answer(**value) for value in content["answers"]]


def line(study: str, cell: StudyCell, run: Run, task: StudyTask, answers: Path | None, root: Path) -> Line:
    """The line of an ended run; ``answers`` is its file of answers, or None where none are asked for."""
    ok = run.status == FINISHED
    scores: dict[str, dict[str, Score]] = {}
    signed: dict[str, str] = {}
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
        "scores": {
            split: {name: [s.value, s.standard_error, s.n] for name, s in values.items()}
            for split, values in scores.items()
        },
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
        **({"signatures": signed} if signed else {}),
        **({"selection": dict(cell.selection)} if cell.selection else {}),
    }


def read_results(path: Path) -> list[Line]:
    """The lines so far, in the order of the runs' ends; the first of a cell counts."""
    by_cell: dict[str, Line] = {}
    for entry in read_lines(path):
        by_cell.setdefault(entry["cell"], entry)
    return list(by_cell.values())


def outcomes(lines: Sequence[Line]) -> dict[Block, Values]:
    """The primary outcome on the test rows by block, arm and seed."""
    blocks: dict[Block, dict[str, dict[Any, float]]] = {}
    for entry in lines:
        arms = blocks.setdefault((entry["model"], entry["task"], entry["size"]), {})
        results = arms.setdefault(entry["arm"], {})
        score: Mapping[str, Sequence[float]] = entry["scores"].get("test", {})
        if entry["primary"] in score:
            results[entry["seed"]] = float(score[entry["primary"]][0])
    return blocks  # type: ignore[return-value]
