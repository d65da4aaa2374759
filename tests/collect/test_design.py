"""The shared design: balanced halves, one-factor pairs, the same on every task, equal training for all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foretune.catalogue.methods import resolve
from foretune.catalogue.priors import learning_rate
from foretune.catalogue.space import Choice, Space
from foretune.collect.blocks import BLOCKS
from foretune.collect.design import PORTFOLIO, RATE, ROWS, Block, Setting, draws, planned
from foretune.errors import UsageError
from foretune.search.fidelity import LEVELS, rungs

CAUSAL = Setting(width=576, kind="causal", train_rows=300, row_tokens=40.0, tokens=20_000, rows_per_update=8)
ENCODER = Setting(width=384, kind="encoder", train_rows=1200, row_tokens=27.0, tokens=20_000, rows_per_update=16)
FACTORS = ("rate", "rows")


def factors(draw) -> dict[str, object]:
    return {**draw.settings, RATE: draw.rate, ROWS: draw.rows, "seed": draw.seed}


@pytest.mark.parametrize("name", list(BLOCKS))
def test_half_of_a_block_changes_one_factor_of_a_portfolio_point_and_the_halves_alternate(name):
    block = BLOCKS[name]
    listed = draws([block])
    paired = [draw for draw in listed if draw.pair]
    first = [draw for draw in listed if draw.seed == 0]
    assert [bool(draw.pair) for draw in first] == [True, False] * len(block.changes)
    assert len(listed) - len(first) == len(block.seeds)
    for draw in paired:
        point = {RATE: 1.0, ROWS: 1.0, "seed": 0, **PORTFOLIO[draw.pair]}
        changed = {key for key, value in factors(draw).items() if point.get(key) != value}
        assert len(changed - {"method", "keep"}) <= 1, draw
        assert "keep" not in changed or "selection" in changed, "how much is kept belongs to the selection"
        assert draw.settings["method"] == point["method"] or changed == {"method"}


@pytest.mark.parametrize("setting", [CAUSAL, ENCODER], ids=["causal", "encoder"])
def test_every_configuration_of_every_block_can_be_trained_equally_long(setting):
    seen = set()
    for draw in draws(list(BLOCKS.values())):
        made = planned(draw, setting)
        assert dict(resolve(made.config)) == made.config
        tokens = made.horizon * made.config["rows_per_update"] * setting.row_tokens
        assert 0.9 * setting.tokens <= tokens <= setting.tokens
        assert len(rungs(made.horizon)) == LEVELS
        assert made.config["epochs"] * setting.train_rows * setting.row_tokens == pytest.approx(tokens, rel=0.01)
        seen.add((repr(sorted(made.config.items())), draw.seed))
    assert len(seen) == len(draws(list(BLOCKS.values())))


def test_rates_are_relative_to_the_rule_of_method_model_and_batch():
    named = {draw.name: draw for draw in draws([BLOCKS["core"]])}
    for setting in (CAUSAL, ENCODER):
        made = planned(named["lora:rate-3"], setting)
        rule = learning_rate(
            "lora", width=setting.width, kind=setting.kind, rows_per_update=setting.rows_per_update, steps=made.horizon
        )
        assert made.config["learning_rate"] == pytest.approx(3 * rule, rel=0.01)
    assert planned(named["lora"], CAUSAL).config == planned(named["lora:seed-1"], CAUSAL).config
    before = planned(named["lora"], replace(ENCODER, raised_rates=False)).config["learning_rate"]
    assert planned(named["lora"], ENCODER).config["learning_rate"] > 1.5 * before


def test_growing_a_block_changes_nothing_before():
    block = BLOCKS["core"]
    short = draws([replace(block, changes=block.changes[:5])])
    assert draws([block])[: len(short)] == short
    assert draws({block: 7}) == short[:7]


def test_drawn_rates_cover_the_whole_range():
    block = BLOCKS["core"]
    low, high = block.space[RATE].low, block.space[RATE].high
    rates = sorted(draw.rate for draw in draws([block]) if not draw.pair)
    assert rates[0] < 2 * low and rates[-1] > high / 2
    assert {draw.settings["method"] for draw in draws([block])} == {"lora", "full"}


def test_a_configuration_given_twice_and_one_of_another_version_are_refused():
    block = Block("odd", "", (("lora", {}), ("lora", {})), Space((Choice("schedule", ("linear",), "linear"),)))
    with pytest.raises(UsageError, match="two configurations called lora"):
        draws([block])
    unknown = replace(draws([BLOCKS["core"]])[0], name="later", settings={"method": "lora", "lora.rnk": 3})
    with pytest.raises(UsageError, match="later"):
        planned(unknown, CAUSAL)
