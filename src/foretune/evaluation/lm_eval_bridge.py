"""Public benchmarks on a loaded model, run by EleutherAI's lm-evaluation-harness (the ``lm-eval`` extra).

The harness gets the model and tokenizer that are loaded here, adapter and all; its numbers are passed on as they
are. A folder of one's own task files can be added. Task files may name Python functions to run; such a folder is
refused unless its code is allowed. The harness's own tasks fetch their data from the hub; local ones need no network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from foretune.errors import DataError, Place, UsageError
from foretune.evaluation.greedy import answering

RUNS_CODE = "!function"
"""The tag by which a task file calls Python; ``custom_dataset`` and ``class`` do so by name."""
CODE_KEYS = ("custom_dataset:", "class:")
TASK_FILES = ("", ".yaml", ".yml")
"""Endings of task files and of what they usually include"""
BATCH_ROWS = 16


@dataclass(frozen=True)
class BenchmarkScore:
    """One metric of one benchmark task."""

    task: str
    metric: str
    """The harness's name, its answer filter included: ``acc``, ``exact_match (strict-match)``"""
    value: float
    standard_error: float | None
    n: int
    higher_is_better: bool | None


def run_benchmarks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    batch_rows: int = BATCH_ROWS,
    seed: int = 0,
    allow_code: bool = False,
) -> list[BenchmarkScore]:
    """Scores of ``tasks``, names of the harness or of files in ``folder``, over at most ``limit`` rows each.

    ``chat`` writes prompts through the chat template. Raises `UsageError` without the extra, for an unknown task, or
    for a folder with code; `DataError` where a task's data cannot be had or a score is not a number.
    """
    if not tasks:
        raise UsageError("no benchmark task was named.", remedy="Name one, such as arc_easy.")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"benchmark tasks need the lm-eval extra ({error}).", remedy="Run: pip install 'foretune[lm-eval]'"
        ) from error
    if folder is not None:
        _check_folder(folder, allow_code)
    manager = TaskManager(include_path=None if folder is None else str(folder))
    _check_names(tasks, manager)
    with answering(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_rows, device=None)
        try:
            found = simple_evaluate(
                wrapped, tasks=list(tasks), limit=limit, num_fewshot=shots, task_manager=manager, log_samples=False,
                apply_chat_template=chat, bootstrap_iters=1000, random_seed=seed, numpy_random_seed=seed,
                torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        except (OSError, ConnectionError) as error:  # the datasets library: no hub, no file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"the data of {', '.join(tasks)} cannot be had: {reason}",
                            remedy="Connect to the hub, or name tasks with local data.") from error  # fmt: skip
    return _scores(found or {})


def _check_folder(folder: Path, allow_code: bool) -> None:
    if not folder.is_dir():
        raise UsageError("there is no such folder of task files.", place=Place(folder))
    if allow_code:
        return
    waiting = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in TASK_FILES]
    checked: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in checked:
            continue
        checked.add(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if RUNS_CODE in line or line.strip().startswith(CODE_KEYS):
                raise UsageError("this task file runs Python code.", place=Place(path, number),
                                 remedy="Read it, and allow its code if you trust it.")  # fmt: skip
        waiting += [included for included in _included(text, path.parent) if included.is_file()]


def _included(text: str, folder: Path) -> list[Path]:
    """The files that a task file includes, as the harness finds them."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return []  # the harness cannot read it either
    named = value.get("include", []) if isinstance(value, Mapping) else []
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [(folder / str(name)).resolve() for name in names]


def _check_names(tasks: Sequence[str], manager: Any) -> None:
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            import difflib

            near = difflib.get_close_matches(task, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "See the task list of lm-evaluation-harness."
            raise UsageError(f"there is no benchmark task {task!r}.", remedy=hint)


def _scores(found: Mapping[str, Any]) -> list[BenchmarkScore]:
    """The harness's ``{task: {"metric,filter": value, "metric_stderr,filter": error}}`` as rows."""
    scores = []
    for task, numbers in found.get("results", {}).items():
        counted = found.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in numbers.items():
            metric, _, answer_filter = key.partition(",")
            if not answer_filter or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise DataError(f"{task}: {metric} is {value}, which is no score.", remedy="Has the model diverged?")
            error = numbers.get(f"{metric}_stderr,{answer_filter}")
            sure = isinstance(error, int | float) and math.isfinite(error)
            higher = found.get("higher_is_better", {}).get(task, {}).get(metric)
            name = metric if answer_filter == "none" else f"{metric} ({answer_filter})"
            scores.append(BenchmarkScore(task, name, float(value), float(error) if sure else None, counted, higher))
    return scores
