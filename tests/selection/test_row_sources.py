"""Rows chosen while training: functions of the step, and bit for bit the same after a pause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.execution.orders import TrialOrder
from foretune.execution.trial import Trial
from foretune.search.types import Lease
from foretune.selection.row_sources import FilteredFirst, FreshSubsets, Growing
from foretune.training import checkpoint

from .conftest import rows

POOL = rows(24)


def test_rs2_draws_a_fresh_share_every_epoch():
    source = FreshSubsets(20, 6, 4, seed=1)
    epochs = [[*source.rows(2 * e), *source.rows(2 * e + 1)] for e in range(3)]
    assert all(len(epoch) == len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 3
    assert FreshSubsets(20, 6, 4, seed=1).rows(3) == source.rows(3)


def test_a_filter_lets_go_in_the_end():
    source = FilteredFirst((1, 3, 5, 7), 10, until=4, rows_per_update=2, seed=0)
    early = {i for step in range(4) for i in source.rows(step)}
    late = {i for step in range(4, 9) for i in source.rows(step)}
    assert early == {1, 3, 5, 7} and late == set(range(10))


def test_rounds_grow_and_remember():
    asked = []

    def add(chosen, more):
        asked.append((tuple(chosen), more))
        return [i for i in range(12) if i not in chosen][:more]

    source = Growing(12, 6, 3, 6, 2, seed=0, add=add)
    seen = [set(source.rows(step)) for step in range(6)]
    assert [more for _, more in asked] == [2, 2]
    assert len(source.chosen) == 6 and seen[0] <= set(source.chosen[:2])
    other = Growing(12, 6, 3, 6, 2, seed=0, add=lambda chosen, more: pytest.fail("asked again"))
    other.load_state(source.state())
    assert other.rows(5) == source.rows(5) and other.rows(0) == Growing(12, 6, 3, 6, 2, seed=0, add=add).rows(0)


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(POOL, validation=rows(4))


def _trained(bench, folder: Path, config, pauses) -> dict[str, torch.Tensor]:
    """The last checkpoint's tensors of a run that pauses after the given numbers of steps."""
    lease = Lease("l", 1, "r", config, 0, 6, 0.0, seed=2, horizon=6)
    order = TrialOrder(lease, folder, {6: (0, 1)}, {}, selection_seed=2)
    for pause in [*pauses, None]:
        steps: list[str] = []

        def report(kind, payload, steps=steps):
            steps += [kind] * (kind == "step")

        def stopped(steps=steps, pause=pause):
            return pause is not None and len(steps) >= pause

        observation = Trial(bench, order, report=report, stopped=stopped).run()
    assert observation.status == "ok" and observation.step == 6
    return dict(checkpoint.newest(folder, at_most=6).tensors())


@pytest.mark.parametrize(
    "selection", ["none", "ifd", "rs2", "igf", "diverse-evol", "active-learning", "random:60%+longest"]
)
def test_a_paused_run_is_the_same_bit_for_bit(bench, tmp_path, selection):
    small = {"igf": {"igf.probes": 4, "igf.objective": 3}, "diverse-evol": {"diverse-evol.rounds": 3},
             "active-learning": {"active-learning.rounds": 3}}  # fmt: skip
    config = resolve(
        {"method": "lora", "lora.rank": 2, "rows_per_update": 4, "learning_rate": 1e-2, "selection": selection,
         "keep": 1.0 if selection == "none" else 0.5, **small.get(selection, {})}
    )  # fmt: skip
    whole = _trained(bench, tmp_path / "whole", config, [])
    parts = _trained(bench, tmp_path / "parts", config, [1, 2])
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    if selection in ("diverse-evol", "active-learning"):
        assert len(whole["source/chosen"]) == 12
