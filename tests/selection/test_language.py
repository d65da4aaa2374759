"""The word that says which rows are kept, and the words that say how many."""

from __future__ import annotations

import pytest

from foretune.catalogue.methods import applicable, resolve
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.selection import Keep, Stage, check, kept_rows, parse, parse_keep, selection_keys
from foretune.errors import UsageError


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("30%", Keep("share", 0.3)),
        (0.3, Keep("share", 0.3)),
        ("0.3", Keep("share", 0.3)),
        ("1.0", Keep("share", 1.0)),
        ("1.5k", Keep("rows", 1500)),
        (1.0, Keep("share", 1.0)),
        (500, Keep("rows", 500)),
        ("500", Keep("rows", 500)),
        ("1k rows", Keep("rows", 1000)),
        ("200k tokens", Keep("tokens", 200_000)),
        ("2M tok", Keep("tokens", 2_000_000)),
    ],
)
def test_how_much_is_kept(said, meant):
    assert parse_keep(said) == meant


@pytest.mark.parametrize("said", ["", "many", "130%", "-5", "30% tokens", "nan", 1.5, "1.5", "0", "0%", "0 tokens"])
def test_what_does_not_say_how_much(said):
    with pytest.raises(UsageError, match="Write a share"):
        parse_keep(said)


def test_counts_stay_inside_the_pool():
    assert Keep("share", 0.3).rows(10) == 3
    assert Keep("rows", 500).rows(10) == 10
    assert Keep("rows", 0).rows(10) == 0
    assert Keep("tokens", 9).rows(10) == 10


def test_chains_and_fusions():
    assert parse("none") == ()
    assert parse("ifd") == (Stage(("ifd",)),)
    assert parse("ifd:60%+random") == (Stage(("ifd",), Keep("share", 0.6)), Stage(("random",)))
    assert parse("ifd&longest:40+random")[0] == Stage(("ifd", "longest"), Keep("rows", 40))


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("iffd", "Did you mean ifd"),
        ("ifd+random", "does not say how much it leaves"),
        ("ifd:50%", "has a share of its own"),
        ("ifd:60%+", "is no selection"),
        ("IFD", "is no selection"),
        ("ifd:150%+random", "how much to keep"),
        ("ifd&deft-ucs", "ranks none"),
    ],
)
def test_what_is_no_selection(said, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse(said)


def test_a_trial_has_the_settings_of_the_selectors_it_names():
    assert DEFAULT_LORA["selection"] == "none" and DEFAULT_LORA["keep"] == 1.0
    assert not [key for key in DEFAULT_LORA if key.startswith("ifd.")]
    config = resolve({"selection": "ifd:60%+random", "keep": 0.3})
    assert config["ifd.ratio"] == "perplexity"
    assert set(selection_keys(config)) == {"selection", "keep", "ifd.ratio", "ifd.scorer"}
    with pytest.raises(UsageError, match="does not belong to the selection 'none'"):
        resolve({"ifd.ratio": "loss"})
    assert applicable({"selection": "random", "ifd.ratio": "loss", "keep": 0.5}) == {"selection": "random", "keep": 0.5}


def test_a_share_without_a_selector_is_refused():
    with pytest.raises(UsageError, match="no selection says which rows"):
        check({"selection": "none", "keep": 0.5})


def test_kept_rows():
    assert kept_rows({"selection": "none", "keep": 1.0}, 50) == 50
    assert kept_rows({"selection": "ifd", "keep": 0.3}, 50) == 15
    assert kept_rows({"selection": "ifd", "keep": 0.001}, 50) == 1
