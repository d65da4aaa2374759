"""``--keep auto``: what is offered, what it may cost, and a whole fit that compares rows and deploys the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.cost.phases import COMPARISONS_PER_S, selection_seconds, unit_times
from foretune.errors import UsageError
from foretune.files import read_json
from foretune.fit.keeping import RANKING_SHARE, ranked, variants
from foretune.fit.outlook import offered_in
from foretune.fit.strategy import chosen_strategy
from foretune.search.budget import Budget
from foretune.search.zero_shot import plan as zero_shot_plan

from ..whole_fits import Ground


def planned(ground: Ground, **options: Any) -> Any:
    return foretune.plan(ground.rows, model=str(ground.llama), options={"search.keep": "auto", **options})


def test_selections_are_offered_where_ranking_takes_a_tenth_of_the_time_at_most(ground: Ground) -> None:
    plan = planned(ground, **{"budget.time": "1h"})
    assert [offer.arms for offer in plan.keeping] == [
        ({"selection": name, "keep": 0.5},) for name in ("longest", "delift-se", "ifd")
    ]  # fmt: skip
    free, middle, dear = (offer.seconds for offer in plan.keeping)
    assert free == 0 < middle < dear
    for seconds, affordable in ((0.99 * middle, 1), (0.99 * (middle + dear), 2), (1.01 * (middle + dear), 3)):
        short = replace(plan.request, budget=replace(plan.request.budget, total=seconds / RANKING_SHARE))
        offers = offered_in(short, plan.resolution.spec, plan.rows)
        assert [offer.affordable for offer in offers] == [True] * affordable + [False] * (3 - affordable)
        for offer in offers[affordable:]:
            assert offer.arms == () and "not tried" in offer.sentence()
        made = ranked(offers)
        assert (made is None) == (affordable == 1)
    assert ranked(plan.keeping) == plan.request.selection
    assert sum("are compared with runs on all" in note for note in plan.notes) == 3


def test_comparing_rows_with_each_other_has_a_price(ground: Ground) -> None:
    plan = planned(ground, **{"budget.time": "1h"})
    units, work = unit_times(plan.request, plan.request.first_run), plan.keeping[1].work
    scoring = replace(work, comparisons=0.0)
    assert work.comparisons >= plan.rows.train**2 * plan.request.shapes.width, "all pairs"
    apart = selection_seconds(work, units).value - selection_seconds(scoring, units).value
    assert apart == pytest.approx(work.comparisons / COMPARISONS_PER_S)


def test_an_encoder_is_offered_what_needs_no_answers(ground: Ground) -> None:
    plan = planned(ground, **{"budget.time": "1h"})
    request = replace(plan.request, shapes=replace(plan.request.shapes, kind="encoder"))
    assert {offer.selection for offer in offered_in(request, plan.resolution.spec, plan.rows)} == {
        "longest", "delift-se", "k-centre",
    }  # fmt: skip


def test_a_named_selection_is_compared_at_several_shares_or_refused(ground: Ground) -> None:
    (offer,) = planned(ground, **{"budget.time": "1h", "training.selection": "longest"}).keeping
    assert [arm["keep"] for arm in offer.arms] == [0.3, 0.5, 0.7]
    with pytest.raises(UsageError, match="compares shares of one ranking"):
        planned(ground, **{"training.selection": "rs2"})
    assert foretune.plan(ground.rows, model=str(ground.llama)).keeping == ()


@pytest.mark.parametrize("strategy", ["transfer", "asha", "on-task"])
def test_fewer_rows_are_seen_more_often_under_every_strategy(strategy: str, ground: Ground) -> None:
    plan = planned(ground, **{"search.strategy": strategy, "search.experience": "none"})
    first, _ = zero_shot_plan(
        width=plan.model.shapes.width, kind="causal", train_rows=480, budget=Budget("trials", 8),
        cost=lambda config, start, stop: float(stop - start), variants=variants(plan.keeping),
    )  # fmt: skip
    kept: dict[str, Any] = {}

    def remember(name: str, compute: Callable[[], Any]) -> Any:
        return kept.setdefault(name, compute() if name not in kept else None)

    for _ in range(2):  # computed, and read back
        chosen = chosen_strategy(plan.resolution, first, plan.model.shapes, {"metric": "loss"}, (3.0,) * 6, remember)
        half = next(entry.config for entry in first.portfolio if entry.config["keep"] == 0.5)
        assert chosen.strategy.steps_of(half) == chosen.strategy.steps_of(first.baseline) == first.horizon
        assert set(chosen.prior.amount.tolist()) == {1.0}


def test_a_fit_compares_rows_and_deploys_the_best(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    options = {
        "search.keep": "auto", "budget.steps": None, "budget.trials": 7, "training.epochs": 2,
        "output.deploy": "merged",
    }  # fmt: skip
    record = fast_fit(output=tmp_path / "run", options=options).record
    tried = {(t.config["selection"], t.config["keep"]) for t in record.trials}
    assert {("none", 1.0), ("longest", 0.5), ("delift-se", 0.5), ("ifd", 0.5)} <= tried
    assert len({trial.horizon for trial in record.trials}) == 1, "as many steps whatever the rows"
    by_rows = next(trial for trial in record.trials if trial.config["selection"] == "ifd")
    assert "on 50.0 % of the rows by ifd" in by_rows.why
    assert set(read_json(tmp_path / "run" / "selection.json")) == {"longest 0.5", "delift-se 0.5", "ifd 0.5"}
    chosen = record.winner.config
    assert (record.selection is None) == (chosen["selection"] == "none")
    if record.selection is not None:
        assert record.selection.method == chosen["selection"] and record.selection.compared
    assert [export.kind for export in record.exports] == ["adapter", "merged"] and record.exports[1].verified
