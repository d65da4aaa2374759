"""AdaLoRA's ranks: the choices of peft's allocator on the same gradients, a whole run, and the same after a pause."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator

from foretune.catalogue.methods import resolve
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.regularization.rank_schedule import RankSchedule
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests.training.rows import random_rows

ROWS = random_rows(8, vocabulary=90)
STEPS, FIRST, LAST, EVERY = 20, 4, 16, 3


def test_it_chooses_as_pefts_allocator_does() -> None:
    torch.manual_seed(0)
    shapes = {"lora_A": (4, 6), "lora_E": (4, 1), "lora_B": (5, 4)}
    names = [f"layers.{layer}.{kind}.default" for layer in range(3) for kind in shapes]
    ours = [torch.nn.Parameter(torch.randn(shapes[name.split(".")[2]])) for name in names]
    theirs = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in zip(names, ours, strict=True)}
    model = SimpleNamespace(named_parameters=lambda: list(theirs.items()))
    config = SimpleNamespace(beta1=0.85, beta2=0.85, tinit=FIRST, tfinal=STEPS - LAST, total_step=STEPS, target_r=2,
                             deltaT=EVERY)  # fmt: skip
    peft = RankAllocator(model, config, "default")
    schedule = RankSchedule(keep=0.5, start=FIRST / STEPS, end=LAST / STEPS, every=EVERY)
    context = SimpleNamespace(names=tuple(names), masters=tuple(ours), total_steps=STEPS)
    schedule.setup(context)  # type: ignore[arg-type]
    for step in range(STEPS):
        for own, (_, other) in zip(ours, model.named_parameters(), strict=True):
            own.grad = torch.randn(own.shape)
            other.grad = own.grad.clone()
            with torch.no_grad():
                own.sub_(0.1 * own.grad)
                other.sub_(0.1 * other.grad)
        schedule.pre_forward(step, None, torch.Generator())
        schedule.post_step(ours, 0.1)
        done = step + 1
        if done < LAST:
            peft.update_and_allocate(model, done)
        elif done == LAST:
            peft.update_ipt(model)  # ours still counts the update at which it chooses for good
            pattern = peft.mask_to_budget(model, 6)
        else:
            peft.mask_using_rank_pattern(model, pattern)
        for name, own, (_, other) in zip(names, ours, model.named_parameters(), strict=True):
            torch.testing.assert_close(own.detach(), other.detach(), msg=f"{name} after {done} updates")
    assert sum(int((tensor != 0).sum()) for name, tensor in zip(names, ours, strict=True) if "lora_E" in name) == 6


def run_of(method: str = "adalora", limit: int = 200, **fields: Any) -> tuple[Any, Training]:
    settings = {"method": method, f"{method}.rank": 4}
    attachment = get(method).attach(specimen("llama").twin(), resolve(settings), generator=torch_generator(0, "init"))
    training = Training(
        Network(attachment.model, "causal"), attachment, ROWS, Epochs(8, 8, 0),
        LoopSettings(OptimizerSettings(1e-2, 10, warmup_share=0.0), seed=0, micro_batch_tokens=limit),
        [RankSchedule(**fields)],
    )  # fmt: skip
    return attachment, training


def test_ranks_fall_to_the_share_and_stay_and_a_paused_run_is_the_same() -> None:
    attachment, one = run_of(keep=0.25, start=0.2, end=0.7, every=2)
    one.run(10)
    values = [weight.detach() for name, weight in attachment.trainable() if "lora_E" in name]
    assert sum(int((value != 0).sum()) for value in values) == 14  # a quarter of 14 layers of rank 4
    assert one.regularizers.report()["rank-schedule"]["ranks_left"] == 14.0
    _, other = run_of(keep=0.25, start=0.2, end=0.7, every=2)
    other.run(5)
    tensors, facts = other.state()
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    _, again = run_of(keep=0.25, start=0.2, end=0.7, every=2)
    again.load_state(5, tensors, facts)
    again.run(10)
    assert all(torch.equal(a, b) for a, b in zip(one.masters.masters, again.masters.masters, strict=True))


def test_other_methods_and_an_end_before_the_start_are_refused() -> None:
    with pytest.raises(UsageError, match="method adalora"):
        run_of("lora")
    with pytest.raises(UsageError, match="not behind"):
        run_of(start=0.5, end=0.4)
