"""``foretune methods``: the list, sizes, the contract of a method from a plugin, the page about them; plans by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.catalogue.methods import METHODS
from foretune.cli.main import app
from foretune.errors import UsageError
from foretune.fit.plan import plan

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["methods", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_list_has_every_method_with_what_is_asked_of_it() -> None:
    rows = {row["name"]: row for row in json.loads(run("--json"))}
    assert set(rows) == set(METHODS)
    assert rows["lora"]["knob"] == "rank" and rows["lora"]["formula"] == "r(i+o)"
    assert rows["loratrf"]["evidence"] == "reconstruction"
    assert all(row["source"] and row["formula"] and row["rate_multiplier"] > 0 for row in rows.values())
    assert all(row["about"].endswith(".") for row in rows.values())
    text = run()
    assert all(name in text for name in METHODS)


def test_sizes_are_printed_for_every_method_or_why_there_is_none() -> None:
    rows = json.loads(run("size", "--model", "SmolLM2-135M-Instruct", "--trainable", "0.5%", "--json"))["methods"]
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert row["why"] if not row["feasible"] else abs(row["share"] - 0.005) < 0.005
    assert sum(row["feasible"] for row in rows) > len(rows) / 2


def test_the_page_is_what_the_registry_says() -> None:
    script = REPOSITORY / "scripts" / "make_methods_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The example of the page, as a file."""
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "columns.py"
    path.write_text(example, encoding="utf-8")
    return path


def test_a_method_from_a_plugin_keeps_the_contract_and_can_be_planned(plugin: Path, tmp_path: Path) -> None:
    """In a process of its own, so that the method stays out of the other tests' registry."""
    done = subprocess.run(
        [sys.executable, "-m", "foretune", "methods", "check", "columns", "--plugin", str(plugin)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["llama:", "kept", "gemma:", "kept", "bert:", "kept", "bart:", "kept"]
    broken = plugin.read_text(encoding="utf-8").replace("nn.init.zeros_(self.free)", "nn.init.ones_(self.free)")
    plugin.write_text(broken, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "foretune", "methods", "check", "columns", "--plugin", str(plugin)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "identity_at_init" in done.stdout and "does not keep" in done.stderr


def test_a_plan_takes_method_share_and_layers_and_says_what_they_mean() -> None:
    answer = plan("facts", options={"training.method": "loratrf", "trainable": "1%"})
    assert answer.config["method"] == "loratrf" and answer.trainable / 134_515_008 == pytest.approx(0.01, rel=0.01)
    assert any("loratrf trains" in note and "1 %" in note for note in answer.notes)
    upper = plan("facts", options={"training.layers": "last:3"})
    assert upper.trainable * 10 == plan("facts").trainable
    with pytest.raises(UsageError, match="picks none"):
        plan("facts", options={"training.method": "mora", "training.layers": "layers>=30"})
    with pytest.raises(UsageError, match="picks no parameter of a llama"):
        plan("facts", options={"training.method": "crossattention"})
