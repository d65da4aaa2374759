"""P9: nothing is unpickled, no foreign code runs without the flag, hostile names and texts stay harmless."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import ForetuneError, ModelError
from foretune.fit.systems import Settings, predict_rows

from .. import tiny
from ..whole_fits import SETTINGS, Ground

SOURCE = Path(foretune.__file__).parent
NEVER = re.compile(
    r"\bimport pickle|\bpickle\.load|\btorch\.load\(|\bjoblib\b|\bmarshal\b|(?<![\w.])eval\(|(?<![\w.])exec\("
)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def bomb(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"model.weight": Bomb(trace)}))


def model_with(ground: Ground, folder: Path, **configuration: Any) -> Path:
    shutil.copytree(ground.llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **configuration}))
    return folder


def test_the_bomb_goes_off_when_it_is_unpickled(tmp_path: Path) -> None:
    bomb(tmp_path / "x.bin", tmp_path / "trace")
    pickle.loads((tmp_path / "x.bin").read_bytes())
    assert (tmp_path / "trace").exists()


def test_the_sources_never_unpickle_or_evaluate() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in SOURCE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if NEVER.search(line) and not line.lstrip().startswith(("#", '"', "'"))
    ]
    assert found == []


def test_pickled_model_weights_are_refused(ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    model = model_with(ground, tmp_path / "model")
    (model / "model.safetensors").unlink()
    bomb(model / "pytorch_model.bin", tmp_path / "trace")
    with pytest.raises(ModelError) as raised:
        fast_fit(model=model, output=tmp_path / "run")
    assert raised.value.exit_code == 4 and not (tmp_path / "trace").exists() and not (tmp_path / "run").exists()


def test_a_pickled_adapter_is_refused(finished: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(finished.adapter, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    bomb(adapter / "adapter_model.bin", tmp_path / "trace")
    with pytest.raises(ForetuneError):
        predict_rows(str(adapter), ["What?"], settings=Settings(device="cpu", dtype="float32"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_that_comes_with_a_model_is_not_run(
    kind: str, ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    model = model_with(
        ground, tmp_path / "model", **({"auto_map": names, "model_type": "evil"} if kind == "model" else {})
    )
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Config: ...\n")
    if kind == "tokenizer":
        path = model / "tokenizer_config.json"
        settings = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
                    "tokenizer_class": "Tokenizer"}  # fmt: skip
        path.write_text(json.dumps(settings))
    try:
        fast_fit(model=model, output=tmp_path / "run", options={"budget.steps": None, "budget.trials": 1})
    except ForetuneError as error:
        assert error.remedy
    else:
        assert kind == "tokenizer"  # it is read without its code
    assert not trace.exists()


def test_a_hostile_chat_template_reaches_nothing(ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    model = model_with(ground, tmp_path / "model")
    trace = tmp_path / "trace"
    (model / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}" + tiny.TEMPLATE
    )
    with pytest.raises(ForetuneError) as raised:
        fast_fit(model=model, output=tmp_path / "run")
    assert raised.value.exit_code in (3, 4) and not trace.exists()


def test_reports_and_cards_show_hostile_texts_as_texts(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [
        {"question": f"{row['question']} {attack}", "answer": f"{attack} {row['answer']}"} for row in tiny.questions()
    ]
    data = tiny.write_rows(tmp_path / "<b>rows.jsonl", rows)
    options = {**SETTINGS, "budget.steps": None, "budget.trials": 1, "training.epochs": 1}
    result = fast_fit(data, output=tmp_path / "run", options=options)
    html = (result.folder / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in html
    _, _, card = (result.adapter / "README.md").read_text().split("---\n", 2)  # the front matter is YAML
    prose = re.sub(r"(`+)[^`].*?\1", "", card, flags=re.DOTALL)
    for text in (html, prose):
        assert "<script>alert" not in text and "<img src=x" not in text and "<b>rows" not in text


def test_a_data_set_cannot_name_files_outside(ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """Group and split names from the data are values, never paths."""
    rows = [{**row, "group": f"../../{i}", "split": "train"} for i, row in enumerate(tiny.questions())]
    before = set(tmp_path.parent.iterdir())
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    options = {"budget.steps": None, "budget.trials": 1, "training.epochs": 1, "data.columns.group": "group"}
    fast_fit(data, output=tmp_path / "run", options=options)
    assert set(tmp_path.parent.iterdir()) == before
