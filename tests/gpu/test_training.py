"""On a GPU: every method and regularizer trains there, as on a processor, and goes on from a checkpoint.

Skipped where there is no GPU. Random numbers of a GPU are others than a processor's, so what draws noise is only asked
to be finite and to resume; everything else must give the processor's losses.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from foretune.catalogue.methods import METHODS, resolve
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.methods.contract.models import ARCHITECTURES, specimen
from foretune.methods.full import FullAttachment
from foretune.methods.registry import get
from foretune.methods.trainable import count
from foretune.regularization.fisher.norms import GradientNorms, squared_norms
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings
from tests.regularization.models import FAMILIES, tiny
from tests.regularization.test_contract import EVERY, FULL, ROWS, attach
from tests.regularization.test_fisher import losses_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
STEPS = 4
STARTS_ON_THE_DEVICE = {"c3a"}
"""Their first weights are drawn by the device's own generator"""


def losses(run: Training, steps: int) -> list[float]:
    seen: list[StepReport] = []
    assert run.run(steps, on_step=lambda report: seen.append(report) or True) == "ok"
    return [report.loss for report in seen]


def settings(limit: int = 60) -> LoopSettings:
    """``limit`` tokens a micro-batch: at 60 an update has several, and is not recorded."""
    return LoopSettings(OptimizerSettings(1e-3, STEPS, warmup_share=0.0), seed=3, micro_batch_tokens=limit)


def with_method(name: str, device: str, dtype: torch.dtype = torch.float32, limit: int = 60) -> Training:
    model = tiny("llama").to(dtype).to(device)
    declared = METHODS[name]
    config = resolve({"method": name, **{f"{name}.{key}": value for key, value in declared.example.items()}})
    attachment = get(name).attach(model, config, generator=torch_generator(5, "init"))
    return Training(Network(attachment.model, "causal"), attachment, ROWS, Epochs(12, 4, 3), settings(limit))


def usable(name: str) -> bool:
    declared = METHODS[name]
    if "causal" not in declared.kinds:
        return False
    if declared.expression:
        try:
            count(specimen("llama").shapes, {"method": name})
        except UsageError:
            return False
    return True


@pytest.mark.parametrize("name", [name for name in METHODS if usable(name)])
def test_a_method_gives_the_losses_of_a_processor(name: str) -> None:
    """By recorded updates, where the method can be recorded, and by ordinary ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, ordinary = with_method(name, "cpu"), with_method(name, "cuda")
        there = with_method(name, "cuda", limit=1000)
        assert ordinary.recorded is None
        expected = losses(ordinary if name in STARTS_ON_THE_DEVICE else here, STEPS)
        found = losses(there, STEPS)
        plain = expected if name in STARTS_ON_THE_DEVICE else losses(ordinary, STEPS)
    print("recorded", name, there.recorded and there.recorded.refused)
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert plain == pytest.approx(expected, rel=2e-3, abs=2e-3)
    if name in ("lora", "full", "loratrf", "bottleneck", "dora", "ia3"):
        assert there.recorded is not None and not there.recorded.refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lora", "full", "loratrf", "bottleneck"])
def test_a_run_goes_on_from_a_checkpoint(name: str, dtype: torch.dtype) -> None:
    whole = with_method(name, "cuda", dtype)
    expected = losses(whole, STEPS)
    first = with_method(name, "cuda", dtype)
    losses(first, 2)
    tensors, facts = first.state()
    tensors = {key: tensor.cpu().clone() for key, tensor in tensors.items()}
    second = with_method(name, "cuda", dtype)
    second.load_state(2, tensors, facts)
    assert losses(second, STEPS) == pytest.approx(expected[2:], rel=1e-3)


def with_regularizer(name: str, device: str) -> Training:
    model = tiny("llama", dtype="float32").to(device)
    attachment = attach(model, name)
    return Training(Network(attachment.model, "causal"), attachment, ROWS, Epochs(12, 4, 3), settings(), EVERY[name]())


@pytest.mark.parametrize("name", EVERY)
def test_a_regularizer_acts_and_resumes(name: str) -> None:
    whole = with_regularizer(name, "cuda")
    expected = losses(whole, STEPS)
    whole.close()
    assert all(map(math.isfinite, expected))
    first = with_regularizer(name, "cuda")
    losses(first, 2)
    tensors, facts = first.state()
    tensors = {key: tensor.cpu().clone() for key, tensor in tensors.items()}
    first.close()
    second = with_regularizer(name, "cuda")
    second.load_state(2, tensors, facts)
    assert losses(second, STEPS) == pytest.approx(expected[2:], rel=1e-3)
    second.close()


@pytest.mark.parametrize("name", ["l2-sp", "kl-to-base", "recadam", "extrapolation", "token-weighting", *FULL])
def test_a_regularizer_without_noise_gives_the_losses_of_a_processor(name: str) -> None:
    if name in ("mixout", "reinit-top"):
        pytest.skip("draws on the device")
    here, there = with_regularizer(name, "cpu"), with_regularizer(name, "cuda")
    expected, found = losses(here, STEPS), losses(there, STEPS)
    here.close()
    there.close()
    assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_answers_as_on_a_processor(architecture: str) -> None:
    base = specimen(architecture)
    model = base.twin().to("cuda")
    with torch.no_grad():
        found = model(**{key: value.to("cuda") for key, value in base.inputs.items()}).logits.cpu()
    assert torch.allclose(found, base.answers, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_norms_are_those_of_a_processor(family: str) -> None:
    ids, mask = torch.arange(36).reshape(4, 9) % 90 + 3, torch.ones(4, 9, dtype=torch.int64)

    def norms(device: str) -> dict[str, torch.Tensor]:
        model = tiny(family).to(device)
        loss = losses_of(family, ids.to(device), mask.to(device))
        return squared_norms(GradientNorms(model), loss, 4)

    expected, found = norms("cpu"), norms("cuda")
    largest = max(float(value.max()) for value in expected.values())
    for name, value in expected.items():  # a key's bias has no gradient: what is there is rounding
        assert torch.allclose(found[name].cpu(), value.cpu(), rtol=1e-3, atol=1e-9 * largest), name


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_encoder_s_recorded_updates(dropout: float) -> None:
    """With dropout of its own the losses are others than a processor's, and fall all the same."""

    def run(device: str) -> Training:
        fields = {"num_labels": 3, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        attachment = FullAttachment(tiny("bert", **fields).to(device))
        return Training(Network(attachment.model, "encoder"), attachment, ROWS, Epochs(12, 4, 3), settings(1000))

    there = run("cuda")
    found = losses(there, STEPS)
    assert there.recorded is not None and not there.recorded.refused
    assert found == pytest.approx(losses(run("cuda"), STEPS), rel=1e-4)
    if not dropout:
        assert found == pytest.approx(losses(run("cpu"), STEPS), rel=2e-3, abs=2e-3)
