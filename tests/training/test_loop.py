"""The loop: layout does not matter, resumed = uninterrupted, bad updates do not touch weights, memory is halved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from foretune.catalogue.traits import Traits
from foretune.data.update import Epochs
from foretune.methods.attachment import PeftAttachment
from foretune.methods.full import FullAttachment
from foretune.regularization.neftune import Neftune
from foretune.training import checkpoint
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import MasterWeights, OptimizerSettings
from tests.training.rows import random_rows

TRAITS = Traits(True, "exact", True, True, True, True)


def lora(model: Any, dropout: float = 0.0) -> PeftAttachment:
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    return PeftAttachment(model, config, TRAITS, seed=1)


def training(model: Any, attachment: Any, **fields: Any) -> Training:
    rows = random_rows(12)
    regularizers = fields.pop("regularizers", ())
    settings = LoopSettings(OptimizerSettings(1e-2, 12, warmup_share=0.1), seed=3, **fields)
    return Training(Network(attachment.model, "causal"), attachment, rows, Epochs(12, 4, 3), settings, regularizers)


def losses(run: Training, steps: int) -> list[float]:
    seen: list[StepReport] = []
    status = run.run(steps, on_step=lambda report: seen.append(report) or True)
    assert status == "ok"
    return [report.loss for report in seen]


@pytest.mark.parametrize("limit", [20, 45, 1000])
def test_packed_equals_padded_equals_any_micro_batch_size(tiny_llama: Any, limit: int) -> None:
    model = tiny_llama()
    packed = training(model, lora(model), micro_batch_tokens=limit)
    assert packed.packing and packed.share_head
    first = losses(packed, 6)
    model = tiny_llama()
    second = losses(training(model, lora(model), micro_batch_tokens=200, packing=False), 6)
    assert first == pytest.approx(second, abs=2e-5)
    assert first[-1] < first[0]


def test_gradients_of_one_micro_batch_equal_those_of_many(tiny_llama: Any) -> None:
    gradients = []
    for limit in (1000, 21):
        model = tiny_llama()
        run = training(model, FullAttachment(model), micro_batch_tokens=limit)
        with run.network.mode(packing=run.packing, training=True):
            update, _ = run._gradients([0, 1, 2, 3])
        assert (len(update.micro_batches) > 1) == (limit == 21)
        gradients.append(torch.cat([m.grad.flatten() for m in run.masters.masters]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_equals_uninterrupted_bit_for_bit(tiny_llama: Any, tmp_path: Any, dtype: str, dropout: float) -> None:
    model = tiny_llama(dtype=dtype)
    whole = training(model, lora(model, dropout), regularizers=[Neftune(5.0)])
    losses(whole, 9)
    model = tiny_llama(dtype=dtype)
    first = training(model, lora(model, dropout), regularizers=[Neftune(5.0)])
    losses(first, 4)
    tensors, facts = first.state()
    checkpoint.save(tmp_path, first.step, tensors, {**facts, "seed": 3})
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved.step == 4
    model = tiny_llama(dtype=dtype)
    second = training(model, lora(model, dropout), regularizers=[Neftune(5.0)])
    second.load_state(saved.step, saved.tensors(), saved.facts)
    losses(second, 9)
    for one, other in zip(whole.masters.masters, second.masters.masters, strict=True):
        assert torch.equal(one, other)


def test_noise_is_drawn_from_the_seed_and_only_while_training(tiny_llama: Any) -> None:
    model = tiny_llama()
    attachment = lora(model)
    run = training(model, attachment, regularizers=[Neftune(20.0)])
    plain = tiny_llama()
    assert losses(run, 2) != pytest.approx(losses(training(plain, lora(plain)), 2), abs=1e-4)
    ids = torch.arange(10)[None]
    with torch.no_grad(), run.network.mode(packing=False, training=False):
        noisy = model(ids).logits
        run.close()
        assert torch.equal(noisy, model(ids).logits)


def test_detach_leaves_the_base_bitwise_as_before(tiny_llama: Any) -> None:
    for attach in (lora, FullAttachment):
        model = tiny_llama(dtype="bfloat16")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        attachment = attach(model)
        losses(training(model, attachment), 3)
        base = attachment.detach()
        after = base.state_dict()
        assert set(after) == set(before)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_nan_updates_are_skipped_then_the_run_is_diverged(tiny_llama: Any) -> None:
    model = tiny_llama()
    run = training(model, lora(model))
    losses(run, 2)
    weights = [master.detach().clone() for master in run.masters.masters]
    run.backward = lambda loss: (loss * float("nan")).backward()
    assert run.run(12) == "diverged"
    assert run.guard.skipped == 4
    assert all(torch.equal(a, b) for a, b in zip(weights, run.masters.masters, strict=True))


def test_one_bad_update_is_skipped_and_training_goes_on(tiny_llama: Any) -> None:
    model = tiny_llama()
    run = training(model, lora(model))
    calls = iter(range(100))
    run.backward = lambda loss: (loss * (float("inf") if next(calls) == 1 else 1.0)).backward()
    reports: list[StepReport] = []
    assert run.run(6, on_step=lambda report: reports.append(report) or True) == "ok"
    assert [report.skipped for report in reports] == [False, True, False, False, False, False]


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(tiny_llama: Any) -> None:
    model = tiny_llama()
    expected = losses(training(model, lora(model)), 4)
    model = tiny_llama()
    run = training(model, lora(model))
    real = run.network.run

    def small_device(batch: Any) -> Any:
        if batch.ids.numel() > 30:
            raise torch.OutOfMemoryError("simulated")
        return real(batch)

    run.network.run = small_device  # type: ignore[method-assign]
    assert losses(run, 4) == pytest.approx(expected, abs=2e-5)
    assert run.micro_batch_tokens <= 30


def test_a_row_that_never_fits_ends_as_oom(tiny_llama: Any) -> None:
    model = tiny_llama()
    run = training(model, lora(model))

    def no_memory(batch: Any) -> Any:
        raise torch.OutOfMemoryError("simulated")

    run.network.run = no_memory  # type: ignore[method-assign]
    assert run.run(3) == "oom"


def test_bfloat16_masters_keep_updates_that_bfloat16_would_round_away() -> None:
    weight = torch.nn.Parameter(torch.full((4, 4), 256.0, dtype=torch.bfloat16))
    groups = [{"names": ["w"], "params": [weight], "lr": 0.1, "weight_decay": False}]
    masters = MasterWeights(groups, OptimizerSettings(0.1, 100, schedule="constant", warmup_share=0.0))
    for step in range(20):
        weight.grad = torch.ones_like(weight)
        masters.collect()
        masters.step(step, masters.gradient_norm())
        masters.publish()
        masters.clear()
    assert float(masters.masters[0].detach()[0, 0]) == pytest.approx(254.0, abs=0.01)
    assert float(weight.detach()[0, 0]) == 254.0


def test_schedules_match_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for name, build in (("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = build(optimizer, 3, 30)
        ours = OptimizerSettings(1.0, 30, schedule=name, warmup_share=0.1)  # type: ignore[arg-type]
        for step in range(30):
            assert ours.factor(step) == pytest.approx(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_run_of_one_update_trains(schedule: Any) -> None:
    assert OptimizerSettings(1.0, 1, schedule=schedule).factor(0) == 1.0
    assert [OptimizerSettings(1.0, 2, schedule=schedule).factor(step) for step in (0, 1)] == [0.0, 1.0]
