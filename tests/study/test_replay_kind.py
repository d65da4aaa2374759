"""``foretune study run`` of a replay: resumable, a last line of JSON, a report; and the list of studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import UsageError
from foretune.experience.records import RunRecord
from foretune.experience.store import Store
from foretune.files import read_lines
from foretune.search.past_tasks import past_tasks
from foretune.search.replay.contestants import Draw
from foretune.search.replay.world import world_of
from foretune.study.kinds import begin
from foretune.study.replay import DECIDING, Cell, Drawn, experience, read_spec
from tests.search import synthetic

SPEC = """
kind: replay
name: small
about: A replay in a test
source: store
contestants: [transfer, rule, random]
workers: [1, 2]
asking_time: [false, true]
seeds: 1
learning_seeds: 1
tasks: 2
"""


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "store.sqlite"))
    with Store() as store:
        for run in synthetic.experience(3, 10):
            store.record_task(run.task, run.task_features)
            store.record_model(run.model, run.model_features)
            store.record_hardware(run.hardware, {})
            config = store.record_config(run.config)
            store.record_run(RunRecord(run.run, run.task, run.model, run.hardware, config, run.seed, run.horizon))
            for point in run.points:
                scores = {**point.metrics, **{f"base.{name}": score for name, score in point.base.items()}}
                store.record_observation(run.run, point.step, point.split, scores, train_s=point.train_s,
                                         eval_s=point.eval_s, tokens=point.tokens)  # fmt: skip
            store.finish_run(run.run, run.status, peak_bytes=run.peak_bytes)
    (tmp_path / "small.yaml").write_text(SPEC)
    return tmp_path


def test_a_replay_runs_reports_and_resumes(filled: Path) -> None:
    arguments = ["study", "run", str(filled / "small.yaml"), "--output", str(filled / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    last = json.loads(done.output.splitlines()[-1])
    assert set(last["regret"]) == {"transfer", "rule", "random"} and set(last["regret"]["transfer"]) >= {"5%", "100%"}
    assert set(last["settings"]) == {"W=1", "W=2", "W=1, asking takes time", "W=2, asking takes time"}
    lines = read_lines(filled / "out" / "results.jsonl")
    assert len(lines) == 2 * 4 * 3
    found = last["settings"]["W=1"]
    assert found["transfer"]["ours_minus"] == [[0.0, 0.0, 0.0]] * 6
    for mine, theirs, paired in zip(*(found[who]["at"] for who in ("transfer", "rule")), found["rule"]["ours_minus"],
                                    strict=True):  # fmt: skip
        assert paired[0] == pytest.approx(mine[0] - theirs[0], abs=1e-4) and paired[1] <= paired[0] <= paired[2]
    table = (filled / "out" / "table.md").read_text()
    assert "| transfer |" in table and "first run" in table
    assert "<svg" in (filled / "out" / "report.html").read_text()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and read_lines(filled / "out" / "results.jsonl") == lines


@pytest.mark.parametrize("changed", ["hold_out: model", "study: other", "source: elsewhere"])
def test_a_folder_holds_cells_of_one_specification(filled: Path, tmp_path: Path, changed: str) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    first = read_spec(filled / "small.yaml")
    begin(folder, first, DECIDING)
    begin(folder, first.model_copy(update={"seeds": 7, "contestants": ("rule",)}), DECIDING)  # further cells
    key, value = changed.split(": ")
    with pytest.raises(UsageError, match=f"holds results of {key}: .* now {key} is {value}"):
        begin(folder, first.model_copy(update={key: value}), DECIDING)


@pytest.mark.parametrize("option", [["--resume"], ["--retry-failed"], ["--workers", "2"], ["--ray", "local"]])
def test_options_that_the_kind_lacks_are_refused(filled: Path, option: list[str]) -> None:
    done = CliRunner().invoke(app, ["study", "run", str(filled / "small.yaml"), *option])
    assert isinstance(done.exception, UsageError) and f"has no {option[0]}" in str(done.exception)


def test_unknown_kinds_and_contestants_are_refused(filled: Path) -> None:
    bad = filled / "bad.yaml"
    bad.write_text(SPEC.replace("rule", "rulle"))
    with pytest.raises(UsageError, match="no contestant 'rulle'"):
        read_spec(bad)
    bad.write_text(SPEC.replace("workers", "wrokers"))
    with pytest.raises(UsageError, match=r"bad\.yaml:7:[0-9]+: wrokers is not a setting of a study\. .*workers"):
        read_spec(bad)
    bad.write_text("kind: relpay\n")
    done = CliRunner().invoke(app, ["study", "run", str(bad), "--output", str(filled / "x")])
    assert done.exit_code != 0


def test_without_experience_the_replay_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "none.sqlite"))
    with pytest.raises(UsageError, match=r"no task|no experience"):
        experience("store")


def test_a_replay_may_be_of_one_study(filled: Path) -> None:
    runs = experience("store")
    study = {run.study for run in runs}.pop()
    assert len(experience("store", study)) == len(runs)
    with pytest.raises(UsageError, match="no experience"):
        experience("store", "another")


def test_the_list_names_the_replays() -> None:
    done = CliRunner().invoke(app, ["study", "list", "--json"])
    names = {row["name"] for row in json.loads(done.output)}
    assert {"search:replay", "search:replay-peers", "search:replay-paper", "search:live"} <= names


def test_networks_are_drawn_anew_for_each_seed_and_trees_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, trained = past_tasks(synthetic.experience(3, 10)), []
    monkeypatch.setattr(
        "foretune.search.quick_tune.surrogate.fit", lambda others, seed: trained.append(seed) or f"networks {seed}"
    )
    world = world_of(tasks[0])
    assert world is not None
    drawn = Drawn(Draw(world, tasks[1:]))
    made = {
        (who, seed): drawn.strategy(Cell(who, "task", 1, False, seed))[0]
        for seed in (0, 1, 2)
        for who in ("quick-tune", "quick-tune-refit", "transfer", "no-residual")
    }
    assert trained == [0, 1, 2]  # once a seed, for both of the published variants
    for who in ("quick-tune", "quick-tune-refit"):
        assert [vars(made[who, seed])["surrogate"] for seed in (0, 1, 2)] == ["networks 0", "networks 1", "networks 2"]
    for who in ("transfer", "no-residual"):
        assert made[who, 0] is made[who, 1] is made[who, 2]
