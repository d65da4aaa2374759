"""``foretune export`` from a run folder, and everything it refuses before it writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import ForetuneError, ModelError, OutputError, UsageError
from foretune.export.job import export_run, find_source
from foretune.export.verify import DEFAULT_PROBES
from foretune.models.load import weights_hash
from foretune.report.record import ExportInfo, read_record, write_record

from ..report.conftest import sample
from .conftest import Tiny

runner = CliRunner()


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(tiny.adapter, folder / "adapter")
    record = sample()
    model = replace(record.model, folder=str(tiny.base), weights_sha256=weights_hash(tiny.base))
    write_record(folder, replace(record, model=model))
    return folder


@pytest.mark.parametrize(("flag", "name"), [("--merge", "config.json"), ("--gguf", "model.gguf")])
def test_exports_a_run(run: Path, tmp_path: Path, flag: str, name: str) -> None:
    out = tmp_path / "exports" / "out"
    result = runner.invoke(app, ["export", str(run), flag, "--output", str(out), "--json"], catch_exceptions=False)
    value = json.loads(result.stdout.splitlines()[-1])
    assert value["verified"] and value["check"]["probes"] == 8 and value["check"]["tokens"] >= 8
    assert (out / name).is_file()
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card and str(out) in card
    assert not list((tmp_path / "exports").glob(".*"))


def test_adapter_folder_with_a_named_base(tiny: Tiny, tmp_path: Path) -> None:
    path, check = export_run(tiny.adapter, tmp_path / "out", "merged", base=tiny.base)
    assert path == tmp_path / "out" and check.largest < 1e-3


def test_whole_weights_need_no_base(tiny: Tiny, tmp_path: Path) -> None:
    path, _ = export_run(tiny.base, tmp_path / "out", "gguf", dtype="float32")
    assert path.name == "model.gguf"


def test_an_existing_folder_is_never_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="exists already"):
        export_run(run, tmp_path / "out", "merged")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_missing_base_and_strange_records_are_refused(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    record = sample()
    with pytest.raises(ModelError, match="--base FOLDER"):
        find_source(run, base=tmp_path / "nowhere")
    write_record(run, replace(record, exports=(ExportInfo("adapter", "../../etc"),)))
    with pytest.raises(ModelError, match="outside the run"):
        find_source(run)
    write_record(run, replace(record, exports=()))
    with pytest.raises(ModelError, match="exported no adapter"):
        find_source(run)
    with pytest.raises(ModelError, match="no config"):
        find_source(tmp_path)


def test_a_base_with_other_weights_is_refused_unless_it_is_named(run: Path, tiny: Tiny) -> None:
    record = read_record(run)
    write_record(run, replace(record, model=replace(record.model, weights_sha256="0" * 32)))
    with pytest.raises(ModelError, match="not the weights that the run was trained on"):
        find_source(run)
    assert find_source(run, base=tiny.base).base == tiny.base


@pytest.mark.parametrize(
    "arguments", [[], ["--merge", "--gguf"], ["--merge", "--dtype", "int3"], ["--gguf", "--dtype", "float8"]]
)
def test_bad_options_are_usage_errors(run: Path, tmp_path: Path, arguments: list[str]) -> None:
    result = runner.invoke(app, ["export", str(run), "--output", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, UsageError) and isinstance(result.exception, ForetuneError)
    assert not (tmp_path / "out").exists()


def test_prompts_without_a_position_are_no_probes(run: Path, tmp_path: Path) -> None:
    """Longer ones than the model has positions for ended the export in an error of torch."""
    record = read_record(run)
    long = tuple(replace(pair, prompt="why " * 300) for pair in record.examples)
    short = replace(record.examples[0], prompt="why?")
    write_record(run, replace(record, examples=(*long, short)))
    assert export_run(run, tmp_path / "some", "merged")[1].probes == 1
    write_record(run, replace(record, examples=long))
    assert export_run(run, tmp_path / "none", "merged")[1].probes == len(DEFAULT_PROBES)
