"""``kind: live``: whole fits against each other, as a user would run them: the same budget, tasks, model and seeds.

An arm is `foretune fit` with settings of its own. Systems that every fit measures beside its winner (the untouched
base, the base with examples, the default LoRA) are read from the control's fits and cost nothing. Every fit has a store
of its own that is empty at first, so that no arm learns from another: experience is what ships.

A fit that was interrupted is resumed, one that is done is never repeated; each leaves a line in results.jsonl. What the
numbers say is in `study.live_report`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from foretune.catalogue.models import DEFAULT_MODEL
from foretune.config.spec import Count, Section, flat_settings
from foretune.errors import ForetuneError, Interrupted, UsageError
from foretune.files import FolderLock, append_line, fingerprint, read_lines, write_json
from foretune.fit import start
from foretune.fit.request import FitRequest
from foretune.report.record import RunRecord, SystemResult
from foretune.study.grid_file import find_grid, load_spec
from foretune.study.kinds import begin
from foretune.study.live_report import summarised, write_report
from foretune.units import format_duration, parse_duration

OnEvent = Callable[[str, Mapping[str, Any]], None]
RESULTS = "results.jsonl"
RULE = "rule"
"""As a learning rate: what the rule says for the arm's method, model and steps."""
RATE = "training.learning_rate"
STORE_VARIABLE = "FORETUNE_STORE"
Flat = Annotated[dict[str, Any], BeforeValidator(flat_settings)]
"""Settings of a fit, nested or by dotted key."""


class LiveSpec(Section):
    """A comparison of fits as it is written down."""

    kind: Literal["live"]
    name: str
    about: str = ""
    """What is asked, in a sentence."""
    model: str = DEFAULT_MODEL
    time: Annotated[str, Field(pattern=r"^[0-9.]+[smh]$")] | None = "6m"
    """Of every fit; none where ``settings`` hold another budget."""
    seeds: Annotated[Count, Field(ge=1)] = 3
    settings: Flat = Field(default_factory=dict)
    """Of all fits."""
    tasks: dict[str, Flat] = Field(min_length=1)
    """Settings of each task: at least data.path."""
    arms: dict[str, Flat] = Field(min_length=1)
    """Settings of each arm; the first is the control."""
    judged: dict[str, bool] = Field(default_factory=dict)
    """Arms that hand their model over unseen (false): no comparison with the base holds them back."""


@dataclass(frozen=True)
class Cell:
    """One fit."""

    task: str
    arm: str
    seed: int

    @property
    def folder(self) -> str:
        """Its place under the study's folder."""
        return f"fits/{self.task}/{self.arm}/{self.seed}"


def read_spec(source: str | Path) -> LiveSpec:
    """The comparison in a file. Raises `UsageError`."""
    path = find_grid(source)
    spec = load_spec(LiveSpec, path)
    for name, settings in spec.tasks.items():
        if "data.path" not in settings:
            raise UsageError(f"{path}: the task {name} names no data.", remedy="Write data.path.")
    return spec


def about(source: str | Path) -> str:
    """See `study.kinds`."""
    return read_spec(source).about


def run(source: str | Path, output: Path, *, time_s: float | None = None, on_event: OnEvent) -> dict[str, Any]:
    """Run or resume the comparison in ``output``; see `study.kinds`. Raises `Interrupted`."""
    spec = read_spec(source)
    began, reason = time.monotonic(), "every fit is done"
    output.mkdir(parents=True, exist_ok=True)
    with FolderLock(output):
        begin(output, spec)
        path = output / RESULTS
        done = {line["cell"] for line in read_lines(path)} if path.exists() else set()
        listed = {_key(spec, cell): cell for cell in cells(spec)}
        todo = [cell for key, cell in listed.items() if key not in done]
        on_event("progress", {"line": _announced(spec, todo)})
        for number, cell in enumerate(todo, start=1):
            if time_s is not None and time.monotonic() - began > time_s:
                reason = "the time is over"
                break
            line = {"cell": _key(spec, cell), **vars(cell), **_fitted(spec, cell, output, on_event)}
            append_line(path, line)
            on_event("progress", {"line": f"{number} of {len(todo)}: {cell.arm} on {cell.task}, seed {cell.seed}: "
                                          f"{line.get('error') or line['said']}"})  # fmt: skip
        lines = read_lines(path) if path.exists() else []
        present = [line for line in lines if line["cell"] in listed]  # an arm may have been taken out, or changed
        summary: dict[str, Any] = summarised(present, spec.arms, spec.judged, reason)
        write_json(output / "summary.json", summary)
        write_report(output, spec.name, spec.about, summary)
    return summary


