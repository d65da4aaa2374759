"""Names, the cache, purging, and the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretune.catalogue.datasets import DATASETS, known_dataset
from foretune.catalogue.models import MODELS
from foretune.cli.data import app as data_app
from foretune.cli.models import app as models_app
from foretune.data import corpora
from foretune.errors import DataError, OutputError, UsageError
from foretune.files import FolderLock, folder_damage, read_json, sha256_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sentiment_source(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the download by two rows a set; the list counts its calls."""
    calls: list[int] = []

    def build(folder: Path, progress: Any) -> dict[str, list[dict[str, Any]]]:
        calls.append(1)
        assert folder.is_dir()
        return {
            name: [{"text": f"{name} é", "label": "positive"}] * 2
            for name, dataset in DATASETS.items()
            if dataset.family == "sentiment"
        }

    monkeypatch.setitem(corpora.BUILDERS, "sentiment", build)
    return calls


def test_every_builder_serves_exactly_the_sets_of_its_family() -> None:
    families = {dataset.family for dataset in DATASETS.values()}
    assert families == {*corpora.BUILDERS, "facts"}


def test_the_fact_set_is_there_without_fetching() -> None:
    assert corpora.fetch("facts") == corpora.locate("facts") == corpora.FACTS
    assert corpora.FACTS.is_file()


def test_one_download_serves_the_family_and_is_stored_whole(sentiment_source: list[int], cache: Path) -> None:
    path = corpora.fetch("film-sentiment")
    assert path == cache / "data" / "film-sentiment" / "data.jsonl"
    assert folder_damage(path.parent) is None
    source = read_json(path.parent / "source.json")
    assert source["rows"] == 2 and source["license"] == "MIT" and source["sha256"] == sha256_file(path)
    assert source["carrier"]["sha256"] == DATASETS["film-sentiment"].carrier.sha256  # type: ignore[union-attr]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["text"] == "film-sentiment é"
    corpora.fetch("news-rating")
    corpora.fetch("Film-Sentiment")
    assert sentiment_source == [1]
    assert [path.name for path in (cache / "data").iterdir() if path.suffix == ".part"] == []


def test_a_failed_build_leaves_no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path, progress: Any) -> dict[str, list[dict[str, Any]]]:
        (folder / "half").write_text("x")
        raise DataError("the network is down.")

    monkeypatch.setitem(corpora.BUILDERS, "foldoc", build)
    with pytest.raises(DataError, match="network is down"):
        corpora.fetch("foldoc")
    assert corpora.fetched("foldoc") is None
    assert [path.name for path in corpora.data_folder().iterdir()] == [".foldoc.fetching"]


def test_an_empty_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corpora.BUILDERS, "foldoc", lambda folder, progress: {"foldoc": []})
    with pytest.raises(DataError, match="came out empty"):
        corpora.fetch("foldoc")


def test_reasoning_is_kept_by_generator_rows_and_seed() -> None:
    first = corpora.fetch("reasoning-gym:leg_counting", rows=5)
    other = corpora.fetch("reasoning-gym:leg_counting", rows=5, seed=1)
    assert first != other and first.read_text() != other.read_text()
    assert corpora.fetch("reasoning-gym:leg_counting", rows=5) == first
    assert read_json(first.parent / "source.json")["reasoning_gym"]


@pytest.mark.parametrize("name", ["reasoning-gym:../../x", "reasoning-gym:", "../facts", "nothing", ""])
def test_unknown_and_hostile_names_are_refused_and_write_nothing(name: str, cache: Path) -> None:
    with pytest.raises(DataError):
        corpora.fetch(name)
    assert not [path for path in cache.rglob("*") if path.name == "data.jsonl"]
    assert not (cache.parent / "x").exists()


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(DataError, match="Did you mean film-sentiment"):
        corpora.fetch("film-sentiments")


def test_options_of_another_source_are_refused() -> None:
    with pytest.raises(UsageError, match="no rows or seed"):
        corpora.fetch("facts", rows=10)


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpora.locate("facts") == corpora.FACTS
    (tmp_path / "facts").write_text("mine")
    assert corpora.locate("facts") == Path("facts")
    assert corpora.locate("owner/name") == "owner/name"
    assert corpora.locate(Path("absent.jsonl")) == Path("absent.jsonl")


def test_purge_frees_tokens_and_keeps_data_unless_asked(sentiment_source: list[int], cache: Path) -> None:
    path = corpora.fetch("film-sentiment")
    tokens = cache / "tokens" / "ab" / "x.npy"
    tokens.parent.mkdir(parents=True)
    tokens.write_bytes(b"12345")
    freed, _ = corpora.purge()
    assert (freed.files, freed.bytes) == (1, 5)
    assert not tokens.exists() and path.exists()
    assert corpora.purge()[0].files == 0
    assert corpora.purge(fetched_data=True)[-1].files >= 3
    assert not path.exists()


def test_purge_does_not_pull_data_from_under_a_fetching_process(sentiment_source: list[int]) -> None:
    path = corpora.fetch("film-sentiment")
    with FolderLock(corpora.data_folder() / ".sentiment.fetching"), pytest.raises(OutputError):
        corpora.purge(fetched_data=True)
    assert path.exists()


def test_the_commands_speak_json(sentiment_source: list[int]) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(data_app, ["list", "--json"]).stdout)
    assert {row["name"] for row in listed} == set(DATASETS)
    assert next(row for row in listed if row["name"] == "facts")["path"] == str(corpora.FACTS)
    fetched = runner.invoke(data_app, ["fetch", "reasoning-gym:leg_counting", "--rows", "3", "--json"])
    assert Path(json.loads(fetched.stdout)["path"]).read_text().count("\n") == 3
    freed = json.loads(runner.invoke(data_app, ["purge", "--fetched", "--json"]).stdout)
    assert [part["what"] for part in freed] == ["cached tokens", "scores of selections", "fetched data"]
    models = json.loads(runner.invoke(models_app, ["list", "--json"]).stdout)
    assert [(row["name"], row["folder"]) for row in models] == [(name, None) for name in MODELS]


def test_lists_are_readable() -> None:
    runner = CliRunner()
    assert "film-sentiment  (classification, MIT; not fetched)" in runner.invoke(data_app, ["list"]).stdout
    assert "Gemma-3-270M  (causal, 268,098,176 parameters" in runner.invoke(models_app, ["list"]).stdout


def test_every_pin_is_a_sha256() -> None:
    pins = [package.sha256 for model in MODELS.values() for package in model.packages]
    pins += [dataset.carrier.sha256 for dataset in DATASETS.values() if dataset.carrier is not None]
    assert all(re.fullmatch(r"[0-9a-f]{64}", pin) for pin in pins)
    assert known_dataset("reasoning-gym:anything") is not None


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("film-sentiment", 10072),
        ("news-rating", 5190),
        ("interface-en-ja", 13589),
        ("interface-parents", 25864),
        ("foldoc", 10000),
    ],
)
def test_the_real_sources(name: str, rows: int) -> None:
    found = len(corpora.fetch(name).read_text(encoding="utf-8").splitlines())
    assert found == rows if name != "foldoc" else found > rows
