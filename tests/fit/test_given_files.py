"""Files for validation and test are read as what the data is, whatever they suggest themselves."""

from __future__ import annotations

from pathlib import Path

from foretune.config.spec import DataSettings, FitSpec
from foretune.fit.prepare import read_and_split

from .. import tiny


def _spec(folder: Path, data: list[object], test: list[object], **settings: object) -> FitSpec:
    files = {
        name: str(
            tiny.write_rows(folder / f"{name}.jsonl", [{"text": f"{name} {n}", "label": y} for n, y in enumerate(rows)])
        )
        for name, rows in (("data", data), ("test", test))
    }
    return FitSpec(data=DataSettings(path=files["data"], test=files["test"], **settings))


def test_few_codes_are_classes_where_many_were(tmp_path: Path) -> None:
    found, splits = read_and_split(_spec(tmp_path, list(range(30)) * 6, list(range(30))))
    assert found.data.task == found.given["test"].task == "classification"
    assert {row.label for row in splits.test} <= {row.label for row in splits.train}


def test_whole_scores_are_numbers_where_others_have_fractions(tmp_path: Path) -> None:
    _, splits = read_and_split(_spec(tmp_path, [n / 4 for n in range(60)], [0, 1, 2, 3, 4] * 4))
    assert sorted({row.label for row in splits.test}) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_bad_rows_of_each_file_are_kept_aside(tmp_path: Path) -> None:
    spec = _spec(tmp_path, ["a", "b"] * 30, ["a", "b"] * 10, on_bad_row="quarantine")
    for name in ("data", "test"):
        (tmp_path / f"{name}.jsonl").open("a").write('{"text": "no label"}\n')
    found, _ = read_and_split(spec, tmp_path / "quarantine.jsonl")
    assert [part.quarantined for part in found.all] == [1, 1]
    for name in ("quarantine", "test-quarantine"):
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 1
