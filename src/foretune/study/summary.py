"""A study's results as one value: per block and over tasks every arm against the control, failures, what it took.

A block is a model, a task, a size and a test set. Runs are counted once, however many sets they were tested on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.evaluation.base import Direction
from foretune.evaluation.metrics import metric
from foretune.study.arms import TASKS
from foretune.study.costs import arm_costs
from foretune.study.design import rate_label
from foretune.study.grid import GridSpec
from foretune.study.results import FINISHED, MIXED, Line, block_of, mixed, outcomes, views
from foretune.study.row_tests import RowTests
from foretune.study.statistics import (
    Block,
    Difference,
    compare_arms,
    compare_over_tasks,
    pooled_values,
)
from foretune.study.test_sets import OWN

SECONDS_AN_HOUR = 3600.0
Base = Mapping[str, Mapping[tuple[str, str], Mapping[str, Sequence[float]]]]
"""The untouched base model's scores by test set and (model, task)"""


@dataclass(frozen=True)
class BlockResult:
    """One model, task, size and test set, and the arms that are compared with one control."""

    model: str
    task: str
    size: str
    tested_on: str
    """The name of the test set; empty for the task's own"""
    primary: str
    direction: Direction
    test_rows: int
    base: float | None
    """The untouched base model on the same test rows"""
    control: str
    """The arm that the others in ``differences`` are compared with"""
    control_mean: float | None
    control_runs: int
    differences: tuple[Difference, ...]
    beside: Mapping[str, tuple[Difference, ...]]
    """The same comparison in every other metric that was measured"""
    runs: int = 0
    """Runs that have ended"""
    expected: int = 0
    """Runs that there will be"""

    @property
    def complete(self) -> bool:
        """Whether every run has ended."""
        return self.runs == self.expected

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        beside = {metric: [found.to_json() for found in differences] for metric, differences in self.beside.items()}
        return {**vars(self), "differences": [found.to_json() for found in self.differences], "beside": beside}


