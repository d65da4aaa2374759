"""What a study leaves behind: summary, table, rules and report, always made afresh from what its folder holds.

Nothing here runs a model. The same function serves the end of a run and ``foretune study report`` on a folder that is
finished, under way or was copied from elsewhere; only the bootstrap over test rows is kept between calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune import __version__
from foretune.config.rules_file import PRIORS, read_rules, rules_text, write_rules
from foretune.errors import Place, UsageError
from foretune.experience.store import default_path
from foretune.files import read_json, sha256_file, write_json, write_text
from foretune.fit.folder import Clock
from foretune.study.design import CONFOUNDED, notes
from foretune.study.folder import StudyFolder, base_name, saved_grid
from foretune.study.grid import GridSpec
from foretune.study.rates import chosen_rates, deciding
from foretune.study.results import Line, read_results, views
from foretune.study.row_tests import row_tests
from foretune.study.rules import Ruling, ruling
from foretune.study.summary import Base, Summary, summarise
from foretune.study.tables import markdown
from foretune.study.tasks import StudyTask
from foretune.study.test_sets import OWN

Pair = tuple[str, str]
"""(model, task)"""


@dataclass(frozen=True)
class Material:
    """Everything a study's folder holds."""

    grid: GridSpec
    folder: StudyFolder
    tasks: Mapping[Pair, StudyTask]
    """Those that are prepared"""
    lines: tuple[Line, ...]
    swept: tuple[Line, ...]
    base: Base
    """The untouched base model's scores"""
    used_s: float


@dataclass(frozen=True)
class Seen:
    """What one test set says of all runs."""

    lines: tuple[Line, ...]
    base: Mapping[Pair, Mapping[str, Any]]
    ruling: Ruling


@dataclass(frozen=True)
class Results:
    """What was found in it."""

    material: Material
    summary: Summary
    seen: Mapping[str, Seen]
    """By test set, the task's own first"""

    @property
    def ruling(self) -> Ruling:
        """The rules: those of the task's own test rows, because what is advised is advised for such rows."""
        return self.seen[OWN].ruling


def material_of(root: Path) -> Material:
    """Read the folder of a study. Raises `OutputError` when there is none."""
    grid, folder = saved_grid(root), StudyFolder(root)
    tasks: dict[Pair, StudyTask] = {}
    base: dict[str, dict[Pair, Mapping[str, Any]]] = {}
    for model in grid.model:
        for name in grid.tasks:
            task_folder = folder.task(model, name).root
            if (task_folder / "prepared.json").is_file():
                tasks[model, name] = StudyTask.from_json(read_json(task_folder / "prepared.json"))
            for tested_on in (OWN, *grid.tasks[name].tests):
                path = task_folder / f"{base_name(tested_on)}.json"
                if path.is_file():
                    base.setdefault(tested_on, {})[model, name] = read_json(path)
    return Material(
        grid, folder, tasks, tuple(read_results(folder.results)), tuple(read_results(folder.rates)), base,
        Clock(folder.clock).used(),
    )  # fmt: skip


def arms_of(material: Material) -> dict[Pair, int]:
    """How many arms every model and task has; arms that a model cannot have are not counted where that is known."""
    grid = material.grid
    return {
        (key := (model, task)): len(material.tasks[key].arms if key in material.tasks else grid.arms_on(task))
        for model in grid.model
        for task in grid.tasks
    }


def results_of(material: Material) -> Results:
    """Comparisons and rules of what there is."""
    grid, lines = material.grid, material.lines
    said = [*notes(grid), *_left_out(material)]
    if lines and material.swept:
        said += chosen_rates(grid, material.swept, deciding(grid, material.tasks.values()))[1]
    summary = summarise(
        grid, lines, base=material.base, arms=arms_of(material), notes=said, used_s=material.used_s,
        tests=row_tests(list(views(lines)), grid.families, material.folder.root),
    )  # fmt: skip
    return Results(material, summary, {name: _seen(material, summary, name) for name in _test_sets(grid)})


def _test_sets(grid: GridSpec) -> list[str]:
    return list(dict.fromkeys([OWN, *(name for task in grid.tasks.values() for name in task.tests)]))


def _seen(material: Material, summary: Summary, tested_on: str) -> Seen:
    lines = tuple(entry for entry in views(material.lines) if entry["tested_on"] == tested_on)
    blocks = [block for block in summary.blocks if block.tested_on == tested_on]
    pooled = [one for group in summary.pooled if group.tested_on == tested_on for one in group.over_seeds]
    alone = len({(block.model, block.task, block.size) for block in blocks}) == 1
    comparison = pooled or [one for block in blocks for one in block.differences if alone]
    return Seen(lines, material.base.get(tested_on, {}), ruling(material.grid, lines, comparison))


def _left_out(material: Material) -> list[str]:
    """Arms that some model cannot have, a sentence each."""
    found: dict[str, str] = {}
    for (model, _), task in material.tasks.items():
        for arm, reason in task.left_out.items():
            where = arm if len(material.grid.model) == 1 else f"{arm} on {model}"
            found.setdefault(where, f"Arm {where} is left out: {reason}")
    return list(found.values())


def write_outputs(root: Path) -> Results:
    """Write ``summary.json``, ``table.md``, ``priors.yaml`` and ``report.html``; returns what they were made from."""
    from foretune.study.page import page

    found = results_of(material_of(root))
    folder = found.material.folder
    write_json(folder.summary, found.summary.to_json())
    write_text(folder.table, markdown(found.summary))
    write_text(folder.priors, rules_text(found.ruling.rules, provenance(found)))
    write_text(folder.report, page(found))
    return found


def provenance(found: Results) -> dict[str, Any]:
    """Which study made the rules, of what."""
    results = found.material.folder.results
    return {
        "study": found.material.grid.name,
        "foretune": __version__,
        "runs": found.summary.runs,
        "complete": found.summary.complete,
        "results_sha256": sha256_file(results) if results.is_file() else "",
        "not_resolved": list(found.ruling.unresolved),
    }


def use_rules(found: Results) -> Path:
    """Put the rules of a study beside the experience store, in place of earlier ones of the same name; the path.

    Raises `UsageError` for a study whose learning rates are confounded.
    """
    if CONFOUNDED in found.summary.rates:
        raise UsageError(
            "the learning rates of this study were not swept, so its rules may speak of rates rather than of arms.",
            place=Place(found.material.folder.root),
            remedy="Run it with learning_rate: {factors: [0.3, 1, 3]}, or name the file in search.priors yourself.",
        )
    path = default_path().parent / PRIORS
    kept = [
        rule for rule in (read_rules(path) if path.is_file() else ()) if rule.source != f"study {found.summary.name}"
    ]
    write_rules(path, [*kept, *found.ruling.rules], {"foretune": __version__})
    return path
