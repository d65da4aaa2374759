"""The record survives JSON exactly, and a damaged one is refused with the field's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foretune.errors import StoreError
from foretune.report.record import CurvePoint, Measure, RunRecord, Trial, read_record, write_record


def test_round_trip_is_exact(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "result.json") == record


def test_unknown_keys_are_ignored_and_missing_optional_ones_defaulted(record: RunRecord) -> None:
    value = record.to_json()
    value["added_later"] = {"x": 1}
    del value["notes"]
    assert RunRecord.from_json(value).notes == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.pop("model"), "model is missing"),
        (lambda v: v["model"].update(parameters="many"), "model.parameters must be a whole number"),
        (lambda v: v["trials"][3].update(status="fine"), r"trials\[3\].status must be 'ok'"),
        (lambda v: v["budget"].update(total=True), "budget.total must be a number"),
        (lambda v: v.update(version=99), "newer Foretune"),
        (lambda v: v["comparison"]["systems"][0]["metrics"].update(loss=[1]), "metrics.loss must be an object"),
    ],
)
def test_damage_names_the_field(record: RunRecord, tmp_path: Path, damage: object, message: str) -> None:
    value = record.to_json()
    damage(value)  # type: ignore[operator]
    (tmp_path / "result.json").write_text(json.dumps(value))
    with pytest.raises(StoreError, match=message) as caught:
        read_record(tmp_path)
    assert str(tmp_path / "result.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": NaN}', "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(StoreError):
        read_record(tmp_path)


def test_missing_record_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="foretune fit"):
        read_record(tmp_path)


def test_nan_never_enters_a_record(record: RunRecord) -> None:
    with pytest.raises(ValueError, match="finite"):
        Measure(float("nan"))
    value = record.to_json()
    value["forecast"][0]["value"] = float("inf")
    with pytest.raises(StoreError, match="finite"):
        RunRecord.from_json(value)


def test_best_point_of_a_trial() -> None:
    curve = tuple(CurvePoint(s, s, s, Measure(loss)) for s, loss in ((1, 3.0), (2, 1.0), (3, 2.0)))
    assert Trial("a", {}, "", "ok", 3, curve).best == curve[1]
    assert Trial("a", {}, "", "ok", 3, curve, best_step=3).best == curve[2]
    assert Trial("a", {}, "", "oom", 3).best is None
