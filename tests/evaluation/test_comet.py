"""COMET by another Python: what is handed over, what comes back, and what is said where it is not there.

The package itself is played by a module of its interface; with the real one (2.2.7, a checkpoint of random weights) the
metric was run by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from foretune.data.example import conversation
from foretune.data.instruction import instructed
from foretune.data.translation import prefix_for, without_instruction
from foretune.errors import UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import metric

COMET = """
import json, types

def load_from_checkpoint(path):
    assert path.endswith("model.ckpt"), path
    return Model()

class Model:
    def predict(self, rows, batch_size, gpus, progress_bar):
        json.dump(rows, open("SEEN", "w"))
        return types.SimpleNamespace(scores=[len(row["mt"]) / len(row["ref"]) for row in rows])
"""
ANSWERS = [Answer(0, "Translate from English to German:\nGood\nday", "Guten Tag", "Tag"), Answer(1, "so", "da", "da")]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "comet.py").write_text(COMET.replace("SEEN", str(tmp_path / "seen.json")))
    (tmp_path / "model.ckpt").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COMET_MODEL", str(tmp_path / "model.ckpt"))
    monkeypatch.setenv("COMET_PYTHON", sys.executable)
    return tmp_path


def test_sources_answers_and_references_go_there_and_scores_come_back(installed: Path) -> None:
    found = metric("comet").score(ANSWERS)
    assert found.per_row == pytest.approx((1 / 3, 1.0)) and found.value == pytest.approx(2 / 3)
    seen = json.loads((installed / "seen.json").read_text())
    assert seen[0] == {"src": "Good\nday", "mt": "Tag", "ref": "Guten Tag"}, "the source without our instruction"


def test_what_is_missing_is_named(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_MODEL", str(installed / "other.ckpt"))
    with pytest.raises(UsageError, match="needs a checkpoint") as caught:
        metric("comet").score(ANSWERS)
    assert "COMET_PYTHON" in str(caught.value.remedy)
    monkeypatch.setenv("COMET_MODEL", str(installed / "model.ckpt"))
    (installed / "comet.py").write_text("raise ImportError('no COMET here')")
    with pytest.raises(UsageError, match=r"COMET failed: .*no COMET here"):
        metric("comet").score(ANSWERS)
    monkeypatch.setenv("COMET_PYTHON", str(installed / "nowhere"))
    with pytest.raises(UsageError, match="COMET_PYTHON cannot be run"):
        metric("comet").score(ANSWERS)


def test_the_instruction_is_taken_off_again() -> None:
    for kind, architecture in (("causal", "llama"), ("seq2seq", "t5"), ("encoder", "bert")):
        prefix = prefix_for(("en", "de"), kind, architecture, None)  # type: ignore[arg-type]
        (row,) = instructed([conversation("To be: or not", "x")], prefix)
        assert without_instruction(row.prompt) == "To be: or not"
    assert without_instruction(">>de<< To be") == "To be" and without_instruction("Turn to: off") == "Turn to: off"
