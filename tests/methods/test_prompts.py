"""What stands before every row, against the plain base on one sequence: logits, cached steps, padded answers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import DynamicCache

from foretune.catalogue.methods import resolve
from foretune.catalogue.methods.peft_rows import REFUSED
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.evaluation.greedy import answering, greedy, steps_over
from foretune.methods.attachment import load_adapter
from foretune.methods.contract.models import specimen
from foretune.methods.cpt import ContextPrompt, context_of
from foretune.methods.registry import get
from foretune.methods.tuners.prompt import PromptUpdate
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests.methods.test_edit_oracles import attached
from tests.training.rows import random_rows

IDS = specimen("llama").inputs["input_ids"]
PROMPTS = {
    "prompt_tuning": {"prompt": 3},
    "p_tuning": {"prompt": 3, "hidden": 8},
    "multitask_prompt_tuning": {"prompt": 3, "default_task": 1},
    "cpt": {"prompt": 4, "epsilon": 20.0},
}


def vectors_of(attachment: Any) -> torch.Tensor:
    (prompt,) = [module for module in attachment.model.modules() if isinstance(module, PromptUpdate)]
    return prompt.vectors().detach()


def in_one_sequence(vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the plain base on the prompt's vectors and then the rows."""
    base = specimen("llama").twin()
    whole = torch.cat([vectors.expand(len(ids), -1, -1), base.get_input_embeddings()(ids)], dim=1)
    with torch.no_grad():
        logits: torch.Tensor = base(inputs_embeds=whole).logits[:, vectors.shape[1] :]
    return logits


@pytest.mark.parametrize("method", PROMPTS)
def test_a_prompt_stands_before_the_row(method: str) -> None:
    with attached(method, PROMPTS[method]) as attachment:
        expected = in_one_sequence(vectors_of(attachment), IDS)
        with torch.no_grad():
            whole = attachment.model(input_ids=IDS).logits
            cache = DynamicCache(config=attachment.model.config)
            steps = [
                attachment.model(input_ids=IDS[:, i : i + 1], cache=cache, use_cache=True).logits for i in range(9)
            ]
        for got in (whole, torch.cat(steps, dim=1)):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole, specimen("llama").answers, atol=0.05)


