"""What a search knows and owes, as a state machine over the events of its journal.

Nothing here reads a clock, asks a strategy or writes a file: the same events give the same ledger, which is what
makes a resumed search equal to one that was never interrupted.

Wall time is rebuilt from the events alone: a lease starts at the time spent when it is handed out, each observation
moves the lease's own clock on by its measured seconds, what is charged to it (loading, checkpoints) likewise, and the
time spent is the latest of these clocks. With one worker that is the sum of all seconds; with several, parallel work
counts once and waiting counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.search.budget import Budget
from foretune.search.pace import Pace
from foretune.search.runs import Run, RunStatus
from foretune.search.types import FAILURES, Lease, Observation

MAX_STALLS = 3
"""A lease taken back or paused so often without a single new step ends its run as ``timeout``."""


@dataclass
class Order:
    """A lease with what became of it."""

    lease: Lease
    """As first decided, with the uncorrected forecast."""
    attempt: int
    step: int
    """The last step accepted under it."""
    open: bool = True
    queued: bool = False
    """To be handed out again."""
    stalls: int = 0
    clock: float = 0.0
    """Reconstructed wall time of its last sign of life, for budgets in time."""

    def is_current(self, attempt: int) -> bool:
        """Whether a report of ``attempt`` may move the run."""
        return self.open and not self.queued and attempt == self.attempt

    @property
    def share_left(self) -> float:
        """The share of the lease's steps that is still to do."""
        return (self.lease.to_step - self.step) / (self.lease.to_step - self.lease.from_step)


class Ledger:
    """Runs, leases, budget, pace and notes; changed by `apply` alone."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.runs: dict[str, Run] = {}
        self.orders: dict[str, Order] = {}
        self.notes: dict[str, Any] = {}
        self.charges: dict[str, float] = {}
        self.pace = Pace()

    def held(self) -> float:
        """What is promised to open leases, in the budget's unit."""
        return sum(self.remaining(order) for order in self.orders.values() if order.open)

    def remaining(self, order: Order) -> float:
        """What an open lease may still take, in the budget's unit (a trial is spent when it is started)."""
        if self.budget.kind == "trials":
            return 0.0
        steps = order.lease.to_step - order.step
        if self.budget.kind == "steps":
            return float(steps)
        forecast_s = order.lease.seconds * self.pace.factor * order.share_left
        return forecast_s if order.queued else max(0.0, order.clock + forecast_s - self.budget.spent)

    def apply(self, event: Mapping[str, Any]) -> bool:
        """Make the change that an event describes; True when a tell moved its run."""
        match event["event"]:
            case "ask":
                self._apply_ask(Lease.from_json(event["lease"]), event["arm"])
            case "tell":
                order = self.orders[event["lease"]]
                return self._apply_tell(order, event["attempt"], Observation.from_json(event["observation"]))
            case "again":
                order = self.orders[event["lease"]]
                order.attempt, order.queued, order.clock = event["attempt"], False, self.budget.spent
            case "expire":
                self._pass(self.orders[event["lease"]], event["lost_s"])
                self._stall(self.orders[event["lease"]])
            case "resume":  # the workers of the process before are gone, or are strangers to this one
                for order in self.orders.values():
                    order.queued, order.stalls = order.open, 0  # an interrupted process is no stalled lease
            case "drop":
                self._close(self.orders[event["lease"]], "idle")
            case "charge":
                if "lease" in event:
                    self._pass(self.orders[event["lease"]], event["amount"])
                else:
                    self.budget.charge(event["amount"])
                self.charges[event["what"]] = self.charges.get(event["what"], 0.0) + event["amount"]
            case "note":
                self.notes[event["name"]] = event["value"]
            case unknown:
                raise ValueError(f"unknown event {unknown!r}")
        return False

    def _apply_ask(self, lease: Lease, arm: str) -> None:
        if lease.run not in self.runs:
            self.runs[lease.run] = Run(lease.run, lease.config, lease.seed, lease.horizon, arm, lease.why)
            if self.budget.kind == "trials":
                self.budget.charge(1)
        self.runs[lease.run].status = "running"
        self.orders[lease.id] = Order(lease, lease.attempt, lease.from_step, clock=self.budget.spent)

    def _apply_tell(self, order: Order, attempt: int, seen: Observation) -> bool:
        run, failed = self.runs[order.lease.run], seen.status in FAILURES
        if seen.metrics and not failed and seen.step > 0:
            run.curve.setdefault(seen.step, dict(seen.metrics))
        if not order.is_current(attempt):
            return False
        advanced = seen.step > order.step
        ends = failed or seen.final or seen.status in ("paused", "stopped")
        if advanced or failed:
            self._account(order, run, seen)
        if advanced:
            order.step, order.stalls = seen.step, 0
            run.detail = seen.detail or run.detail
            run.step = run.step if failed else seen.step
        if failed or seen.status == "stopped":
            run.detail = seen.detail
            self._close(order, seen.status)
        elif ends and order.step == order.lease.to_step:
            self._close(order, "finished" if run.step == run.horizon else "idle")
        elif ends:
            self._stall(order, counted=not advanced)
        return advanced or ends

    def _account(self, order: Order, run: Run, seen: Observation) -> None:
        """Charge what an observation took and learn the pace from it."""
        lease, steps = order.lease, max(0, seen.step - order.step)
        measured_s = seen.train_s + seen.eval_s
        self.pace.observe(lease.seconds * steps / (lease.to_step - lease.from_step), measured_s)
        self._pass(order, measured_s)
        if self.budget.kind == "steps":
            self.budget.charge(steps)
        run.train_s += seen.train_s
        run.train_cpu_s += seen.train_cpu_s or 0.0
        run.eval_s += seen.eval_s
        run.seconds[seen.step] = run.train_s + run.eval_s
        run.tokens += seen.tokens
        run.peak_bytes = max(run.peak_bytes, seen.peak_bytes)

    def _pass(self, order: Order, seconds: float) -> None:
        """Let time pass on a lease's clock; charged where no other lease was there already."""
        if self.budget.kind == "time":
            order.clock += seconds
            self.budget.charge(max(0.0, order.clock - self.budget.spent))

    def _stall(self, order: Order, *, counted: bool = True) -> None:
        """Hand out again, or give up after `MAX_STALLS` attempts without a step."""
        order.queued = True
        order.stalls += int(counted)
        if order.stalls >= MAX_STALLS:
            self._close(order, "timeout")

    def _close(self, order: Order, status: RunStatus) -> None:
        order.open = order.queued = False
        self.runs[order.lease.run].status = status
