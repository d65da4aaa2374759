from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import cost, drive, honest, observe

from foretune.errors import OutputError, StoreError, UsageError
from foretune.search.ask_tell import SILENCE_S, AskTell
from foretune.search.budget import Budget
from foretune.search.grid import Cell, Grid
from foretune.search.journal import Journal
from foretune.search.types import Done, Lease, Observation, Score, Wait
from foretune.search.zero_shot import plan


def make(budget: Budget, journal=None, **options) -> AskTell:
    strategy, _ = plan(width=576, kind="causal", train_rows=800, budget=Budget("trials", 1), cost=cost)
    return AskTell(strategy, budget, cost, journal=journal, **options)


def grid(*, cells: int = 3, budget: Budget | None = None, journal=None) -> AskTell:
    return AskTell(
        Grid(tuple(Cell("task", {"learning_rate": 1e-4}, seed, 100) for seed in range(cells))),
        budget or Budget("trials", cells),
        cost,
        journal=journal,
    )


def first(search: AskTell, now: float = 0.0) -> Lease:
    answer = search.ask(1, now)
    assert isinstance(answer, list)
    return answer[0]


# -- fencing


def test_the_first_observation_of_a_step_wins():
    search = grid()
    lease = first(search)
    seen = observe(lease, 25, 0)
    assert search.tell(lease.id, 1, seen, 1.0)
    other = replace(seen, metrics={"loss": Score(9.0, 0.1, 3)}, train_s=99.0)
    assert not search.tell(lease.id, 1, other, 2.0)
    run = search.run(lease.run)
    assert run.curve[25]["loss"] == seen.metrics["loss"]
    assert run.train_s == seen.train_s


def test_a_late_tell_of_an_older_attempt_is_data_and_moves_nothing():
    search = grid()
    lease = first(search)
    search.tell(lease.id, 1, observe(lease, 12, 0), 1.0)
    (taken,) = search.expire(SILENCE_S + 2.0)
    assert (taken.id, taken.attempt) == (lease.id, 1)
    again = first(search, SILENCE_S + 2.0)
    assert (again.id, again.attempt, again.run, again.from_step) == (lease.id, 2, lease.run, 12)
    assert again.rungs == (25, 50, 100)
    assert not search.tell(lease.id, 1, observe(lease, 50, 12), 400.0)
    run = search.run(lease.run)
    assert run.step == 12 and set(run.curve) == {12, 50}
    assert not search.tell(lease.id, 1, Observation(step=60, status="crashed"), 401.0)
    assert run.status == "running"
    assert search.tell(lease.id, 2, observe(again, 25, 12), 402.0)
    assert run.step == 25


def test_between_expiry_and_the_new_attempt_the_old_one_moves_nothing():
    search = grid()
    lease = first(search)
    search.expire(SILENCE_S + 1)
    assert not search.tell(lease.id, 1, observe(lease, 100, 0), SILENCE_S + 2)
    assert search.run(lease.run).step == 0
    assert 100 in search.run(lease.run).curve


def test_the_end_may_be_told_once_as_a_rung_and_once_as_the_result():
    search = grid()
    lease = first(search)
    assert search.tell(lease.id, 1, replace(observe(lease, 100, 0), final=False), 1.0)
    assert search.run(lease.run).status == "running"
    assert search.tell(lease.id, 1, Observation(step=100), 2.0)
    assert search.run(lease.run).status == "finished"
    assert not search.tell(lease.id, 1, Observation(step=100), 3.0)


@pytest.mark.parametrize(
    ("lease", "attempt", "seen"),
    [
        ("l9999", 1, Observation(step=1)),
        ("l0001", 2, Observation(step=1)),
        ("l0001", 0, Observation(step=1)),
        ("l0001", 1, Observation(step=101)),
        ("l0001", 1, Observation(step=-1)),
        ("l0001", 1, Observation(step=1, train_s=float("nan"))),
        ("l0001", 1, Observation(step=1, eval_s=-1.0)),
    ],
)
def test_what_cannot_belong_to_a_lease_is_refused_and_leaves_no_trace(lease, attempt, seen):
    search = grid()
    first(search)
    before = (search.state(), len(search._journal.events()))
    with pytest.raises(UsageError):
        search.tell(lease, attempt, seen, 1.0)
    assert (search.state(), len(search._journal.events())) == before
    with pytest.raises(UsageError):
        search.heartbeat("l9999", 1.0)
    with pytest.raises(UsageError):
        search.ask(0, 1.0)