@pytest.mark.parametrize("method", ["prompt_tuning", "cartridge"])
def test_answers_of_a_padded_batch_see_the_prompt(method: str) -> None:
    """Token by token, with rows of different length, some ending early: as each row by itself without any cache."""
    settings: dict[str, Any] = {"prompt": 3} if method == "prompt_tuning" else {"prefix": 4, "start": "random"}
    prompts = [IDS[0, :4].numpy(), IDS[1, :8].numpy(), IDS[0, 2:7].numpy()]
    with attached(method, settings) as attachment, answering(attachment.model):
        steps = steps_over(attachment.model, prompts, None, torch.device("cpu"))
        got = greedy(steps, len(prompts), 6, frozenset({5}), lambda: True, None)
        for prompt, answer in zip(prompts, got, strict=True):
            ids = torch.as_tensor(prompt[None])
            for token in answer:
                assert int(attachment.model(input_ids=ids).logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            assert len(answer) == 6 or int(attachment.model(input_ids=ids).logits[0, -1].argmax()) == 5


def test_prompt_tuning_is_pefts() -> None:
    with attached("prompt_tuning", {"prompt": 3}) as attachment:
        vectors = vectors_of(attachment)[0]
        ours = attachment.model(input_ids=IDS).logits.detach()
    theirs = get_peft_model(specimen("llama").twin(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(vectors)
    with torch.no_grad():
        logits = theirs.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, 3:]
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_every_row_gets_the_prompt_of_its_task() -> None:
    with attached("multitask_prompt_tuning", {"prompt": 3, "tasks": 2}) as attachment:
        with torch.no_grad():
            mixed = attachment.model(input_ids=IDS, tasks=torch.tensor([1, 0])).logits
            first = attachment.model(input_ids=IDS, tasks=torch.tensor([1])).logits[0]
            second = attachment.model(input_ids=IDS, tasks=torch.tensor([0])).logits[1]
        torch.testing.assert_close(mixed, torch.stack([first, second]), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(first, attachment.model(input_ids=IDS, tasks=torch.tensor([0])).logits[0], atol=1e-3)


def test_a_fresh_cartridge_is_its_text_before_the_row() -> None:
    text = torch.arange(10, 17)[None]
    rows = [{"input_ids": text, "attention_mask": torch.ones_like(text)}]
    base = specimen("llama").model
    config = resolve({"method": "cartridge", "cartridge.prefix": 5})
    attachment = get("cartridge").attach(base, config, generator=torch_generator(0, "init"), calibration=rows)
    try:
        got = attachment.model(input_ids=IDS).logits
        got.sum().backward()
        gradients = [w.grad for _, w in attachment.trainable()]
    finally:
        attachment.detach()
    assert all(float(g[:, 0].abs().max()) == 0 and float(g[:, 1:].abs().max()) > 0 for g in gradients)
    with torch.no_grad():
        whole = specimen("llama").twin()(input_ids=torch.cat([text[:, :5].expand(2, -1), IDS], dim=1)).logits[:, 5:]
    torch.testing.assert_close(got.detach(), whole, rtol=1e-4, atol=1e-4)


def test_an_adaption_prompt_is_looked_at_apart_through_its_gate() -> None:
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.update(module=module, hidden=kwargs["hidden_states"], turn=kwargs["position_embeddings"], output=output[0])

    with attached("adaption_prompt", {"prompt": 3}) as attachment, torch.no_grad():
        layer = attachment.model.model.layers[0].self_attn
        handle = layer.base_layer.register_forward_hook(keep, with_kwargs=True)
        attachment.model(input_ids=IDS)
        with attachment.disabled():
            inside, seen = seen, {}
            attachment.model(input_ids=IDS)
        handle.remove()
        (update,) = layer._active()
        attention, (cos, sin) = inside["module"], inside["turn"]
        query = attention.q_proj(inside["hidden"]).view(2, 9, 4, 8).transpose(1, 2)
        half = torch.cat([-query[..., 4:], query[..., :4]], dim=-1)
        query = query * cos[:, None] + half * sin[:, None]
        keys, values = (project(update.prompt).view(3, 2, 8) for project in (attention.k_proj, attention.v_proj))
        keys, values = (part.transpose(0, 1).repeat_interleave(2, dim=0) for part in (keys, values))
        apart = (query @ keys.transpose(-1, -2) / 8**0.5).softmax(-1) @ values
        expected = seen["output"] + attention.o_proj(update.gate * apart.transpose(1, 2).reshape(2, 9, 32))
    torch.testing.assert_close(inside["output"], expected, rtol=1e-4, atol=1e-5)


def test_what_peft_has_and_does_not_fit_is_refused_with_its_reason() -> None:
    for name in REFUSED:
        with pytest.raises(UsageError, match=f"peft's {name} cannot be used"):
            resolve({"method": name})


def test_promot_trains_its_prompt_first_and_then_the_model_behind_it(tmp_path: Path) -> None:
    rows = random_rows(8, vocabulary=90)
    with attached("promot", {"prompt": 3, "rank": 2, "first": 0.4}) as attachment:
        training = Training(
            Network(attachment.model, "causal"), attachment, rows, Epochs(8, 8, 0),
            LoopSettings(OptimizerSettings(1e-2, 10, weight_decay=0.1), seed=0),
        )  # fmt: skip
        states, losses = [attachment.state()], []
        for step in (4, 10):
            training.run(step, on_step=lambda report: losses.append(report.loss) or True)
            states.append(attachment.state())
        for (before, after), in_prompt in zip(pairwise(states), (True, False), strict=True):
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            assert moved == {name for name in before if name.endswith(".prompt") == in_prompt}
        assert losses[-1] < losses[4] < losses[0]
        attachment.save(tmp_path)
        answers = attachment.model(input_ids=IDS).logits.detach()
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"with_prompt": true', '"with_prompt": false'))
    without = load_adapter(specimen("llama").twin(), tmp_path).eval()(input_ids=IDS).logits.detach()
    assert not torch.allclose(without, answers, atol=1e-3)
    merged, update = specimen("llama").twin(), "foretune_promot_update"
    parts = {name.removeprefix("base_model.model.").replace("base_layer.", ""): t for name, t in states[-1].items()}
    for name, module in merged.named_modules():
        if f"{name}.{update}.a" in parts:
            module.weight.data += 16.0 * parts[f"{name}.{update}.b"] @ parts[f"{name}.{update}.a"]
    torch.testing.assert_close(without, merged(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_prompt_runs_again_where_the_adapter_that_it_runs_through_has_changed() -> None:
    with attached("promot", {"prompt": 3, "rank": 2}) as attachment, torch.no_grad():
        before = attachment.model(input_ids=IDS).logits
        for name, weight in attachment.trainable():
            if name.endswith(".b"):
                weight.normal_(0, 0.3)
        found = attachment.model(input_ids=IDS).logits
        attachment.peft_model.base_model.__dict__["hook"].last = None
        assert torch.equal(found, attachment.model(input_ids=IDS).logits)
        assert not torch.allclose(found, before, atol=1e-3)


def test_a_context_moves_no_further_than_epsilon_and_not_its_answers() -> None:
    tokens = torch.tensor([[11, 12, 13, 14, 0], [21, 22, 23, 24, 25]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, 13, -100, -100], [-100, -100, -100, -100, 25]])
    rows = [{"input_ids": tokens, "attention_mask": mask, "labels": labels}]
    assert context_of(rows, 6) == ([11, 12, 13, 14, 21, 22], [2])
    config = resolve({"method": "cpt", "cpt.prompt": 6, "cpt.epsilon": 1.0})
    base = specimen("llama").model
    attachment = get("cpt").attach(base, config, generator=torch_generator(0, "init"), calibration=rows)
    try:
        (prompt,) = [module for module in attachment.model.modules() if isinstance(module, ContextPrompt)]
        with torch.no_grad():
            start = prompt.vectors()[0].clone()
            prompt.moved.fill_(3.0)
            moved = (prompt.vectors()[0] - start).norm(dim=-1)
    finally:
        attachment.detach()
    np.testing.assert_array_equal(start, base.get_input_embeddings().weight[[11, 12, 13, 14, 21, 22]].detach())
    longest = (32 / 2048) ** 0.5
    torch.testing.assert_close(moved, longest * torch.tensor([1.0, 1, 0, 1, 1, 1]), rtol=1e-4, atol=1e-6)
