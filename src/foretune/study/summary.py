"""A study's results as one value: per block and over tasks every arm against the control, failures, what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.evaluation.base import Direction
from foretune.study.costs import arm_costs
from foretune.study.design import rate_label
from foretune.study.grid import TASKS, GridSpec
from foretune.study.results import FINISHED, Line, outcomes
from foretune.study.row_tests import RowTests
from foretune.study.statistics import (
    Block,
    Difference,
    compare_arms,
    compare_over_tasks,
    pooled_values,
)

SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class BlockResult:
    """One model, task and size."""

    model: str
    task: str
    size: str
    primary: str
    direction: Direction
    test_rows: int
    base: float | None
    """The untouched base model on the same test rows"""
    control_mean: float | None
    control_runs: int
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**vars(self), "differences": [difference.to_json() for difference in self.differences]}


@dataclass(frozen=True)
class Summary:
    """What a study found so far."""

    name: str
    about: str
    control: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    expected: int
    """Runs of the whole grid"""
    runs: int
    failed: tuple[dict[str, Any], ...]
    rates: str
    arm_rates: Mapping[str, tuple[float, ...]]
    """The learning rates that each arm ran with"""
    blocks: tuple[BlockResult, ...]
    pooled: tuple[Difference, ...]
    """Task × seed as repetitions"""
    over_tasks: tuple[Difference, ...]
    """Tasks as repetitions"""
    pooled_note: str
    primary: str
    train_hours: float
    used_s: float
    notes: tuple[str, ...]
    costs: tuple[dict[str, Any], ...] = ()
    """What every arm cost where rows are selected: `study.costs`"""

    @property
    def complete(self) -> bool:
        """Whether every run of the grid has ended."""
        return self.runs == self.expected

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            **vars(self),
            "complete": self.complete,
            "blocks": [block.to_json() for block in self.blocks],
            "pooled": [difference.to_json() for difference in self.pooled],
            "over_tasks": [difference.to_json() for difference in self.over_tasks],
        }


def summarise(
    grid: GridSpec,
    lines: Sequence[Line],
    *,
    base: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    expected: int,
    notes: Sequence[str],
    used_s: float,
    tests: RowTests | None = None,
) -> Summary:
    """The summary of the runs in ``lines``; ``base`` holds the base model's scores by (model, task)."""
    values = outcomes(lines)
    blocks = tuple(
        _block(grid, block, [e for e in lines if (e["model"], e["task"], e["size"]) == block], base, tests or {})
        for block in sorted(values, key=lambda block: _order(grid, block))
    )
    pooled, over_tasks, note = _pooled(grid, values, blocks)
    primaries = list(dict.fromkeys(block.primary for block in blocks))
    rates: dict[str, list[float]] = {arm: [] for arm in grid.arms}
    for entry in lines:
        rates[entry["arm"]].append(float(entry["config"]["learning_rate"]))
    return Summary(
        name=grid.name,
        about=grid.about,
        control=grid.control,
        models=tuple(grid.model),
        seeds=grid.seeds,
        expected=expected,
        runs=len(lines),
        failed=tuple(
            {key: entry[key] for key in ("run", "arm", "pair", "status", "detail")}
            for entry in lines
            if entry["status"] != FINISHED
        ),
        rates=rate_label(grid),
        arm_rates={arm: tuple(sorted(set(used))) for arm, used in rates.items()},
        blocks=blocks,
        pooled=pooled,
        over_tasks=over_tasks,
        pooled_note=note,
        primary=primaries[0] if len(primaries) == 1 else "each task's own outcome",
        train_hours=sum(entry["train_s"] + entry["eval_s"] for entry in lines) / SECONDS_AN_HOUR,
        used_s=used_s,
        notes=tuple(notes),
        costs=tuple(arm_costs(lines)),
    )


def _order(grid: GridSpec, block: Block) -> tuple[int, ...]:
    model, task, size = block
    return list(grid.model).index(model), list(grid.tasks).index(task), [str(s) for s in grid.sizes].index(size)


def _block(
    grid: GridSpec,
    block: Block,
    lines: Sequence[Line],
    base: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    tests: RowTests,
) -> BlockResult:
    model, task, size = block
    primary, direction = lines[0]["primary"], lines[0]["direction"]
    values = outcomes(lines)[block]
    ordered = {arm: values.get(arm, {}) for arm in grid.arms_on(task)}
    own = list(ordered[grid.control].values())
    measured = base.get((model, task), {}).get(primary)
    rows = max((entry["scores"]["test"][primary][2] for entry in lines if primary in entry["scores"].get("test", {})),
               default=0)  # fmt: skip
    return BlockResult(
        model=model,
        task=task,
        size=size,
        primary=primary,
        direction=direction,
        test_rows=int(rows),
        base=None if measured is None else float(measured[0]),
        control_mean=sum(own) / len(own) if own else None,
        control_runs=len(own),
        differences=tuple(
            replace(difference, rows=tests.get((block, difference.arm)))
            for difference in compare_arms(ordered, grid.control, direction, expected=len(grid.seeds))
        ),
    )


def _pooled(
    grid: GridSpec, values: Mapping[Block, Any], blocks: Sequence[BlockResult]
) -> tuple[tuple[Difference, ...], tuple[Difference, ...], str]:
    """Differences over all tasks, with tasks × seeds and with tasks as repetitions, and how they were made."""
    if len(blocks) < 2:
        return (), (), ""
    if len({(block.primary, block.direction) for block in blocks}) > 1:
        return (), (), "Tasks have different outcomes, so they are not pooled."
    direction = blocks[0].direction
    pooled = pooled_values(values, grid.control)
    ordered = {arm: pooled.get(arm, {}) for arm in grid.arms if TASKS not in grid.arms[arm]}
    tasks = len({block.task for block in blocks})
    note = (
        "One repetition is a task × seed; its difference is averaged over sizes and models first, because they share "
        "rows. The interval speaks of these tasks."
    )
    return (
        compare_arms(ordered, grid.control, direction, expected=len(grid.seeds) * len(grid.tasks)),
        compare_over_tasks(ordered, grid.control, direction, tasks),
        note,
    )
