"""Rules of thumb: when they speak, what decides, and that only resolved evidence replaces what is published."""

from pathlib import Path

import pytest

from foretune.catalogue.languages import code_of, distance, parse_pair, token_of
from foretune.catalogue.rules import LITERATURE, TRAINABLE, Measured, Rule, Situation, When, advise
from foretune.config.rules_file import read_rules, write_rules
from foretune.errors import UsageError


def at(**changes: object) -> Situation:
    facts = {"kind": "causal", "task": "generation", "rows": 500, "parameters": 10**8, **changes}
    return Situation(**facts)  # type: ignore[arg-type]


def measured(low: float, high: float, **changes: object) -> Rule:
    fields = {
        "id": "s:full", "statement": "full is better", "when": When(rows=(100, 1000)), "advice": {"method": "full"},
        "strength": "measured", "source": "study s", "quantity": "gap at few rows",
        "measured": Measured((low + high) / 2, low, high, "of loss", 40), **changes,
    }  # fmt: skip
    return Rule(**fields)  # type: ignore[arg-type]


def test_every_published_rule_has_source_and_strength_and_a_name_of_its_own() -> None:
    assert len({rule.id for rule in LITERATURE}) == len(LITERATURE)
    assert all(rule.source and rule.statement and rule.strength != "measured" for rule in LITERATURE)


def test_distance_decides_the_share_of_a_translation() -> None:
    shares = [
        advise(at(translation=True, distance=distance("en", code))).settings[TRAINABLE] for code in ("sv", "pl", "ja")
    ]
    assert shares == [0.005, 0.02, 0.08]
    unknown = advise(at(translation=True))
    assert TRAINABLE not in unknown.settings and "prefix" in unknown.avoid
    assert TRAINABLE not in advise(at(distance=0.5)).settings, "a distance alone makes no translation"


def test_a_resolved_measurement_replaces_a_published_rule_inside_its_scope_only() -> None:
    against = measured(0.05, 0.2)  # efficient tuning is worse: the published sign is excluded
    inside, outside = advise(at(rows=500), [against]), advise(at(rows=50), [against])
    assert inside.settings["method"] == "full" and outside.settings["method"] == "lora"
    assert [(old.id, new.id) for old, new in inside.replaced] == [("few-rows", "s:full")]
    assert inside.cited[0] is against and "few-rows" not in {rule.id for rule in inside.cited}
    assert outside.replaced == ()


@pytest.mark.parametrize(("low", "high", "used"), [(-0.1, 0.2, False), (-0.2, -0.1, True)])
def test_an_unresolved_measurement_is_not_used_and_an_agreeing_one_stands_beside(
    low: float, high: float, used: bool
) -> None:
    found = advise(at(), [measured(low, high, advice={"lora.rank": 4})])
    assert found.replaced == () and "few-rows" in {rule.id for rule in found.cited}
    assert ("lora.rank" in found.settings) is used


def test_rules_survive_their_file(tmp_path: Path) -> None:
    rules = (measured(0.1, 0.3), measured(-2.0, -1.0, id="b", when=When(kinds=("seq2seq",), distance=(None, 0.4))))
    write_rules(tmp_path / "priors.yaml", rules, {"study": "s"})
    assert read_rules(tmp_path / "priors.yaml") == rules


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("format: 1", "format: 2", "no file of rules"),
        ("statement:", "statment:", "statment"),
        ("value: 0.2", "value: 2.0", "outside its interval"),
        ("rows:", "lines:", "lines is no condition"),
    ],
)
def test_a_damaged_file_of_rules_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "priors.yaml"
    write_rules(path, [measured(0.1, 0.3)], {"study": "s"})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=said):
        read_rules(path)


def test_languages_by_any_tag() -> None:
    assert [code_of(tag) for tag in ("de", "de-AT", "DE_de", "deu", "zh-Hans")] == ["de", "de", "de", "de", "zh"]
    assert parse_pair("en-de") == parse_pair("en_US > de_DE") == parse_pair("eng deu") == ("en", "de")
    for wrong in ("en", "en-en", "en-xx", "en-de-fr"):
        with pytest.raises(UsageError):
            parse_pair(wrong)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (["en_XX", "de_DE", "de_CH"], "de_CH"),
        (["eng_Latn", "deu_Latn"], "deu_Latn"),
        (["__en__", "__de__"], "__de__"),
        ([">>de<<", ">>nl<<"], ">>de<<"),
        (["fr_XX", "den"], None),
    ],
)
def test_a_languages_token_is_found_in_any_of_the_usual_forms(tokens: list[str], found: str | None) -> None:
    assert token_of("de", tokens) == found


def test_distances_are_symmetric_and_unknown_ones_are_none() -> None:
    assert distance("de", "en") == distance("en", "de") and distance("en", "en") == 0.0
    near, far = distance("en", "sv"), distance("en", "tr")
    assert near is not None and far is not None and near < far
    assert distance("en", "th") is None
