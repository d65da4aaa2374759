"""``--keep auto``: what is offered, what it may cost, and a whole fit that compares rows and deploys the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import UsageError
from foretune.files import read_json
from foretune.fit.keeping import RANKING_SHARE, ranked
from foretune.fit.outlook import offered_in

from ..whole_fits import Ground


def planned(ground: Ground, **options: Any) -> Any:
    return foretune.plan(ground.rows, model=str(ground.llama), options={"search.keep": "auto", **options})


def test_selections_are_offered_where_ranking_takes_a_tenth_of_the_time_at_most(ground: Ground) -> None:
    plan = planned(ground, **{"budget.time": "1h"})
    assert [offer.selection for offer in plan.keeping] == ["longest", "ifd"]
    assert [offer.arms for offer in plan.keeping] == [
        ({"selection": "longest", "keep": 0.5},), ({"selection": "ifd", "keep": 0.5},),
    ]  # fmt: skip
    dear = max(offer.seconds for offer in plan.keeping)
    short = replace(plan.request, budget=replace(plan.request.budget, total=0.99 * dear / RANKING_SHARE))
    offers = offered_in(short, plan.resolution.spec, plan.rows)
    assert [offer.affordable for offer in offers] == [True, False] and offers[1].arms == ()
    assert "not tried" in offers[1].sentence() and ranked(offers) is None
    assert ranked(plan.keeping).scored_tokens == plan.request.selection.scored_tokens > 0
    assert sum("are compared with runs on all" in note for note in plan.notes) == 2


def test_a_named_selection_is_compared_at_several_shares_or_refused(ground: Ground) -> None:
    (offer,) = planned(ground, **{"budget.time": "1h", "training.selection": "longest"}).keeping
    assert [arm["keep"] for arm in offer.arms] == [0.3, 0.5, 0.7]
    with pytest.raises(UsageError, match="compares shares of one ranking"):
        planned(ground, **{"training.selection": "rs2"})
    assert foretune.plan(ground.rows, model=str(ground.llama)).keeping == ()


def test_a_fit_compares_rows_and_deploys_the_best(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    options = {
        "search.keep": "auto", "budget.steps": None, "budget.trials": 6, "training.epochs": 2,
        "output.deploy": "merged",
    }  # fmt: skip
    record = fast_fit(output=tmp_path / "run", options=options).record
    tried = {(t.config["selection"], t.config["keep"]) for t in record.trials}
    assert {("none", 1.0), ("longest", 0.5), ("ifd", 0.5)} <= tried
    assert len({trial.horizon for trial in record.trials}) == 1, "as many steps whatever the rows"
    by_rows = next(trial for trial in record.trials if trial.config["selection"] == "ifd")
    assert "on 50.0 % of the rows by ifd" in by_rows.why
    assert set(read_json(tmp_path / "run" / "selection.json")) == {"longest 0.5", "ifd 0.5"}
    chosen = record.winner.config
    assert (record.selection is None) == (chosen["selection"] == "none")
    if record.selection is not None:
        assert record.selection.method == chosen["selection"] and record.selection.compared
    assert [export.kind for export in record.exports] == ["adapter", "merged"] and record.exports[1].verified
