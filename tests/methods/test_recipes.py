"""Recipes around LoRA: other learning rates, a frozen half, starts from data; and adapters for each context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foretune.catalogue.methods import resolve
from foretune.data.batches import lay_out
from foretune.data.keywords import Calibration, keywords
from foretune.data.update import Epochs
from foretune.methods.contract.models import specimen
from foretune.methods.eva import Directions
from foretune.methods.loraga import first_factors
from foretune.methods.registry import get
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings
from tests.methods.test_edit_oracles import attached, seen_in, tensors
from tests.training.rows import random_rows

ROWS = random_rows(12, vocabulary=90)


def attach(method: str, model: Any, calibration: Any = None, **fields: Any) -> Any:
    config = resolve({"method": method, **{f"{method}.{key}": value for key, value in fields.items()}})
    return get(method).attach(model, config, generator=torch_generator(0, "init"), calibration=calibration)


def calibration(tokens: int = 60) -> Calibration:
    return Calibration(ROWS, "causal", tokens, 0, 0, torch.device("cpu"))


def pairs(attachment: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in attachment.model.named_modules() if hasattr(module, "lora_A")]


def test_loraplus_gives_b_its_own_rate() -> None:
    attachment = attach("loraplus", specimen("llama").twin(), rank=4, ratio=16.0)
    rates = {name: group["lr"] for group in attachment.parameter_groups(1e-4) for name in group["names"]}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-4}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16 * 1e-4}
    assert len(rates) == len(attachment.trainable())
    training = Training(
        Network(attachment.model, "causal"), attachment, ROWS, Epochs(12, 4, 0),
        LoopSettings(OptimizerSettings(1e-4, 4, warmup_share=0.5), seed=0),
    )  # fmt: skip
    training.run(2)
    assert [group["lr"] / group["peak"] for group in training.masters.optimizer.param_groups] == [0.5, 0.5]


def test_lorafa_trains_b_with_the_gradient_nearest_to_full_tunings() -> None:
    ids = specimen("llama").inputs["input_ids"]
    gradients = {}
    for corrected in (False, True):
        attachment = attach("lorafa", specimen("llama").twin(), rank=3, alpha=6, corrected=corrected)
        assert all("lora_B" in name for name, _ in attachment.trainable())
        attachment.model(input_ids=ids, labels=ids).loss.backward()
        gradients[corrected] = {
            name: (module.lora_B["default"].weight.grad, module.lora_A["default"].weight)
            for name, module in pairs(attachment)
        }
    full = specimen("llama").twin().requires_grad_(True)
    full(input_ids=ids, labels=ids).loss.backward()
    for name, (plain, down) in gradients[False].items():
        a, g = down.detach().double().numpy(), full.get_submodule(name).weight.grad.double().numpy()
        np.testing.assert_allclose(plain.double().numpy(), 2.0 * g @ a.T, rtol=1e-3, atol=1e-6)
        nearest, *_ = np.linalg.lstsq(2.0 * a.T, g.T, rcond=None)  # min ‖s·g_B A − g_W‖
        np.testing.assert_allclose(gradients[True][name][0].double().numpy(), nearest.T, rtol=1e-3, atol=1e-5)


def test_directions_of_batches_are_those_of_all_rows_together() -> None:
    draw = np.random.default_rng(0)
    basis, _ = np.linalg.qr(draw.normal(size=(20, 20)))
    rows = draw.normal(size=(200, 20)) * np.array([9, 6, 4, *[0.1] * 17]) @ basis.T
    directions = Directions(12)
    for batch in np.split(rows, 10):
        directions.add(torch.tensor(batch, dtype=torch.float32))
    _, _, expected = np.linalg.svd(rows, full_matrices=False)
    found = directions.leading(3).numpy()
    assert np.abs(np.sum(found * expected[:3], axis=1)) == pytest.approx(np.ones(3), abs=1e-3)
    flat = Directions(12)
    flat.add(torch.tensor(np.outer(np.arange(5.0), basis[0]), dtype=torch.float32))
    assert flat.leading(3).shape == (1, 20)  # one direction is all there is


def test_eva_starts_along_the_inputs_of_each_layer() -> None:
    model = specimen("llama").twin()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0]))
    rows = calibration()
    masks = []
    with torch.no_grad():
        for batch in rows:
            masks.append(batch["attention_mask"].bool())
            model(**batch)
    assert len(masks) > 2 and not all(bool(mask.all()) for mask in masks)
    attachment = attach("eva", specimen("llama").twin(), rows, rank=3)
    answers = specimen("llama").logits(attachment.model)
    torch.testing.assert_close(answers, specimen("llama").answers)
    for name, module in pairs(attachment):
        inputs = torch.cat([x[mask] for x, mask in zip(seen[name], masks, strict=True)]).numpy()
        sizes = np.linalg.svd(inputs, compute_uv=False)
        started = module.lora_A["default"].weight.detach().numpy()
        caught = np.square(inputs @ started.T).sum() / np.square(sizes[:3]).sum()
        assert caught == pytest.approx(1.0, abs=0.02), name
    assert len(seen) == len(pairs(attachment)) == 14


def test_loraga_starts_as_the_base_and_steps_along_the_full_gradient() -> None:
    rows = calibration()
    attachment = attach("loraga", specimen("llama").twin(), rows, rank=4, alpha=8)
    answers = specimen("llama").logits(attachment.model)
    assert torch.equal(answers, specimen("llama").answers)
    full = specimen("llama").twin().requires_grad_(True)
    for batch in rows:
        full(**batch).loss.backward()
    plain = attach("lora", specimen("llama").twin(), rank=4, alpha=8)
    ours: list[float] = []
    theirs: list[float] = []
    for chosen, scores in ((attachment, ours), (plain, theirs)):
        before = {name: _delta(module) for name, module in _layers(chosen)}
        for batch in rows:
            chosen.model(**batch).loss.backward()
        for _, weight in chosen.trainable():
            assert weight.grad is not None
            weight.data -= 1e-3 * weight.grad
        for name, module in _layers(chosen):
            step, wanted = _delta(module) - before[name], -full.get_submodule(name).weight.grad
            scores.append(float((step * wanted).sum() / (step.norm() * wanted.norm())))
    assert np.mean(ours) > np.mean(theirs) + 0.2 and min(ours) > 0.5


def _layers(attachment: Any) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in attachment.model.named_modules() if hasattr(m, "lora_A") or hasattr(m, "updates")]


def _delta(module: Any) -> torch.Tensor:
    if hasattr(module, "lora_A"):
        return module.get_delta_weight("default").detach().clone()  # type: ignore[no-any-return]
    return module.updates["default"].delta().detach().clone()  # type: ignore[no-any-return]


def test_loragas_factors_by_hand() -> None:
    gradient = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0]))
    a, b = first_factors(gradient, 2, 16.0)
    size = 4**0.25 / 4
    torch.testing.assert_close(a.abs(), size * torch.eye(4)[:2])
    torch.testing.assert_close(b.abs(), size * torch.eye(4)[:, 2:])


@pytest.mark.parametrize("architecture", ["llama", "bart", "bert"])
def test_keywords_give_a_models_own_loss_what_the_loop_scores(architecture: str) -> None:
    kind = specimen(architecture).kind
    model = specimen(architecture).twin()
    rows = ROWS[:5]
    if kind == "seq2seq":
        rows = [replace(row, decoder_ids=row.ids[:6]) for row in rows]
    if kind == "encoder":
        rows = [replace(row, label=i % 3) for i, row in enumerate(rows)]
    update = lay_out(rows, range(5), kind=kind, limit_tokens=1000, packing=False)
    (batch,) = update.micro_batches
    with torch.no_grad():
        mean = Network(model, kind).run(batch).nll().mean()
        assert float(model(**keywords(batch, kind)).loss) == pytest.approx(float(mean), rel=1e-5)


def test_every_token_goes_through_the_adapter_of_its_context() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0, 1], [2, 1, 0, 2, 1, 0, 0, 0, 0]])
    with attached("contextpeft", {"rank": 3, "alpha": 6, "tasks": 3}) as attachment:
        attachment.model.foretune_tasks.ids = ids
        for layer, x, base, whole in seen_in(attachment.model):
            t = tensors(layer)
            for row in range(2):
                for position in range(9):
                    context = ids[row, position]
                    expected = base[row, position] + 2.0 * t["b"][context] @ (t["a"][context] @ x[row, position])
                    np.testing.assert_allclose(whole[row, position], expected, rtol=1e-6, atol=2e-6)


def test_loretta_adapters_are_tensor_trains() -> None:
    with attached("loretta_adp", {"rank": 3, "width": 4}) as attachment:
        for layer, _, base, whole in seen_in(attachment.model):
            t = tensors(layer)
            down = np.einsum("ajb,bkc,cld,dse->jkls", *(t[f"down.{i}"] for i in range(4))).reshape(32, 4)
            up = np.einsum("ase,ejb,bkc,cld->sjkl", *(t[f"up.{i}"] for i in range(4))).reshape(4, 32)
            inner = torch.nn.functional.gelu(torch.tensor(base @ down + t["inner_bias"])).numpy()
            np.testing.assert_allclose(whole, base + inner @ up + t["bias"], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("method", ["contextpeft", "mtllora"])
@pytest.mark.parametrize("packing", [True, False])
def test_rows_train_the_parts_of_their_own_task(method: str, packing: bool) -> None:
    """Through the loop: only the tasks that are in the rows get a gradient, and packed equals padded."""
    rows = [replace(row, task=(0, 2)[i % 2]) for i, row in enumerate(ROWS)]
    attachment = attach(method, specimen("llama").twin(), rank=3, tasks=3)
    training = Training(
        Network(attachment.model, "causal"), attachment, rows, Epochs(12, 6, 0),
        LoopSettings(OptimizerSettings(1e-2, 8), seed=0, packing=packing, micro_batch_tokens=60),
    )  # fmt: skip
    assert training.network.reads_tasks and training.packing == packing
    before = attachment.state()
    seen: list[StepReport] = []
    training.run(8, on_step=lambda report: seen.append(report) or True)
    assert seen[-1].loss < seen[0].loss
    by_task = "update.b" if method == "contextpeft" else "update.inner"
    moved = [
        [
            not torch.equal(value[task], before[name][task])
            for name, value in attachment.state().items()
            if name.endswith(by_task)
        ]
        for task in range(3)
    ]
    assert [any(task) for task in moved] == [True, False, True]
    other = attach(method, specimen("llama").twin(), rank=3, tasks=3)
    again = Training(
        Network(other.model, "causal"), other, rows, Epochs(12, 6, 0),
        LoopSettings(OptimizerSettings(1e-2, 8), seed=0, packing=not packing, micro_batch_tokens=200),
    )  # fmt: skip
    losses: list[float] = []
    again.run(8, on_step=lambda report: losses.append(report.loss) or True)
    assert losses == pytest.approx([report.loss for report in seen], abs=1e-4)