def test_a_heartbeat_keeps_a_lease_and_silence_ends_it_after_three_attempts():
    search = grid(cells=1)
    lease = first(search)
    search.heartbeat(lease.id, 200.0)
    assert search.expire(SILENCE_S + 100) == []
    now = 200.0
    for attempt in (1, 2, 3):
        now += SILENCE_S + 1
        assert [taken.attempt for taken in search.expire(now)] == [attempt]
        assert search.expire(now) == []
        if attempt < 3:
            assert first(search, now).attempt == attempt + 1
    assert search.run(lease.run).status == "timeout"
    assert isinstance(search.ask(1, now), Done)


def test_steps_in_between_forgive_earlier_silence():
    search = grid(cells=1)
    lease, now = first(search), 0.0
    for rung in (3, 6, 12, 25, 50):
        now += SILENCE_S + 1
        search.tell(lease.id, lease.attempt, observe(lease, rung, lease.from_step), now)
        now += SILENCE_S + 1
        assert len(search.expire(now)) == 1
        lease = first(search, now)
        assert lease.from_step == rung
    assert search.run(lease.run).status == "running"


def test_a_clock_that_jumps_back_neither_expires_nor_charges():
    budget = Budget("time", 1000)
    search = grid(budget=budget)
    lease = first(search, 5000.0)
    search.tell(lease.id, 1, observe(lease, 25, 0), 100.0)
    assert search.expire(200.0) == []
    search.expire(5000.0 + SILENCE_S + 1)
    assert budget.spent == 25.0


def test_a_pause_is_handed_out_again_from_its_step_and_a_stop_is_not():
    search = grid(cells=2)
    lease = first(search)
    assert search.tell(lease.id, 1, Observation(step=40, status="paused", train_s=40), 40.0)
    again = first(search, 50.0)
    assert (again.id, again.attempt, again.from_step, again.to_step) == (lease.id, 2, 40, 100)
    assert again.seconds == pytest.approx(60.0)
    search.tell(again.id, 2, Observation(step=41, status="stopped", train_s=1), 60.0)
    assert search.run(again.run).status == "stopped"
    assert first(search).run != again.run


def test_time_is_wall_time_of_parallel_work_with_losses_charged():
    budget = Budget("time", 1000, workers=2)
    search = grid(budget=budget)
    one, two = search.ask(2, 0.0)
    search.tell(one.id, 1, observe(one, 100, 0), 100.0)
    assert budget.spent == 100.0
    search.tell(two.id, 1, observe(two, 100, 0, speed=1.2), 120.0)
    assert budget.spent == pytest.approx(120.0)
    three = first(search, 120.0)
    search.heartbeat(three.id, 150.0)
    search.expire(1000.0)
    assert budget.spent == pytest.approx(150.0)
    search.charge(30.0, "probe")
    assert budget.spent == pytest.approx(180.0)
    assert search.state()["charges"] == {"probe": 30.0}


def test_what_leases_took_beside_each_other_counts_once(tmp_path):
    budget = Budget("time", 1000, workers=2)
    search = grid(budget=budget, journal=tmp_path / "journal.jsonl")
    one, two = search.ask(2, 0.0)
    for lease in (one, two):
        search.tell(lease.id, 1, observe(lease, 100, 0), 100.0)
        search.charge(30.0, "loading", lease.id)
    assert budget.spent == pytest.approx(130.0) and search.state()["charges"] == {"loading": 60.0}
    resumed = Budget("time", 1000, workers=2)
    assert grid(budget=resumed, journal=tmp_path / "journal.jsonl").budget.spent == pytest.approx(130.0)
    with pytest.raises(UsageError, match="never handed out"):
        search.charge(1.0, "loading", "l0099")


# -- the journal


def test_a_resumed_search_is_the_same_and_goes_on_the_same(tmp_path):
    for cut in (1, 2, 5, 9, 14):
        whole = make(Budget("trials", 6), tmp_path / f"whole{cut}.jsonl")
        drive(whole, 1)
        path = tmp_path / f"cut{cut}.jsonl"
        lines = (tmp_path / f"whole{cut}.jsonl").read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])  # a torn tail
        resumed = make(Budget("trials", 6), path)
        assert make(Budget("trials", 6), path).state() == resumed.state()
        drive(resumed, 1)
        assert [run.to_json() for run in resumed.runs] == [run.to_json() for run in whole.runs]


