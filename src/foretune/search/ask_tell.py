"""The core of every search: leases, fencing, budget and journal around a strategy that decides.

Each change is one event: checked, written to the journal, then applied to the `Ledger`. A journal that has lines is
resumed by applying them and nothing else, which gives the identical state; what was then under lease is handed out
again with a higher attempt. The wall clock enters only as ``now`` and decides only whether a silent lease is taken
back; proposals depend on seed, events and forecasts.

Fencing. A report belongs to a lease and an attempt. One of an older attempt, of a closed lease, or of a step already
seen is data at most: it may add a missing point to the curve but moves no run, closes no lease and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.errors import ForetuneError, UsageError
from foretune.files import fingerprint
from foretune.search.budget import Budget
from foretune.search.fidelity import rungs_between
from foretune.search.journal import VERSION, Journal
from foretune.search.ledger import Ledger, Order
from foretune.search.runs import Continue, Cost, Run, Start, Strategy, View
from foretune.search.types import Done, Lease, Observation, Wait

SILENCE_S = 300.0
"""Seconds without a sign of life after which a lease is taken back."""

Memory = Callable[[Mapping[str, Any]], int]
"""Forecast peak bytes of training a configuration."""


@dataclass
class _Signs:
    """Wall-clock times of a lease; never part of a decision about what to train."""

    progress: float
    alive: float


class AskTell:
    """A `Searcher` over a strategy. See `foretune.search.types.Searcher` for the contract of its methods."""

    def __init__(
        self,
        strategy: Strategy,
        budget: Budget,
        cost: Cost,
        *,
        seed: int = 0,
        journal: Path | Journal | None = None,
        memory: Memory | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.strategy, self.budget, self.seed = strategy, budget, seed
        self._forecast, self._memory, self._silence_s = cost, memory, silence_s
        self._ledger = Ledger(budget)
        self._signs: dict[str, _Signs] = {}
        self._journal = journal if isinstance(journal, Journal) else Journal(journal)
        events = self._journal.events()
        if events:
            self._replay(events)
        else:
            self._journal.append(self._header())

    # -- what a caller reads

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, in the order in which they were started."""
        return tuple(self._ledger.runs.values())

    def run(self, run_id: str) -> Run:
        """One run. Raises `KeyError`."""
        return self._ledger.runs[run_id]

    def note(self, name: str) -> Any:
        """What was recorded under ``name``, or None."""
        return self._ledger.notes.get(name)

    def state(self) -> dict[str, Any]:
        """A JSON summary for reports: runs with curves and reasons, open leases, budget, notes."""
        return {
            "strategy": self.strategy.name,
            "seed": self.seed,
            "budget": self.budget.to_json(),
            "charges": dict(self._ledger.charges),
            "pace": self._ledger.pace.factor,
            "notes": dict(self._ledger.notes),
            "runs": [run.to_json() for run in self._ledger.runs.values()],
            "open": [
                {"lease": id_, "run": order.lease.run, "step": order.step, "to_step": order.lease.to_step}
                for id_, order in self._ledger.orders.items()
                if order.open
            ],
        }

    # -- asking

    def ask(self, n: int, now: float) -> list[Lease] | Wait | Done:
        """At most ``n`` leases: first those to be handed out again, then what the strategy proposes."""
        if n < 1:
            raise UsageError(f"ask for at least one lease, not {n}.")
        leases: list[Lease] = []
        why = ""
        for order in [order for order in self._ledger.orders.values() if order.open and order.queued]:
            if len(leases) < n and (again := self._again(order, now)) is not None:
                leases.append(again)
        while len(leases) < n:
            proposal = self.strategy.propose(self._view())
            if isinstance(proposal, Wait | Done):
                why = proposal.why
                break
            lease = self._lease(proposal)
            if lease is None:
                why = "what is left of the budget does not cover the next stretch"
                break
            leases.append(self._hand_out(lease.id, now))
        if leases:
            return leases
        return Wait(why) if any(order.open for order in self._ledger.orders.values()) else Done(why)

    def _view(self) -> View:
        return View(self.seed, self.runs, self.budget, self._ledger.held(), self._cost)

    def _cost(self, config: Mapping[str, Any], from_step: int, to_step: int) -> float:
        return self._forecast_s(config, from_step, to_step) * self._ledger.pace.factor

    def _forecast_s(self, config: Mapping[str, Any], from_step: int, to_step: int) -> float:
        seconds = float(self._forecast(config, from_step, to_step))
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"the forecast of steps {from_step} to {to_step} is {seconds} seconds")
        return seconds

    def _lease(self, proposal: Start | Continue) -> Lease | None:
        """The lease of a proposal, journaled; None where the budget does not cover it."""
        new = isinstance(proposal, Start)
        if isinstance(proposal, Start):
            run_id, from_step = f"r{len(self._ledger.runs) + 1:03d}", 0
            config, horizon, seed, arm = dict(proposal.config), proposal.horizon, proposal.seed, proposal.arm
            p_fail = proposal.p_fail
        else:
            run = self._ledger.runs[proposal.run]
            if run.status != "idle":
                raise ValueError(f"{run.id} is {run.status} and cannot be continued")
            run_id, from_step = run.id, run.step
            config, horizon, seed, arm = dict(run.config), run.horizon, run.seed, run.arm
            p_fail = 0.0
        if not from_step < proposal.to_step <= horizon:
            raise ValueError(f"{run_id} cannot go from step {from_step} to {proposal.to_step} of {horizon}")
        if not self._view().affords(config, from_step, proposal.to_step, new=new):
            return None
        lease = Lease(
            id=f"l{len(self._ledger.orders) + 1:04d}",
            attempt=1,
            run=run_id,
            config=config,
            from_step=from_step,
            to_step=proposal.to_step,
            seconds=self._forecast_s(config, from_step, proposal.to_step),
            memory_bytes=0 if self._memory is None else self._memory(config),
            p_fail=p_fail,
            why=proposal.why,
            seed=seed,
            rungs=rungs_between(horizon, from_step, proposal.to_step),
            horizon=horizon,
        )
        self._commit({"event": "ask", "lease": lease.to_json(), "arm": arm})
        return lease

    def _again(self, order: Order, now: float) -> Lease | None:
        remaining = self._ledger.remaining(order)
        if not self.budget.can_afford(remaining, max(0.0, self._ledger.held() - remaining)):
            self._commit({"event": "drop", "lease": order.lease.id})
            return None
        self._commit({"event": "again", "lease": order.lease.id, "attempt": order.attempt + 1})
        return self._hand_out(order.lease.id, now)

    def _hand_out(self, lease_id: str, now: float) -> Lease:
        """The lease as it goes to a worker: from the last accepted step, seconds corrected by the pace."""
        order = self._ledger.orders[lease_id]
        self._signs[lease_id] = _Signs(now, now)
        lease = order.lease
        return replace(
            lease,
            attempt=order.attempt,
            from_step=order.step,
            seconds=lease.seconds * order.share_left * self._ledger.pace.factor,
            rungs=tuple(rung for rung in lease.rungs if rung > order.step),
            deadline=now + self._silence_s,
        )

    # -- telling

    def tell(self, lease_id: str, attempt: int, observation: Observation, now: float) -> bool:
        """Record an observation; True when it moved its run, False when it was data only (see the module).

        ``train_s``, ``eval_s`` and ``tokens`` are those since the previous observation of the same attempt.
        Raises `UsageError` for an unknown lease or attempt, or an observation that cannot belong to it.
        """
        order = self._known(lease_id)
        if not 1 <= attempt <= order.attempt:
            raise UsageError(f"lease {lease_id} has no attempt {attempt}; it is at attempt {order.attempt}.")
        if not 0 <= observation.step <= order.lease.to_step:
            raise UsageError(f"step {observation.step} is outside lease {lease_id}, which ends at its to_step.")
        for name in ("train_s", "eval_s"):
            if not math.isfinite(getattr(observation, name)) or getattr(observation, name) < 0:
                raise UsageError(f"{name} of an observation is {getattr(observation, name)}; it is a time in seconds.")
        current = order.is_current(attempt)
        moved = self._commit(
            {"event": "tell", "lease": lease_id, "attempt": attempt, "observation": observation.to_json()}
        )
        if current and lease_id in self._signs:
            signs = self._signs[lease_id]
            signs.alive = max(signs.alive, now)
            signs.progress = signs.alive if moved else signs.progress
        return moved

    def heartbeat(self, lease_id: str, now: float) -> None:
        """The lease's worker lives. Raises `UsageError` for an unknown lease."""
        self._known(lease_id)
        if lease_id in self._signs:
            self._signs[lease_id].alive = max(self._signs[lease_id].alive, now)

    def expire(self, now: float) -> list[Lease]:
        """Take back the leases whose worker fell silent and return them as they were handed out.

        The seconds between the last accepted observation and the last sign of life are charged as lost.
        """
        silent = []
        for lease_id, order in self._ledger.orders.items():
            if order.open and not order.queued and now > self._signs[lease_id].alive + self._silence_s:
                signs = self._signs[lease_id]
                silent.append(replace(order.lease, attempt=order.attempt, from_step=order.step))
                lost_s = max(0.0, signs.alive - signs.progress)
                self._commit({"event": "expire", "lease": lease_id, "attempt": order.attempt, "lost_s": lost_s})
        return silent

    # -- what else is spent or known

    def charge(self, amount: float, what: str, lease_id: str | None = None) -> None:
        """Book what was spent outside of training and evaluation (probe, loading), in the budget's unit.

        Seconds that passed on a lease are its clock's: where others ran beside it, they count once.
        Raises `UsageError` for an unknown lease.
        """
        if not math.isfinite(amount) or amount < 0:
            raise UsageError(f"{amount} cannot be charged for {what}.")
        on = {} if lease_id is None else {"lease": self._known(lease_id).lease.id}
        self._commit({"event": "charge", "amount": amount, "what": what, **on})

    def record(self, name: str, value: Any) -> None:
        """Keep a JSON value under ``name`` in the journal: the probe's result, from which ``cost`` is rebuilt."""
        self._commit({"event": "note", "name": name, "value": value})

    # -- events and the journal

    def _commit(self, event: dict[str, Any]) -> bool:
        self._journal.append(event)
        return self._ledger.apply(event)

    def _known(self, lease_id: str) -> Order:
        if lease_id not in self._ledger.orders:
            raise UsageError(f"lease {lease_id!r} was never handed out by this search.")
        return self._ledger.orders[lease_id]

    def _header(self) -> dict[str, Any]:
        return {
            "event": "start",
            "version": VERSION,
            "seed": self.seed,
            "strategy": self.strategy.name,
            "settings": fingerprint(self.strategy.settings()),
            "budget": self.budget.kind,
        }

    def _replay(self, events: list[dict[str, Any]]) -> None:
        expected = self._header()
        differing = [name for name, value in expected.items() if events[0].get(name) != value]
        if differing:
            raise self._journal.damaged(1, f"was written by a search with another {differing[0]}")
        for number, event in enumerate(events[1:], start=2):
            try:
                self._ledger.apply(event)
            except (ForetuneError, KeyError, TypeError, ValueError) as error:
                raise self._journal.damaged(number, f"does not fit ({error})") from error
        if any(order.open for order in self._ledger.orders.values()):
            self._commit({"event": "resume"})
