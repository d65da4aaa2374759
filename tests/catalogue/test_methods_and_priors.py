from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.catalogue.methods import METHODS, config_space, resolve
from foretune.catalogue.priors import DEFAULT_LORA, learning_rate, portfolio, recommended, rows_per_update
from foretune.catalogue.training import AMOUNT, TRAINING, TRAINING_MENU
from foretune.errors import UsageError
from foretune.files import fingerprint


def rate(method="lora", width=576, kind="causal", rows=16, steps=300):
    return learning_rate(method, width=width, kind=kind, rows_per_update=rows, steps=steps)


def test_the_default_lora_is_the_published_one():
    assert dict(DEFAULT_LORA) == {
        "method": "lora",
        "layers": "all",
        "lora.rank": 16,
        "lora.alpha": 32.0,
        "lora.targets": "all-linear",
        "lora.dropout": 0.0,
        "lora.raised": 0,
        "learning_rate": 2e-4,
        "warmup_share": 0.03,
        "schedule": "linear",
        "epochs": 3.0,
        "rows_per_update": 16,
        "weight_decay": 0.0,
        "max_gradient_norm": 1.0,
        "regularizer": "none",
        "selection": "none",
        "keep": 1.0,
    }


def test_the_rule_by_hand():
    assert rate("full", width=2000) == 5e-5
    assert rate("full", width=4096) == pytest.approx(5e-5 * (2000 / 4096) ** 0.781, rel=5e-3) == 2.86e-5
    assert rate("full") == pytest.approx(1.32e-4)
    assert rate() == pytest.approx(10 * rate("full"), rel=5e-3)
    assert rate(steps=99) == pytest.approx(15 * rate("full"), rel=5e-3)
    assert rate("full", steps=99) == rate("full")
    assert rate(rows=64) == pytest.approx(2 * rate(), rel=5e-3) == rate(rows=1024)
    assert rate(rows=4) == pytest.approx(rate() / 2, rel=5e-3) == rate(rows=1)
    assert rate("full", width=768, kind="encoder") == 3e-5
    assert rate("full", width=384, kind="encoder") == 5e-5
    assert rate("full", width=4096, kind="encoder") == 2e-5


def test_rows_of_an_update_by_hand():
    assert [rows_per_update(rows, 3) for rows in (10_000, 171, 160, 85, 80, 1)] == [16, 16, 8, 8, 4, 4]
    assert rows_per_update(400, 0.5) == 4


def test_rates_of_encoders_rise_in_short_runs_by_hand():
    """The classical 1/sqrt(steps), from 300 steps down, at most 2.5 times; decoders keep theirs."""
    assert rate("full", width=768, kind="encoder", steps=1000) == 3e-5
    assert rate("full", width=768, kind="encoder", steps=75) == 6e-5
    assert rate("full", width=768, kind="encoder", steps=10) == 7.5e-5
    assert rate("lora", width=768, kind="encoder", steps=75) == 15 * 6e-5
    assert rate("full", steps=10) == rate("full", steps=1000)
    plain = learning_rate("full", width=768, kind="encoder", rows_per_update=16, steps=10, raised=False)
    assert plain == 3e-5


@given(st.integers(16, 20_000), st.integers(1, 4096), st.integers(1, 10**6), st.sampled_from(["lora", "full"]))
def test_the_rule_always_gives_a_rate_the_space_allows(width, rows, steps, method):
    value = rate(method, width=width, rows=rows, steps=steps)
    assert math.isfinite(value)
    assert TRAINING["learning_rate"].check(value) == value


@pytest.mark.parametrize("bad", [{"width": 0}, {"rows": 0}, {"steps": 0}, {"method": "lorra"}])
def test_the_rule_refuses_nonsense(bad):
    with pytest.raises(UsageError):
        rate(**bad)


def test_the_portfolio_is_a_third_and_three_times_the_rule():
    rates = [r.config["learning_rate"] for r in portfolio("lora", width=576, kind="causal", steps=300)]
    assert rates == [1.32e-3, 3.96e-3, 4.4e-4]
    assert all("learning rate" in r.why for r in portfolio("lora", width=576, kind="causal", steps=300))
    (only,) = portfolio("lora", width=576, kind="causal", steps=300, fixed={"learning_rate": 1e-3})
    assert only.config["learning_rate"] == 1e-3


def test_fixed_settings_enter_the_recommendation():
    config = recommended("full", width=576, kind="causal", steps=300, fixed={"rows_per_update": 64}).config
    assert config["rows_per_update"] == 64 and config["learning_rate"] == pytest.approx(2 * 1.32e-4, rel=5e-3)
    assert not any(name.startswith("lora.") for name in config)


def test_resolve_completes_and_is_idempotent():
    config = resolve({"lora.rank": 8})
    assert config == {**DEFAULT_LORA, "lora.rank": 8}
    assert resolve(config) == config and fingerprint(resolve(config)) == fingerprint(config)
    assert fingerprint(resolve({"epochs": 3})) == fingerprint(resolve({"epochs": 3.0}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora.rnak": 8}, r"Did you mean lora\.rank\?"),
        ({"zzz": 1}, "Known: "),
        ({"method": "full", "lora.rank": 8}, "does not belong to the method 'full'"),
        ({"lora.rank": 0}, "outside its range"),
        ({"learning_rate": float("nan")}, "must be a number"),
        ({"lora.rank": True}, "must be a number"),
        ({"schedule": "cosin"}, "not an option"),
    ],
)
def test_resolve_refuses_with_a_remedy(settings, message):
    with pytest.raises(UsageError, match=message):
        resolve(settings)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_menu_lies_within_its_space(method):
    assert all(name.startswith(f"{method.name}.") for name in method.space.names())
    assert method.rate_multiplier > 0 and method.source
    for parameter in method.menu.parameters:
        for position in (0.0, 0.3, 0.7, 1.0):
            value = parameter.from_unit(position)
            resolve({"method": method.name, parameter.name: value})
    for parameter in TRAINING_MENU.parameters:
        assert parameter.name not in AMOUNT
        for position in (0.0, 0.3, 0.7, 1.0):
            TRAINING[parameter.name].check(parameter.from_unit(position))


def test_the_space_of_one_method_has_nothing_of_another():
    assert not any(name.startswith("lora.") for name in config_space(("full",)).names())
