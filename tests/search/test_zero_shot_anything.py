"""Any data size, budget, number of workers and mishap: the cold start ends, inside its budget, with a result."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from simulation import cost, drive, honest

from foretune.errors import BudgetError
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.fidelity import rungs
from foretune.search.types import Observation
from foretune.search.zero_shot import plan
from foretune.seeding import derive

MISHAPS = ("diverged", "oom", "crashed", "timeout", "refused", "stopped")


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 3000),
    kind=st.sampled_from(["causal", "encoder", "seq2seq"]),
    budget=st.sampled_from(["time", "trials", "steps"]),
    total=st.integers(1, 2500),
    workers=st.integers(1, 5),
    mishaps=st.integers(0, 100),
    max_trials=st.none() | st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_the_cold_start_always_ends_well(rows, kind, budget, total, workers, mishaps, max_trials, seed):
    total = min(total, 25) if budget == "trials" else total
    account = Budget(budget, total, reserve=0.1 * total if budget == "time" else 0, workers=workers)
    try:
        strategy, length = plan(width=576, kind=kind, train_rows=rows, budget=account, cost=cost, max_trials=max_trials)
    except BudgetError:
        assume(False)
    search = AskTell(strategy, account, cost, seed=seed)

    def luck(lease):
        draw = derive(seed, lease.run, lease.to_step) % 300
        seen = honest(lease, noise=0.02)
        if draw >= mishaps:
            return seen
        status = MISHAPS[draw % len(MISHAPS)]
        cut = seen[: draw % len(seen)]
        step = cut[-1].step if cut else lease.from_step
        return [*cut, Observation(step=step, status=status)]

    wall, handed = drive(search, workers, luck)
    assert handed, "at least the default LoRA was trained"
    assert account.spent <= account.capacity * (1 + 1e-9)
    if budget == "time":
        assert wall <= account.capacity * (1 + 1e-9)
    assert max_trials is None or len(search.runs) <= max_trials
    for run in search.runs:
        assert run.horizon == length.steps and set(run.curve) <= set(rungs(length.steps))
        assert not (run.failed and run.curve.get(run.horizon))
    if any(run.status == "finished" for run in search.runs):
        assert strategy.finalists(search.runs)
    assert search.state()["open"] == []
