"""What a study will take and what it can find, said before its first run.

Seconds come from a probe of every model and task on this machine; for arms of another method they are scaled by what
the experience store knows of the methods' speeds here. The smallest detectable effect comes from the spread of paired
differences in a pilot, an earlier study or the experience store; while none is known it is given in units of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foretune.errors import ForetuneError, Place, UsageError
from foretune.experience.store import Store
from foretune.fit.schedule import Speeds
from foretune.search.fidelity import rungs
from foretune.study.design import StudyCell
from foretune.study.grid import GridSpec
from foretune.study.results import Line, outcomes, read_results
from foretune.study.statistics import Block, detectable_before, spread
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import OWN

logger = logging.getLogger(__name__)
SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True)
class Design:
    """The announcement of a study."""

    runs: int
    sweep_runs: int
    done: int
    """Runs that an earlier session has finished"""
    run_hours: float
    """Forecast hours of all runs that are left, on one worker"""
    wall_hours: float
    seeds: int
    units: int
    """Repetitions over all tasks: task × seed"""
    sd: float | None
    """Spread of one paired difference, in the outcome's unit"""
    sd_source: str
    detectable: float | None
    """Of one block, in the outcome's unit, or in units of the spread where that is unknown"""
    detectable_pooled: float | None
    rates: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**asdict(self), "notes": list(self.notes)}


def cell_seconds(cell: StudyCell, task: StudyTask, probe: Mapping[str, Any], factor: float = 1.0) -> float:
    """Forecast seconds of a run on one worker; ``factor`` scales training for the arm's method."""
    speeds = Speeds.of(probe)
    measured = len(rungs(cell.horizon)) if task.best or not cell.tested else 1
    seconds = factor * cell.horizon * min(int(cell.config["rows_per_update"]), cell.rows) / speeds.train_rows_per_s
    seconds += measured * task.rows["validation"] / speeds.score_rows_per_s
    if cell.tested:
        tested = task.rows["test"] + sum(task.tests.values())
        seconds += tested / speeds.score_rows_per_s
        seconds += tested * speeds.answer_s if task.generation else 0.0
    return seconds


def left(cells: Iterable[StudyCell], lines: Iterable[Line], *, by_rate: bool = False) -> list[StudyCell]:
    """Those of ``cells`` that have no line, whatever their learning rate; in a sweep (``by_rate``) the rate counts."""

    def key(at: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, ...]:
        rate = (float(config["learning_rate"]),) if by_rate else ()
        return tuple(at[name] for name in ("model", "task", "arm", "size", "seed")) + rate

    ended = {key(entry, entry["config"]) for entry in lines}
    return [cell for cell in cells if key(vars(cell), cell.config) not in ended]


def method_factors(hardware: str, model: str, reference: str) -> dict[str, float]:
    """How much longer a method takes per token than ``reference``, as this machine's record of ``model`` has it."""
    try:
        with Store() as store:
            record = {
                entry.method: entry.tokens_per_s for entry in store.machine_record(hardware) if entry.model == model
            }
    except (ForetuneError, ZeroDivisionError) as error:
        logger.warning("earlier runs are not used: %s", error)
        return {}
    if record.get(reference, 0.0) <= 0:
        return {}
    return {method: record[reference] / speed for method, speed in record.items() if speed > 0}


def known_spread(grid: GridSpec, primaries: Sequence[str]) -> tuple[float | None, str]:
    """The spread of one paired difference and where it is known from; None with the reason when it is not."""
    pilot = grid.pilot
    if pilot is not None and pilot.sd is not None:
        return pilot.sd, "given in the grid"
    if pilot is not None and pilot.results is not None:
        return _of_results(Path(pilot.results), grid.control), f"of the pairs in {pilot.results}"
    if len(set(primaries)) > 1:
        return None, "tasks have different outcomes"
    found = spread(_stored(grid, primaries[0]), grid.control)
    if found is None:
        return None, "no earlier pairs of this study are stored"
    return found, "of earlier pairs of this study in the experience store"


def _of_results(path: Path, control: str) -> float:
    path = path / "results.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UsageError("there are no results of a pilot here.", place=Place(path), remedy="Check pilot.results.")
    found = spread(outcomes(read_results(path)), control)
    if found is None:
        raise UsageError(
            f"these results hold no two pairs with {control}, so they have no spread.",
            place=Place(path),
            remedy="Give the results of a study with the same control and two seeds, or pilot.sd.",
        )
    return found


def _stored(grid: GridSpec, primary: str) -> dict[Block, dict[str, dict[Any, float]]]:
    """The outcome of earlier runs of a study of this name, by block, arm and pair."""
    blocks: dict[Block, dict[str, dict[Any, float]]] = {}
    try:
        with Store() as store:
            for row in store.runs(study=grid.name, status="finished"):
                last = [seen for seen in store.curve(row.record.id) if (seen.split, seen.metric) == ("test", primary)]
                if last and row.record.arm in grid.arms:
                    block = (row.record.model, row.record.task, str(row.record.horizon), OWN)
                    started = row.record.id.rpartition(".")[0]
                    results = blocks.setdefault(block, {}).setdefault(row.record.arm, {})
                    results[started, row.record.pair] = last[-1].value
    except ForetuneError as error:
        logger.warning("earlier runs are not used: %s", error)
    return blocks


def detectable(grid: GridSpec, sd: float | None) -> tuple[float | None, float | None]:
    """The smallest detectable effect of one block and over all tasks, in units of ``sd`` or of one."""
    arms, seeds = len(grid.arms), len(grid.seeds)
    return detectable_before(arms, seeds, sd), detectable_before(arms, seeds * len(grid.tasks), sd)


def sentences(design: Design, primary: str) -> list[str]:
    """The announcement in words."""
    from foretune.units import format_duration

    total = design.runs + design.sweep_runs
    counted = f"{total} runs" + (f", {design.sweep_runs} of them to choose learning rates" if design.sweep_runs else "")
    left = f" ({design.done} are done)" if design.done else ""
    wall = format_duration(design.wall_hours * SECONDS_AN_HOUR)
    lines = [
        f"{counted}{left}: {design.run_hours:.2g} run-hours, about {wall}",
        f"learning rates: {design.rates}",
    ]
    if design.detectable is None:
        lines.append(f"smallest detectable effect: none, {design.seeds} seed repeats nothing; at least 2 are needed")
    else:
        unit = f"in {primary}" if design.sd is not None else "standard deviations of a paired difference"
        known = f"spread {design.sd:.3g} {design.sd_source}" if design.sd is not None else f"{design.sd_source}"
        lines.append(
            f"smallest detectable effect: {design.detectable:.3g} {unit} with {design.seeds} seeds, "
            f"{design.detectable_pooled:.3g} over {design.units} task × seed pairs "
            f"(80 % power, 5 % after Holm; {known})"
        )
    return [*lines, *design.notes]
