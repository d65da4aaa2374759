"""``kind: replay``: search methods judged on stored runs, task by task, each left out in turn.

Every cell (contestant, task, workers, with or without asking time, seed) is one line of results.jsonl; a study that was
stopped goes on with the cells that are missing. What is measured is in `search.replay.regret`, who takes part in
`search.replay.contestants`. The report is written by `study.replay_report`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from foretune.config.spec import Count, Section
from foretune.errors import UsageError
from foretune.experience.past import PastRun, bundled, known_runs, past_runs
from foretune.experience.store import default_path
from foretune.files import FolderLock, append_line, fingerprint, read_lines, write_json
from foretune.search.past_tasks import PastTask, past_tasks
from foretune.search.replay.contestants import (
    ABLATIONS,
    CONTESTANTS,
    DETERMINISTIC,
    PEERS,
    REDRAWN,
    SPOILED,
    Draw,
    every,
)
from foretune.search.replay.regret import covered, scored
from foretune.search.replay.simulation import simulate
from foretune.search.replay.world import World, world_of
from foretune.study.grid_file import find_grid, load_spec
from foretune.study.kinds import begin
from foretune.study.replay_report import summarised, write_report

OnEvent = Callable[[str, Mapping[str, Any]], None]
RESULTS = "results.jsonl"
DECIDING = ("source", "study", "hold_out")
"""Settings that decide what a cell holds, beside those in its key."""
LEARNING = frozenset({"transfer", *ABLATIONS, *SPOILED})
"""Contestants whose asks take long enough to need fewer seeds."""


class ReplaySpec(Section):
    """A replay as it is written down."""

    kind: Literal["replay"]
    name: str
    about: str = ""
    """What is asked, in a sentence."""
    source: str = "auto"
    """auto (what ships, else what this machine remembers), bundled, store, or a folder of exported experience."""
    study: str | None = None
    """Only the runs of this study or task list."""
    contestants: tuple[str, ...] = ("all",)
    """Names, or the groups all, ablations, adversaries and peers."""
    workers: tuple[Annotated[Count, Field(ge=1)], ...] = (1, 4, 8)
    """Numbers of workers, each a replay of its own."""
    asking_time: tuple[bool, ...] = (False,)
    """Whether asking takes virtual time."""
    seeds: Annotated[Count, Field(ge=1)] = 30
    """Of contestants that decide at once."""
    learning_seeds: Annotated[Count, Field(ge=1)] = 5
    """Of transfer, its ablations and adversaries."""
    peer_seeds: Annotated[Count, Field(ge=1)] = 3
    """Of other packages' searchers."""
    peer_tasks: Annotated[Count, Field(ge=1)] = 6
    """Tasks that other packages' searchers are replayed on."""
    tasks: Annotated[Count, Field(ge=1)] | None = None
    """Search at most so many tasks, those with most runs; learn from all others all the same."""
    hold_out: Literal["task", "model"] = "task"
    """What is not learnt from: the task that is searched, or all tasks of its model."""
    time: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no further cell is begun."""


@dataclass(frozen=True)
class Cell:
    """One search."""

    contestant: str
    task: str
    workers: int
    asking_time: bool
    seed: int

    @property
    def key(self) -> str:
        """A hash of all that defines it."""
        return fingerprint(vars(self))


@dataclass
class Stage:
    """The tasks of a replay and the draws made from them."""

    tasks: tuple[PastTask, ...]
    spec: ReplaySpec

    @cached_property
    def worlds(self) -> dict[str, World]:
        """Searchable tasks, those with most runs first."""
        found = [world for task in self.tasks if (world := world_of(task)) is not None]
        found.sort(key=lambda world: -len(world.entries))
        return {world.task.key: world for world in found[: self.spec.tasks]}

    def draw(self, key: str) -> Draw:
        """The world ``key`` with the tasks that may be learnt from."""
        world = self.worlds[key]

        def kept(task: PastTask) -> bool:
            if self.spec.hold_out == "model":
                return dict(task.facts.model) != dict(world.task.facts.model)
            return task.key != key

        return Draw(world, tuple(task for task in self.tasks if kept(task)))


@dataclass
class Drawn:
    """One world's draws and the strategies made from them, each made once."""

    draw: Draw
    again: dict[int, Draw] = field(default_factory=dict)
    """By the seed of what is learnt"""
    made: dict[tuple[str, int], tuple[Any, dict[str, float]]] = field(default_factory=dict)
    """By contestant and the seed of what it learnt"""

    def strategy(self, cell: Cell) -> tuple[Any, dict[str, float]]:
        """A cell's strategy, and its forecast factors by configuration."""
        seed = cell.seed if cell.contestant in REDRAWN else self.draw.seed
        if (cell.contestant, seed) not in self.made:
            draw = self.again.setdefault(seed, self.draw if seed == self.draw.seed else replace(self.draw, seed=seed))
            strategy = every()[cell.contestant](draw)
            self.made[cell.contestant, seed] = strategy, draw.costs(strategy.prior)
        return self.made[cell.contestant, seed]


