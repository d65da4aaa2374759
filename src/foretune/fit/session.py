"""One fit under way: its plan, its folder, and the means that every phase works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foretune.execution.drive import OnEvent, Watch, run_job
from foretune.execution.types import Executor, Job, TaskSpec
from foretune.files import fingerprint
from foretune.fit.folder import Clock, RunFolder
from foretune.fit.plan import Plan


@dataclass(frozen=True)
class Session:
    """What a phase of a fit is given."""

    plan: Plan
    folder: RunFolder
    clock: Clock
    watch: Watch
    executor: Executor
    on_event: OnEvent
    command: str
    started: str
    """When the run was begun, also where it is resumed now"""

    @property
    def run_id(self) -> str:
        """Unique over all fits."""
        return f"{Path(self.folder.root).name}-{fingerprint([self.started, str(self.folder.root.resolve())], 6)}"

    @property
    def time_s(self) -> float | None:
        """Seconds of the whole run, or None when the budget is in trials or steps."""
        return self.plan.budget.total if self.plan.budget.kind == "time" else None

    def left(self) -> float | None:
        """Seconds left of the time budget, or None."""
        return None if self.time_s is None else max(0.0, self.time_s - self.clock.used())

    def once(self, name: str, phase: str, compute: Callable[[], Any]) -> Any:
        """The result ``name``, computed at most once over all resumptions; its seconds are those of ``phase``."""
        with self.clock.phase(phase):
            return self.folder.once(name, compute)

    def job(
        self, kind: Literal["probe", "select", "export"], task: TaskSpec, payload: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The result of one job of a worker. Raises what the worker refused, `JobFailed`, or `Stopped`."""
        return run_job(self.executor, Job(kind, kind, task, payload), self.watch)
