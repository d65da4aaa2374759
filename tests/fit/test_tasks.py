"""An adapter of several tasks is asked for one by name, or row by row; without a name its default answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from foretune.catalogue.methods import resolve
from foretune.cli.main import app
from foretune.errors import ForetuneError
from foretune.fit.systems import Settings, predict_rows
from foretune.methods.registry import get
from foretune.methods.tuners.tasks import name_tasks
from foretune.seeding import torch_generator
from tests.tiny import llama

SHORT = Settings(device="cpu", dtype="float32", max_answer_tokens=6)
PROMPT = "What colour is the stone?"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, an adapter over it whose two tasks answer differently, and what they answer."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tasks")
    base = llama(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(base).eval().requires_grad_(False)
    config = resolve({"method": "contextpeft", "contextpeft.rank": 4, "contextpeft.default_task": 1})
    attachment = get("contextpeft").attach(model, config, generator=torch_generator(0, "init"))
    name_tasks(attachment, ("colours", "things"))
    with torch.no_grad():
        for _, weight in attachment.trainable():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    attachment.save(folder / "adapter")
    return {"base": base, "adapter": folder / "adapter"}


def said(places: dict[str, Any], **more: Any) -> list[str]:
    found = predict_rows(str(places["adapter"]), [PROMPT, PROMPT], base=places["base"], settings=SHORT, **more)
    return [one.answer for one in found]


def test_a_task_is_asked_for_by_name(places: dict[str, Any], tmp_path: Path) -> None:
    colours, things = said(places, tasks=["colours", "things"])
    assert colours != things
    assert said(places) == [things, things], "without a name the default task answers, which is the second"
    with pytest.raises(ForetuneError, match="'shapes'"):
        said(places, tasks=["shapes", "things"])

    rows = tmp_path / "rows.jsonl"
    kinds = ("things", "colours")
    rows.write_text("".join(json.dumps({"prompt": PROMPT, "kind": kind}) + "\n" for kind in kinds))
    command = ["predict", str(places["adapter"]), str(rows), "--base", str(places["base"]), "--json",
               "--answer-tokens", "6"]  # fmt: skip
    for more, expected in (
        (["--task-column", "kind"], [things, colours]),
        (["--task", "colours"], [colours, colours]),
        ([], [things, things]),
    ):
        told = CliRunner().invoke(app, [*command, *more])
        assert told.exit_code == 0, told.output
        assert [row["answer"] for row in json.loads(told.stdout)["answers"]] == expected


def test_a_conversation_is_with_one_task(places: dict[str, Any]) -> None:
    colours, things = said(places, tasks=["colours", "things"])
    command = ["chat", str(places["adapter"]), "--model", str(places["base"]), "--max-tokens", "6"]
    for task, expected in (("colours", colours), ("things", things)):
        told = CliRunner().invoke(app, [*command, "--task", task], input=f"{PROMPT}\n")
        assert told.exit_code == 0 and told.stdout.strip() == expected.strip(), told.output
    told = CliRunner().invoke(app, [*command, "--task", "shapes"], input=f"{PROMPT}\n")
    assert told.exit_code != 0
