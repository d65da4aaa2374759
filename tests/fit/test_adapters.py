"""`foretune adapters describe` and `combine --like`: the adapter of like rows weighs most."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import UsageError
from foretune.export.loading import load_plain
from foretune.fit.adapters import weights_like
from tests import tiny
from tests.export.conftest import make_adapter


def test_the_adapter_of_like_rows_weighs_most(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    rows = tiny.questions(24)
    counts = [{"question": f"{i} {i + 1} {i + 2} {i * 7}", "answer": str(i)} for i in range(24)]
    adapters = []
    for name, kind in (("questions", rows), ("counts", counts)):
        folder = tmp_path / name
        make_adapter(load_plain(base, "causal", torch.float32), folder)
        tiny.write_rows(tmp_path / f"{name}.jsonl", kind[:12])
        adapters.append(folder)
    with pytest.raises(UsageError, match="has no representation"):
        weights_like(adapters, str(tmp_path / "counts.jsonl"), base=str(base))
    run = CliRunner()
    for folder in adapters:
        said = run.invoke(app, ["adapters", "describe", str(folder), f"{folder}.jsonl", "--base", str(base)])
        assert said.exit_code == 0, said.output
    new = tiny.write_rows(tmp_path / "new.jsonl", counts[12:])
    command = ["adapters", "combine", *map(str, adapters), "--like", str(new), "--base", str(base), "--json"]
    said = run.invoke(app, [*command, "-o", str(tmp_path / "both")])
    assert said.exit_code == 0, said.output
    parts = json.loads(said.output.splitlines()[-1])["parts"]
    assert parts[1]["weight"] > 0.9 and parts[1]["likeness"] > parts[0]["likeness"]
    assert (tmp_path / "both" / "adapter_model.safetensors").is_file()
    plain = run.invoke(app, ["adapters", "combine", *map(str, adapters), "-o", str(tmp_path / "mean")])
    assert plain.exit_code == 0 and plain.output.count("0.5000") == 2