def test_after_a_restart_open_leases_come_first_with_a_higher_attempt(tmp_path):
    path = tmp_path / "journal.jsonl"
    search = grid(journal=path)
    lease = first(search)
    search.tell(lease.id, 1, observe(lease, 12, 0), 12.0)
    resumed = grid(journal=path)
    assert resumed.state() == search.state()
    assert not resumed.tell(lease.id, 1, observe(lease, 25, 12), 0.0)
    leases = resumed.ask(3, 0.0)
    assert [(x.run, x.attempt, x.from_step) for x in leases] == [("r001", 2, 12), ("r002", 1, 0), ("r003", 1, 0)]


def test_notes_survive(tmp_path):
    path = tmp_path / "journal.jsonl"
    grid(journal=path).record("probe", {"step_s": 1.5})
    assert grid(journal=path).note("probe") == {"step_s": 1.5}
    assert Journal(path).notes() == {"probe": {"step_s": 1.5}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], b"{broken", *lines[2:]], r":2: .*is not JSON"),
        (lambda lines: [lines[0], b"[1]", *lines[2:]], r":2: .*is no event"),
        (lambda lines: [lines[0], *lines[2:]], r":2: .*does not fit"),
        (lambda lines: [*lines, b'{"event":"magic"}'], r"unknown event"),
        (lambda lines: [lines[0].replace(b'"seed":0', b'"seed":1'), *lines[1:]], r":1: .*another seed"),
    ],
)
def test_a_damaged_journal_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "journal.jsonl"
    search = grid(journal=path)
    lease = first(search)
    search.tell(lease.id, 1, observe(lease, 12, 0), 12.0)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message):
        grid(journal=path)
    assert path.read_bytes() == before


def test_another_strategy_or_grid_does_not_continue_a_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    grid(journal=path)
    with pytest.raises(StoreError, match="another settings"):
        grid(cells=4, journal=path)
    with pytest.raises(StoreError, match="another strategy"):
        make(Budget("trials", 3), path)


def test_when_the_journal_cannot_be_written_nothing_happened(monkeypatch):
    search = grid()
    lease = first(search)
    before = search.state()

    def full(event):
        raise OutputError("the disk is full")

    monkeypatch.setattr(search._journal, "append", full)
    with pytest.raises(OutputError):
        search.tell(lease.id, 1, observe(lease, 12, 0), 1.0)
    with pytest.raises(OutputError):
        search.ask(1, 1.0)
    assert search.state() == before


def test_the_state_is_json():
    search = make(Budget("trials", 5))
    drive(search, 2)
    assert json.loads(json.dumps(search.state(), allow_nan=False)) == search.state()


def test_a_broken_forecast_is_a_defect_and_says_so():
    strategy, _ = plan(width=576, kind="causal", train_rows=800, budget=Budget("trials", 1), cost=cost)
    with pytest.raises(ValueError, match="forecast"):
        AskTell(strategy, Budget("time", 10), lambda *_: float("nan")).ask(1, 0.0)


# -- the grid


def test_a_grid_gives_each_cell_once_with_its_own_seed():
    search = grid(cells=5)
    _, handed = drive(search, 2)
    assert [lease.seed for lease in handed] == [0, 1, 2, 3, 4]
    assert [search.strategy.cells[run.arm].seed for run in search.runs] == [0, 1, 2, 3, 4]
    assert all((lease.from_step, lease.to_step) == (0, 100) for lease in handed)


def test_a_grid_refuses_twins_and_emptiness():
    cell = Cell("task", {"learning_rate": 1e-4}, 0, 10)
    with pytest.raises(UsageError):
        Grid((cell, cell))
    with pytest.raises(UsageError):
        Grid(())


# -- anything may happen, in any order


ACTIONS = ("ask", "tell", "tell", "tell", "duplicate", "late", "fail", "pause", "expire", "crash", "beat")