@dataclass(frozen=True)
class Pooled:
    """Arms against their control over all tasks, on one test set."""

    tested_on: str
    control: str
    over_seeds: tuple[Difference, ...]
    """Task × seed as repetitions"""
    over_tasks: tuple[Difference, ...]
    """Tasks as repetitions"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        parts = {name: getattr(self, name) for name in ("over_seeds", "over_tasks")}
        return {
            "tested_on": self.tested_on,
            "control": self.control,
            **{name: [d.to_json() for d in found] for name, found in parts.items()},
        }


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
    expected_blocks: int
    """Models × tasks × sizes"""
    runs: int
    failed: tuple[dict[str, Any], ...]
    rates: str
    arm_rates: Mapping[str, tuple[float, ...]]
    """The learning rates that each arm ran with"""
    blocks: tuple[BlockResult, ...]
    pooled: tuple[Pooled, ...]
    """By test set; empty where there is one block or no common outcome"""
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

    @property
    def complete_blocks(self) -> int:
        """Models × tasks × sizes of which every run has ended."""
        own = [block for block in self.blocks if block.tested_on == OWN]
        return len({(block.model, block.task, block.size) for block in own if block.complete})

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            **vars(self),
            "complete": self.complete,
            "complete_blocks": self.complete_blocks,
            "blocks": [block.to_json() for block in self.blocks],
            "pooled": [pooled.to_json() for pooled in self.pooled],
        }


def summarise(
    grid: GridSpec,
    lines: Sequence[Line],
    *,
    base: Base,
    arms: Mapping[tuple[str, str], int],
    notes: Sequence[str],
    used_s: float,
    tests: RowTests | None = None,
) -> Summary:
    """The summary of the runs in ``lines``; ``arms`` says how many there are by (model, task)."""
    seen = list(views(lines))
    values = outcomes(seen)
    ended = Counter(block_of(entry)[:3] for entry in lines)
    blocks = tuple(
        replace(
            _block(grid, block, control, [e for e in seen if block_of(e) == block], base, tests or {}),
            runs=ended[block[:3]],
            expected=arms[block[:2]] * len(grid.seeds),
        )
        for block in sorted(values, key=lambda block: _order(grid, block))
        for control, family in grid.families.items()
        if control == grid.control or any(arm in values[block] for arm in family)
    )
    pooled, note = _pooled(grid, values, blocks)
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
        expected=sum(arms.values()) * len(grid.sizes) * len(grid.seeds),
        expected_blocks=len(arms) * len(grid.sizes),
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
        pooled_note=note,
        primary=primaries[0] if len(primaries) == 1 else "each task's own outcome",
        train_hours=sum(entry["train_s"] + entry["eval_s"] for entry in lines) / SECONDS_AN_HOUR,
        used_s=used_s,
        notes=(*notes, *_machines(lines)),
        costs=tuple(arm_costs(lines)),
    )


def _machines(lines: Sequence[Line]) -> list[str]:
    """A warning where runs, or the choice of their rows, come from several machines."""
    told = [part.get("machine") for entry in lines for part in (entry, entry.get("selection") or {})]
    count = len({machine for machine in told if machine})
    said = f"runs and rankings come from {count} machines: what arms cost is told for one of them"
    return [said] if count > 1 else []


def _order(grid: GridSpec, block: Block) -> tuple[int, ...]:
    model, task, size, tested_on = block
    sets = [OWN, *grid.tasks[task].tests]
    places = list(grid.model).index(model), list(grid.tasks).index(task), [str(s) for s in grid.sizes].index(size)
    return *places, sets.index(tested_on)


def _block(
    grid: GridSpec,
    block: Block,
    control: str,
    lines: Sequence[Line],
    base: Base,
    tests: RowTests,
) -> BlockResult:
    model, task, size, tested_on = block
    arms = [arm for arm in grid.arms_on(task) if arm in grid.families[control]]
    primary, direction = lines[0]["primary"], lines[0]["direction"]

    def compared(metric: str, direction: Direction) -> tuple[Difference, ...]:
        values = outcomes(lines, metric)[block]
        ordered = {arm: values.get(arm, {}) for arm in arms}
        return compare_arms(ordered, control, direction, expected=len(grid.seeds))

    own = list(outcomes(lines)[block].get(control, {}).values())
    others = dict.fromkeys(name for entry in lines for name in entry["scores"].get("test", {}) if name != primary)
    measured = base.get(tested_on, {}).get((model, task), {}).get(primary)
    rows = max((entry["scores"]["test"][primary][2] for entry in lines if primary in entry["scores"].get("test", {})),
               default=0)  # fmt: skip
    return BlockResult(
        model=model,
        task=task,
        size=size,
        tested_on=tested_on,
        primary=primary,
        direction=direction,
        test_rows=int(rows),
        base=None if measured is None else float(measured[0]),
        control=control,
        control_mean=sum(own) / len(own) if own else None,
        control_runs=len(own),
        differences=tuple(
            replace(difference, rows=tests.get((block, difference.arm))) for difference in compared(primary, direction)
        ),
        beside={name: compared(name, metric(name).direction) for name in others},
    )


def _pooled(
    grid: GridSpec, values: Mapping[Block, Any], blocks: Sequence[BlockResult]
) -> tuple[tuple[Pooled, ...], str]:
    """Differences over all tasks for each test set, and how they were made."""
    if mixed(map(vars, blocks)):
        return (), MIXED
    whole = [block for block in blocks if block.complete] or blocks
    found = []
    for tested_on in dict.fromkeys(block.tested_on for block in blocks):
        own = [block for block in whole if block.tested_on == tested_on]
        keys = dict.fromkeys((b.model, b.task, b.size, b.tested_on) for b in own)
        if len(keys) < 2:
            continue
        tasks, direction = len({block.task for block in own}), own[0].direction
        for control, arms in grid.families.items():
            pooled = pooled_values({key: values[key] for key in keys if key in values}, control)
            ordered = {arm: pooled.get(arm, {}) for arm in arms if TASKS not in grid.arms[arm]}
            over_seeds = compare_arms(ordered, control, direction, expected=len(grid.seeds) * tasks)
            over_tasks = compare_over_tasks(ordered, control, direction, tasks)
            if over_seeds:  # every arm may have a control of its own
                found.append(Pooled(tested_on, control, over_seeds, over_tasks))
    note = (
        "One repetition is a task × seed; its difference is averaged over sizes and models first, because they share "
        "rows. The interval speaks of these tasks."
    )
    left = "" if len(whole) == len(blocks) else " Only blocks whose runs have all ended are in it."
    return tuple(found), f"{note}{left}" if found else ""
