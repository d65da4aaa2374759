"""What ``foretune doctor`` finds, says and returns."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.cost.machine import Accelerator, Machine
from foretune.execution import health

GIB = 2**30


def _states(checks):
    return {check.name: check.state for check in checks}


def test_the_required_packages_are_those_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = dict(line.split(">=") for line in project["dependencies"])
    assert {name: declared[name] for name in health.REQUIRED} == dict(health.REQUIRED)
    assert set(declared) - set(health.REQUIRED) <= {"threadpoolctl", "jinja2", "numba"}
    for extra, names in health.EXTRAS.items():
        assert [line.split(">=")[0] for line in project["optional-dependencies"][extra]] == list(names)


def test_old_and_missing_packages_fail_with_a_command():
    versions = dict.fromkeys(health.REQUIRED, "99.0") | {
        "torch": "2.5.9+cu121",
        "peft": None,
        "transformers": "5.0.0rc1",
    }
    checks = {check.name: check for check in health.package_checks(versions)}
    assert checks["torch"].state == "fail"
    assert "torch>=2.6" in checks["torch"].remedy
    assert checks["peft"].found == "missing"
    assert checks["transformers"].state == "ok"
    assert checks["numpy"].state == "ok"


def test_python():
    assert health.python_check((3, 10, 4)).state == "fail"
    assert health.python_check((3, 12, 0)).state == "ok"


def test_machines():
    small = Machine("old", 4, 1, 4 * GIB, GIB, False)
    states = _states(health.machine_checks(small))
    assert states == {"processor": "note", "bfloat16": "note", "memory": "fail", "accelerator": "note"}
    large = Machine("new", 4, 4, 64 * GIB, 60 * GIB, True, (Accelerator("gpu", GIB, GIB, True),))
    assert set(_states(health.machine_checks(large)).values()) == {"ok"}


def test_folders_and_stores(tmp_path, monkeypatch):
    assert health.cache_check(tmp_path / "not" / "there").state == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert health.cache_check(tmp_path / "file").state == "fail"
    store = tmp_path / "experience.sqlite"
    assert health.store_check(store).state == "ok"
    store.write_bytes(b"SQLite format 3\0rest")
    assert health.store_check(store).state == "ok"
    store.write_bytes(b"something else entirely")
    assert health.store_check(store).state == "fail"
    assert health.store_check(store).remedy


@pytest.mark.parametrize("broken", [False, True])
def test_the_command(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    machine = Machine("test", 2, 2, 8 * GIB, GIB if broken else 6 * GIB, True)
    monkeypatch.setattr("foretune.execution.machine.detect", lambda: machine)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    value = json.loads(done.output)
    assert value["ok"] is not broken
    assert done.exit_code == int(broken)
    assert Machine.from_json(value["machine"]) == machine
    shown = CliRunner().invoke(app, ["doctor"])
    assert ("FAIL  memory" in shown.output) == broken