class Chaos:
    """Plays random actions against a search and remembers what must hold."""

    def __init__(self, budget: Budget) -> None:
        self.size = budget
        self.journal = Journal()
        self.search = make(replace(budget), self.journal)
        self.now, self.live, self.old, self.told = 0.0, {}, [], []
        self.given: set[tuple[str, int]] = set()
        self.steps: dict[str, int] = {}
        self.accepted: dict[tuple[str, int], float] = {}

    def play(self, action: str, pick: int) -> None:
        self.now += 1.0
        getattr(self, action)(pick)
        self.check()

    def ask(self, pick):
        answer = self.search.ask(1 + pick % 3, self.now)
        for lease in [] if isinstance(answer, Wait | Done) else answer:
            assert (lease.id, lease.attempt) not in self.given
            assert lease.run not in {other.run for other, _ in self.live.values()}
            self.given.add((lease.id, lease.attempt))
            self.live[lease.id] = (lease, lease.from_step)

    def _one(self, pick):
        return list(self.live.values())[pick % len(self.live)] if self.live else (None, 0)

    def _send(self, lease, seen, current):
        moved = self.search.tell(lease.id, lease.attempt, seen, self.now)
        self.told.append((lease, seen))
        if current:
            assert moved
        if seen.metrics and seen.status in ("ok", "paused"):
            key = (lease.run, seen.step)
            self.accepted.setdefault(key, seen.metrics["loss"].value)

    def tell(self, pick):
        lease, step = self._one(pick)
        if lease:
            seen = observe(lease, next(r for r in lease.rungs if r > step), step)
            self._send(lease, seen, True)
            self.live[lease.id] = (lease, seen.step)
            if seen.final:
                del self.live[lease.id]
                self.old.append((lease, seen.step))

    def duplicate(self, pick):
        if self.told:
            lease, seen = self.told[pick % len(self.told)]
            before = self.search.state()
            self.search.tell(lease.id, lease.attempt, replace(seen, final=False, status="ok"), self.now)
            assert self.search.state()["runs"] == before["runs"]

    def late(self, pick):
        if self.old:
            lease, step = self.old[pick % len(self.old)]
            rungs = [r for r in lease.rungs if r > step] or [lease.to_step]
            self._send(lease, observe(lease, rungs[0], step), False)

    def fail(self, pick):
        lease, step = self._one(pick)
        if lease:
            self._send(lease, Observation(step=step, status=("oom", "crashed", "diverged")[pick % 3]), True)
            self.old.append(self.live.pop(lease.id))

    def pause(self, pick):
        lease, step = self._one(pick)
        if lease and step + 1 < lease.to_step:
            self._send(lease, Observation(step=step + 1, status="paused", train_s=1.0), True)
            self.old.append(self.live.pop(lease.id))

    def beat(self, pick):
        lease, _ = self._one(pick)
        if lease:
            self.search.heartbeat(lease.id, self.now)

    def expire(self, pick):
        self.now += SILENCE_S / 2
        for taken in self.search.expire(self.now):
            assert taken.id in self.live
            self.old.append(self.live.pop(taken.id))

    def crash(self, pick):
        before = self.search.state()
        self.search = make(replace(self.size), self.journal)
        assert self.search.state() == before
        self.old += list(self.live.values())
        self.live = {}

    def check(self):
        for run in self.search.runs:
            assert run.step >= self.steps.get(run.id, 0)
            self.steps[run.id] = run.step
        for (run_id, step), value in self.accepted.items():
            assert self.search.run(run_id).curve[step]["loss"].value == value
        budget = self.search.budget
        if budget.kind != "time":
            assert budget.spent + self.search._ledger.held() <= budget.capacity
        assert self.search.state() == make(replace(self.size), self.copy()).state()

    def copy(self) -> Journal:
        journal = Journal()
        for event in self.journal.events():
            journal.append(event)
        return journal


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=60),
    st.sampled_from([Budget("trials", 6), Budget("steps", 700), Budget("time", 900.0, workers=3)]),
)
def test_no_order_of_events_loses_a_result_or_moves_a_run_back(actions, budget):
    chaos = Chaos(budget)
    for action, pick in actions:
        chaos.play(action, pick)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=40))
def test_interruptions_do_not_change_which_configurations_are_proposed(actions):
    quiet = make(Budget("trials", 7))
    drive(quiet, 1)
    chaos = Chaos(Budget("trials", 7))
    for action, pick in actions:
        if action not in ("fail",):
            chaos.play(action, pick)
    chaos.crash(0)
    drive(chaos.search, 2, honest)
    assert [run.config for run in chaos.search.runs] == [run.config for run in quiet.runs]


def test_asking_for_more_leases_than_workers_promises_no_time_twice():
    search = grid(budget=Budget("time", 250))
    assert len(search.ask(3, 0.0)) == 2
    assert isinstance(search.ask(1, 0.0), Wait)
