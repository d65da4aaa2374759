"""Rules in a plan: an injected one changes it, within its scope, unless the user decided; published ones are cited."""

import json
from dataclasses import replace

import pytest

from foretune.catalogue.rules import Measured, Rule, When
from foretune.cli.plan import lines
from foretune.config.rules_file import write_rules
from tests.plan.test_plan import _model, _plan
from tests.search import synthetic

RULE = Rule(
    "s:r4", "rank 4 is better than 16", When(kinds=("causal",), rows=(50, 100)), {"lora.rank": 4, "weight_decay": 0.1},
    strength="measured", source="study s", measured=Measured(-0.2, -0.3, -0.1, "of loss", 40),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "store" / "experience.sqlite"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def _with(tmp_path, rule, **fields):
    path = tmp_path / "priors.yaml"
    write_rules(path, [rule], {"study": "s"})
    return _plan(tmp_path, sets=[f"search.priors={path}", *fields.pop("sets", [])], **fields)


def test_an_injected_rule_changes_the_plan_and_is_cited(tmp_path):
    before, after = _plan(tmp_path), _with(tmp_path, RULE)
    changed = {key for key in before.config if before.config[key] != after.config[key]}
    assert changed == {"lora.rank", "weight_decay"}
    assert after.trainable < before.trainable and after.config["lora.rank"] == 4
    assert "rank 4 is better than 16 (measured: -0.2 [-0.3, -0.1] of loss, 40 runs; study s)" in after.why
    assert after.resolution.values["training.lora.rank"].origin == "recommended"
    assert "study s" in after.resolution.values["training.lora.rank"].evidence
    assert "study s" in "\n".join(lines(after))
    assert json.dumps(after.to_json()) and after.to_json()["rules"][0]["id"] == "s:r4"


@pytest.mark.parametrize(
    "rule",
    [
        replace(RULE, when=When(rows=(500, 900))),
        replace(RULE, when=When(kinds=("encoder",))),
        replace(RULE, measured=Measured(-0.2, -0.5, 0.1, "of loss", 40)),
    ],
    ids=["other sizes", "other models", "not resolved"],
)
def test_a_rule_out_of_its_scope_or_unresolved_changes_nothing(tmp_path, rule):
    assert _with(tmp_path, rule).config == _plan(tmp_path).config


def test_what_the_user_sets_wins_over_a_rule(tmp_path):
    answer = _with(tmp_path, RULE, sets=["training.lora.rank=32"])
    assert (answer.config["lora.rank"], answer.config["weight_decay"]) == (32, 0.1)


def test_rules_beside_the_store_are_read_and_can_be_switched_off(tmp_path):
    (tmp_path / "store").mkdir()
    write_rules(tmp_path / "store" / "priors.yaml", [RULE], {"study": "s"})
    assert _plan(tmp_path).config["lora.rank"] == 4
    assert _plan(tmp_path, sets=["search.priors=none"]).config["lora.rank"] == 16
    (tmp_path / "store" / "priors.yaml").write_text("rules: 3\n")
    assert _plan(tmp_path).config["lora.rank"] == 16, "a damaged file of the store is passed over"


def test_the_distance_of_languages_sets_the_share_and_is_cited(tmp_path):
    model = str(_model(tmp_path / "larger", hidden_size=128, intermediate_size=512, vocab_size=20000))
    shares = {}
    for pair in ("en-sv", "en-tr"):
        answer = _plan(tmp_path, sets=[f"data.languages={pair}"], model=model)
        shares[pair] = answer.trainable / answer.model.shapes.parameters
        assert "2205.11277" in answer.why and answer.advice.avoid
    assert shares["en-sv"] == pytest.approx(0.005, rel=0.15) and shares["en-tr"] == pytest.approx(0.08, rel=0.02)


def test_an_injected_rule_moves_and_explains_what_experience_proposes(tmp_path):
    runs = synthetic.experience(4, 24)
    rule = replace(RULE, advice={"lora.rank": 8})
    before, after = _plan(tmp_path, runs=runs).outlook.proposals, _with(tmp_path, rule, runs=runs).outlook.proposals
    assert before and not any("study s" in shown.why for shown in before)
    cited = [shown for shown in after if "study s" in shown.why]
    assert cited and all(shown.config["lora.rank"] == 8 for shown in cited)
    assert [shown.config for shown in after] != [shown.config for shown in before]
