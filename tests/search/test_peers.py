"""Other packages' searchers through one conversation: a made-up package, and the real ones where they are installed."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import pytest

from foretune.search.budget import Budget
from foretune.search.fidelity import LAST_LEVEL, level_step
from foretune.search.past_tasks import past_tasks
from foretune.search.peers.columns import Columns
from foretune.search.peers.conversation import FAILURE, Conversing, Job
from foretune.search.peers.optuna_tpe import OptunaTpe
from foretune.search.replay.contestants import Draw, every
from foretune.search.replay.simulation import simulate
from foretune.search.replay.world import HORIZON, world_of
from foretune.search.runs import Run, View
from foretune.search.types import Score
from tests.search import synthetic

PACKAGES = {"dehb": "dehb", "smac": "smac", "syne-tune-box": "syne_tune", "syne-tune-copula": "syne_tune",
            "optuna-tpe": "optuna"}  # fmt: skip


@pytest.fixture(scope="module")
def draw():
    tasks = past_tasks(synthetic.experience(3, 12))
    return Draw(world_of(tasks[0]), tuple(tasks[1:]))


class Script:
    """A package that wants what it was told to: (key, member to be near, level)."""

    def __init__(self, columns, wanted):
        self.columns, self.wanted, self.told = columns, list(wanted), []

    def ask(self):
        if not self.wanted:
            return None
        key, place, level = self.wanted.pop(0)
        return Job(key, self.columns.values(place), level)

    def tell(self, job, loss, seconds):
        self.told.append((job.key, job.level, loss, seconds))


def _talk(draw, wanted):
    made = []

    def peer(columns, seed):
        made.append(Script(columns, wanted))
        return made[-1]

    trace = simulate(draw.made(Conversing, draw.blank, peer=peer), draw.world)
    return made[-1].told, trace


def _lasting(draw, count):
    return [k for k, entry in enumerate(draw.world.entries) if entry.fails_at is None][:count]


def test_a_promotion_goes_on_with_the_same_run(draw):
    one, other = _lasting(draw, 2)
    told, trace = _talk(draw, [("a", one, 1), ("b", other, 1), ("a", one, 3), ("a", one, 2)])
    entries = draw.world.entries
    assert trace.runs == 2
    assert [(key, level) for key, level, _, _ in told] == [("a", 1), ("b", 1), ("a", 3), ("a", 2)]
    for (_, level, loss, _), place in zip(told, (one, other, one, one), strict=True):
        assert -math.log(loss) == pytest.approx(entries[place].gains[level])
    assert told[2][3] == pytest.approx(entries[one].seconds[3])  # from the checkpoint, not from the start


def test_a_row_that_was_begun_gives_way_to_the_nearest_that_was_not(draw):
    one = _lasting(draw, 1)[0]
    told, trace = _talk(draw, [("a", one, 1), ("b", one, 1)])
    assert trace.runs == 2 and told[0][2] != told[1][2]


def test_a_failure_is_told_as_worse_than_the_worst(draw):
    one, other = _lasting(draw, 2)
    entries = list(draw.world.entries)
    entries[other] = replace(entries[other], fails_at=2)
    spoilt = replace(draw, world=replace(draw.world, entries=tuple(entries)))
    told, _ = _talk(spoilt, [("a", one, LAST_LEVEL), ("b", other, LAST_LEVEL)])
    assert told[1][2] == pytest.approx(told[0][2] + FAILURE)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_searches_within_the_budget(draw, name):
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    trace = simulate(every()[name](draw), draw.world, seed=1)
    assert trace.moments and all(moment.seconds <= draw.world.budget_s for moment in trace.moments)
    assert draw.world.regret(trace.moments[-1].tested) < 1


def test_smacs_forest_proposes_once_a_quarter_of_the_budgets_trials_is_drawn(draw):
    pytest.importorskip("smac")
    from foretune.search.peers.smac import Smac

    peer, origins = Smac(Columns.of(draw.blank), 0, whole_runs=20), {}
    for number in range(68):  # smac's own count for 20 whole runs in brackets of 1 to 16
        job = peer.ask()
        origins[job.key] = job.token.config.origin
        peer.tell(job, 1.0 + 0.1 * (number % 7), 1.0)
    words = list(origins.values())
    assert all(word == "Initial Design: Random" for word in words[:17])
    assert sum(word.startswith("Acquisition Function") for word in words[17:]) > len(words[17:]) / 2


def test_optunas_pruner_decides_at_every_rung(draw):
    optuna = pytest.importorskip("optuna")
    strategy = OptunaTpe(draw.blank, HORIZON, equal_steps=True)
    curve = {level_step(HORIZON, level): {"loss": Score(1.0, 0.01, 64)} for level in range(LAST_LEVEL + 1)}
    config = draw.pool[0]
    runs = tuple(Run(f"r{k}", config, 0, HORIZON, "", "", HORIZON, "finished", curve) for k in range(20))
    view = View(0, runs, Budget("time", 1.0), 0.0, lambda config, start, end: 0.0)
    study, _ = strategy._study(optuna, Columns.of(draw.blank), view, [0] * len(runs))
    decided = [sum(name.startswith("completed_rung") for name in trial.system_attrs) for trial in study.trials]
    assert list(study.trials[0].intermediate_values) == [1, 2, 4, 8, 16]  # 6, 12, 25, 50 and 100 % of the steps
    assert set(decided) == {1, 2, 3, 4, 5}  # brackets that begin to decide at each of them
