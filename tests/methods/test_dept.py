"""DePT against the paper's own form: the prompt before the changed embeddings, in one sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from foretune.data.update import Epochs
from foretune.methods.contract.models import specimen
from foretune.methods.dept import Dept
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests.methods.test_edit_oracles import attached
from tests.training.rows import random_rows

IDS = specimen("llama").inputs["input_ids"]
SETTINGS = {"prompt": 3, "rank": 2, "positions": 6, "rate_ratio": 50.0}


def in_one_sequence(attachment: Any) -> torch.Tensor:
    """Logits of the plain base on [P ; E + A B], at the row's positions."""
    (dept,) = [module for module in attachment.model.modules() if isinstance(module, Dept)]
    base = specimen("llama").twin()
    embeddings = base.get_input_embeddings()(IDS)
    change = torch.zeros_like(embeddings)
    change[:, :6] = dept.a.detach() @ dept.b.detach()
    whole = torch.cat([dept.prompt.detach().expand(2, -1, -1), embeddings + change], dim=1)
    with torch.no_grad():
        logits: torch.Tensor = base(inputs_embeds=whole).logits[:, 3:]
    return logits


def test_it_is_the_prompt_before_the_changed_embeddings() -> None:
    with attached("dept", SETTINGS) as attachment:
        expected = in_one_sequence(attachment)
        with torch.no_grad():
            whole = attachment.model(input_ids=IDS).logits
            given = attachment.model(input_ids=IDS, position_ids=torch.arange(9)[None]).logits
            cache = DynamicCache(config=attachment.model.config)
            steps = [
                attachment.model(input_ids=IDS[:, i : i + 1], cache=cache, use_cache=True).logits for i in range(9)
            ]
        for got in (whole, given, torch.cat(steps, dim=1)):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole, specimen("llama").answers, atol=0.05)


def test_two_learning_rates_and_training_through_the_loop() -> None:
    rows = random_rows(8, vocabulary=90)
    with attached("dept", SETTINGS) as attachment:
        rates = {name.rpartition(".")[2]: g["lr"] for g in attachment.parameter_groups(1e-3) for name in g["names"]}
        assert rates == {"prompt": pytest.approx(0.05), "a": 1e-3, "b": 1e-3}
        training = Training(
            Network(attachment.model, "causal"), attachment, rows, Epochs(8, 8, 0),
            LoopSettings(OptimizerSettings(1e-2, 10), seed=0),
        )  # fmt: skip
        assert not training.packing
        losses: list[float] = []
        training.run(10, on_step=lambda report: losses.append(report.loss) or True)
        assert losses[-1] < losses[0] - 0.05