def read_spec(source: str | Path) -> ReplaySpec:
    """The replay in a file. Raises `UsageError`."""
    path = find_grid(source)
    spec = load_spec(ReplaySpec, path)
    unknown = [name for name in named(spec) if name not in every()]
    if unknown:
        raise UsageError(f"{path}: there is no contestant {unknown[0]!r}.", remedy=f"Known: {', '.join(every())}.")
    return spec


def named(spec: ReplaySpec) -> tuple[str, ...]:
    """The contestants that a spec means, each once."""
    groups = {"all": CONTESTANTS, "ablations": ABLATIONS, "adversaries": SPOILED, "peers": PEERS}
    found: list[str] = []
    for name in spec.contestants:
        found += groups.get(name, (name,))
    return tuple(dict.fromkeys(found))


def about(source: str | Path) -> str:
    """See `study.kinds`."""
    return read_spec(source).about


def experience(source: str, study: str | None = None) -> list[PastRun]:
    """The runs that a replay is made from, of one study where it is named. Raises `UsageError` where there are none."""
    if source in ("auto", "bundled"):
        runs = bundled()
        if not runs and source == "auto":
            runs = known_runs()
    else:
        own = default_path() if source == "store" else Path(source).expanduser()
        runs = past_runs(own) if source != "store" or own.exists() else []
    runs = [run for run in runs if study in (None, run.study)]
    if not runs:
        raise UsageError(
            "there is no experience to replay.", remedy="Collect some: foretune experience collect, or import a sweep."
        )
    return runs


def run(source: str | Path, output: Path, *, time_s: float | None = None, on_event: OnEvent) -> dict[str, Any]:
    """Run or resume a replay in ``output``; see `study.kinds`. Raises `UsageError` where another was begun there."""
    spec = read_spec(source)
    stage = Stage(past_tasks(experience(spec.source, spec.study)), spec)
    if not stage.worlds:
        raise UsageError("no task has enough runs to be searched.", remedy="Eight configurations have to end well.")
    limit, began = min(time_s or 1e12, spec.time or 1e12), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with FolderLock(output):
        begin(output, spec, DECIDING)
        path = output / RESULTS
        done = {line["cell"] for line in read_lines(path)} if path.exists() else set()
        reason = "every cell is done"
        for key in stage.worlds:
            draw = stage.draw(key)
            drawn = Drawn(draw)
            for cell in _cells(spec, key, list(stage.worlds)):
                if cell.key in done:
                    continue
                if time.monotonic() - began > limit:
                    reason = "the time is over"
                    break
                append_line(path, _searched(drawn, cell))
            line = f"task {key[:8]}: {len(draw.pool)} configurations, {len(draw.others)} tasks to learn from"
            on_event("progress", {"line": line})
        summary = summarised(read_lines(path), stage.worlds, reason)
        write_json(output / "summary.json", summary)
        write_report(output, spec.name, spec.about, summary)
    return summary


def _cells(spec: ReplaySpec, key: str, keys: list[str]) -> Iterator[Cell]:
    """The cells of one task; seed after seed, so that what is done early is complete comparisons."""
    for seed in range(max(spec.seeds, spec.learning_seeds, spec.peer_seeds)):
        for asking in spec.asking_time:
            for workers in spec.workers:
                for name in named(spec):
                    seeds = spec.learning_seeds if name in LEARNING else spec.seeds
                    if name in PEERS:
                        seeds = spec.peer_seeds if keys.index(key) < spec.peer_tasks and workers == 1 else 0
                    if seed < (1 if name in DETERMINISTIC else seeds):
                        yield Cell(name, key, workers, asking, seed)


def _searched(drawn: Drawn, cell: Cell) -> dict[str, Any]:
    draw = drawn.draw
    strategy, factors = drawn.strategy(cell)
    trace = simulate(
        strategy, draw.world, workers=cell.workers, seed=cell.seed, asks_take_time=cell.asking_time, prior_cost=factors
    )
    score = {**scored(trace, draw.world).to_json(), "covered": finite(covered(strategy.prior, draw.world))}
    return {"cell": cell.key, **vars(cell), "score": score}


def finite(value: float) -> float | None:
    """A number as JSON keeps it."""
    return None if math.isnan(value) else round(value, 4)