def cells(spec: LiveSpec) -> Iterator[Cell]:
    """Every fit, seed after seed: what is done early is a complete comparison."""
    for seed in range(spec.seeds):
        for task in spec.tasks:
            for arm in spec.arms:
                yield Cell(task, arm, seed)


def _key(spec: LiveSpec, cell: Cell) -> str:
    return fingerprint([vars(cell), _options(spec, cell)])


def _announced(spec: LiveSpec, todo: list[Cell]) -> str:
    known = f", at most {format_duration(len(todo) * parse_duration(spec.time))} in all" if spec.time else ""
    return f"{len(todo)} fits to run ({len(spec.arms)} arms, {len(spec.tasks)} tasks, {spec.seeds} seeds){known}"


def _options(spec: LiveSpec, cell: Cell) -> dict[str, Any]:
    options = {"model.source": spec.model, "budget.time": spec.time, "search.seed": cell.seed, **spec.settings}
    options |= {**spec.tasks[cell.task], **spec.arms[cell.arm]}
    return {name: value for name, value in options.items() if value is not None}


def _fitted(spec: LiveSpec, cell: Cell, output: Path, on_event: OnEvent) -> dict[str, Any]:
    """What a fit found, or why it failed."""
    folder, options = output / cell.folder, _options(spec, cell)
    with own_store(output / "stores" / f"{_key(spec, cell)}.sqlite"):
        try:
            if options.get(RATE) == RULE:
                options[RATE] = _rule_rate({name: value for name, value in options.items() if name != RATE})
            result = start(request_of(options), folder, command="foretune study run", on_event=_quiet(on_event))
        except Interrupted:
            raise
        except ForetuneError as error:
            return {"error": str(error)}
    return found(result.record)


def _rule_rate(options: Mapping[str, Any]) -> float:
    """The learning rate that a plan of the same fit would start from."""
    return float(request_of(options).plan().config["learning_rate"])


def request_of(options: Mapping[str, Any]) -> FitRequest:
    """A fit's request; settings of a trial are given as a user would, one by one."""
    sets = [f"{name}={value}" for name, value in options.items() if name.startswith("training.")]
    return FitRequest({name: value for name, value in options.items() if not name.startswith("training.")}, tuple(sets))


def _quiet(on_event: OnEvent) -> OnEvent:
    """Of a fit's own events only its lines."""

    def seen(kind: str, payload: Mapping[str, Any]) -> None:
        if kind == "progress":
            on_event(kind, payload)

    return seen


@contextmanager
def own_store(path: Path) -> Iterator[None]:
    """Let fits remember in ``path`` and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(STORE_VARIABLE)
    os.environ[STORE_VARIABLE] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STORE_VARIABLE]
        else:
            os.environ[STORE_VARIABLE] = before


def found(record: RunRecord) -> dict[str, Any]:
    """What is kept of a fit: the systems on its test rows, what it cost, what it said."""
    comparison = record.comparison
    if comparison is None:
        return {"error": "the fit compared nothing"}
    info, winner = comparison.info(comparison.metric), comparison.system("winner")
    against = None if winner is None else winner.difference(comparison.metric, "base")
    return {
        "metric": info.name,
        "direction": info.direction,
        "systems": {system.role: _measured(system) for system in comparison.systems},
        "verdict": None if against is None else against.verdict,
        "used_s": record.budget.used,
        "trials": len(record.trials),
        "chosen": next((dict(trial.config) for trial in record.trials if trial.is_winner), None),
        "said": f"{info.name} {_value(comparison.system('base'), info.name)} → {_value(winner, info.name)}",
    }


def _measured(system: SystemResult) -> dict[str, float]:
    return {name: measure.value for name, measure in system.metrics.items()}


def _value(system: SystemResult | None, metric: str) -> str:
    return "?" if system is None or metric not in system.metrics else f"{system.metrics[metric].value:.4g}"
