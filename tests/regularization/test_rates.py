"""Schedules by hand, the rates file, and guided dropout end to end on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.errors import UsageError
from foretune.regularization.places.rates import PlaceRate, RatesFile, find, read, save, shipped
from foretune.regularization.places.schedule import rates

SCORES = [4.0, 1.0, 3.0, 2.0, 5.0]
KINDS = ["a", "b", "a", "b", "c"]


def scheduled(schedule: str, **fields: Any) -> list[float]:
    return rates(SCORES, KINDS, schedule, **{"high": 0.1, "low": 0.0, **fields})


def test_the_schedules_by_hand() -> None:
    assert scheduled("linear") == pytest.approx([0.025, 0.1, 0.05, 0.075, 0.0])
    assert scheduled("reversed") == pytest.approx([0.075, 0.0, 0.05, 0.025, 0.1])
    assert scheduled("uniform") == [0.05] * 5
    assert scheduled("type-only") == pytest.approx([0.0375, 0.0875, 0.0375, 0.0875, 0.0])
    assert sorted(scheduled("random")) == pytest.approx(sorted(scheduled("linear")))
    assert scheduled("random", seed=1) != scheduled("random", seed=2)
    logs = rates([1.0, 10.0, 100.0], ["a"] * 3, "log-proportional", high=0.2, low=0.1)
    assert logs == pytest.approx([0.2, 0.15, 0.1])
    for schedule in ("linear", "reversed", "uniform", "type-only", "random"):
        assert sum(scheduled(schedule, high=0.3, low=0.1)) / 5 == pytest.approx(0.2)


def test_ties_keep_their_order_and_a_single_place_gets_the_middle() -> None:
    assert rates([1.0, 1.0, 1.0], ["a"] * 3, "linear", high=0.2, low=0.0) == pytest.approx([0.2, 0.1, 0.0])
    assert rates([7.0], ["a"], "linear", high=0.2, low=0.1) == pytest.approx([0.15])


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [1.0, -1.0]])
def test_scores_that_are_no_scores_are_refused(bad: list[float]) -> None:
    with pytest.raises(UsageError, match="not finite"):
        rates(bad, ["a", "a"], "linear", high=0.1, low=0.0)
    with pytest.raises(UsageError, match="zero"):
        rates([0.0, 1.0], ["a", "a"], "log-proportional", high=0.1, low=0.0)


def file_of(model: Any, weights: str = "w", name: str = "base") -> RatesFile:
    from foretune.regularization.places.find import find_sites

    places = tuple(
        PlaceRate(
            site.name, site.kind, site.layer, site.stack, site.how, site.tensors,
            {"mean_of_means": float(n + 1), "parameter_mean": 1.0 / (n + 1), "sum": 2.0}, 0.0,
        )
        for n, site in enumerate(find_sites(model))
    )  # fmt: skip
    bare = RatesFile(
        name, weights, "pre-training: next tokens", "text", 3, 30, "mean_of_means", "linear", 0.1, 0, places
    )
    return bare.with_rates(schedule="linear", high=0.1, low=0.0, aggregation="mean_of_means")


def test_a_rates_file_is_read_as_it_was_written_and_the_aggregation_decides(tmp_path: Path, tiny_llama: Any) -> None:
    known = file_of(tiny_llama())
    save(tmp_path / "rates.json", known)
    assert read(tmp_path / "rates.json") == known
    first = list(known.rates(schedule="linear", high=0.1, low=0.0).values())
    other = list(known.rates(schedule="linear", high=0.1, low=0.0, aggregation="parameter_mean").values())
    assert other == pytest.approx(first[::-1])
    assert sum(place.rate for place in known.places) / len(known.places) == pytest.approx(0.05)


@pytest.mark.parametrize("damage", ["{", "[]", "format", "nan", "places", "schedule"])
def test_what_is_no_rates_file_is_refused(tmp_path: Path, tiny_llama: Any, damage: str) -> None:
    value = file_of(tiny_llama()).to_json()
    if damage == "format":
        value["format"] = 99
    elif damage == "nan":
        value["places"][0]["rate"] = float("nan")
    elif damage == "places":
        value["places"] = []
    elif damage == "schedule":
        value["schedule"] = "steep"
    path = tmp_path / "rates.json"
    path.write_text(damage if damage in ("{", "[]") else json.dumps(value), encoding="utf-8")
    with pytest.raises(UsageError, match=r"no rates file.*foretune regularize rates"):
        read(path)


def test_rates_of_other_weights_are_refused_and_the_cache_is_found(
    tmp_path: Path, tiny_llama: Any, monkeypatch: Any
) -> None:
    from foretune.regularization.places.rates import cached_path

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    known = file_of(tiny_llama(), weights="w1")
    save(tmp_path / "rates.json", known)
    assert find(str(tmp_path / "rates.json"), weights="w1") == known
    with pytest.raises(UsageError, match=r"other weights.*foretune regularize rates"):
        find(str(tmp_path / "rates.json"), weights="w2")
    with pytest.raises(UsageError, match=r"no dropout rates.*foretune regularize rates"):
        find("auto", weights="w1")
    save(cached_path("w1"), known)
    assert find("auto", weights="w1") == known


def test_shared_rates_apply_to_a_new_task_without_data_or_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from foretune.regularization.base import Context
    from foretune.regularization.guided_dropout import GuidedDropout

    model = BertForSequenceClassification(BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12,
                                                     intermediate_size=1536, vocab_size=500))  # fmt: skip
    save(tmp_path / "rates.json", file_of(model))
    for module, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")):
        monkeypatch.delattr(module, name)  # seconds: benchmarks/regularization.py
    guided = GuidedDropout(rates=str(tmp_path / "rates.json"))
    context = Context(model, None, 0, 10, kind="encoder", base_hash="w")  # type: ignore[arg-type]
    plan = guided.check(context)
    guided.setup(context)
    assert len(plan.sites) == 19 and not plan.refusal
    report = guided.report()
    assert report["places"] == 19 and report["mean_rate"] == pytest.approx(0.05)
    assert (report["lowest_rate"], report["highest_rate"]) == (0.0, 0.1)
    guided.teardown()


def test_what_ships_is_whole() -> None:
    from foretune.catalogue.models import MODELS

    assert {name: len(rates.places) for name, rates in shipped().items()} == {
        "SmolLM2-135M-Instruct": 91, "Gemma-3-270M": 55, "all-MiniLM-L6-v2": 19,
    }  # fmt: skip
    for name, known in shipped().items():
        assert name in MODELS and known.samples >= 32
        values = [place.rate for place in known.places]
        assert sum(values) / len(values) == pytest.approx((known.high + known.low) / 2)
        ranked = sorted(known.places, key=lambda place: place.scores[known.aggregation])
        assert [place.rate for place in ranked] == sorted(values, reverse=True)
