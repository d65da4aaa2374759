"""The shorter LoRA pass: peft's own numbers, and peft's own way wherever the shorter one would not be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.methods import fused
from foretune.methods.fused import FusedLinear, fuse, unfuse
from foretune.methods.registry import get
from foretune.seeding import torch_generator

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


def adapted(base: Any, **fields: Any) -> Any:
    """A LoRA on every linear layer, with an update that is not zero."""
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEARS, **fields}))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            nn.init.normal_(weight, std=0.2)
    return model.to(next(base.parameters()).dtype)


def outcome(model: Any, ids: torch.Tensor = IDS) -> dict[str, torch.Tensor]:
    """Logits and the gradient of every trained tensor for a loss that uses them all."""
    model.zero_grad()
    logits = model(input_ids=ids).logits
    logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).mean().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), **gradients}


def compare(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        error = (value.float() - other[name].float()).norm() / other[name].float().norm()
        assert error <= tolerance, (name, float(error))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many projections each short pass computed."""
    made: list[int] = []
    apply = fused._apply
    monkeypatch.setattr(fused, "_apply", lambda members, x: made.append(len(members)) or apply(members, x))
    return made


def test_logits_and_gradients_are_pefts(tiny_llama: Callable[..., Any], calls: list[int]) -> None:
    model = adapted(tiny_llama())
    expected = outcome(model)
    assert fuse(model) == 14
    compare(outcome(model), expected, 1e-5)
    assert calls == [3, 1, 2, 1] * 2  # query-key-value, output, gate-up, down of two layers
    unfuse(model)
    compare(outcome(model), expected, 0.0)


def test_in_bfloat16_it_is_as_near_to_the_exact_result_as_peft(tiny_llama: Callable[..., Any]) -> None:
    model = adapted(tiny_llama(dtype="bfloat16"))
    pefts = outcome(model)
    fuse(model)
    ours = outcome(model)
    unfuse(model)
    exact = outcome(model.float())

    def error(got: dict[str, torch.Tensor]) -> float:
        return sum(float((got[name].float() - exact[name]).norm() / exact[name].norm()) for name in exact)

    assert error(ours) <= 1.1 * error(pefts)


def test_ranks_and_scales_may_differ_within_a_stack(tiny_llama: Callable[..., Any]) -> None:
    model = adapted(tiny_llama(attention_bias=True), rank_pattern={"k_proj": 2, "up_proj": 7}, use_rslora=True)
    expected = outcome(model)
    fuse(model)
    compare(outcome(model), expected, 1e-5)


def test_gradient_checkpointing_and_a_frozen_input(tiny_llama: Callable[..., Any]) -> None:
    base = tiny_llama()
    model = adapted(base, layers_to_transform=[1])
    expected = outcome(model)
    fuse(model)
    compare(outcome(model), expected, 1e-5)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    model.train()
    compare(outcome(model), expected, 1e-5)


def test_a_projection_alone_and_out_of_order(tiny_llama: Callable[..., Any]) -> None:
    model = adapted(tiny_llama())
    attention = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(1, 5, 32)
    expected = [attention.v_proj(x), attention.q_proj(x), attention.k_proj(x + 1)]
    fuse(model)
    got = [attention.v_proj(x), attention.q_proj(x), attention.k_proj(x + 1)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        attention.q_proj(x)
    assert attention.k_proj(x).requires_grad  # what was computed without gradient is not handed out


def test_a_model_may_change_what_it_got_in_place(tiny_llama: Callable[..., Any], calls: list[int]) -> None:
    """DeBERTa and LED do so with their queries, which autograd forbids on the views that a function returns."""
    model = adapted(tiny_llama())
    attention = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(2, 5, 32)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        query, key = attention.q_proj(x), attention.k_proj(x)
        (query.div_(3.0) @ key.permute(0, 2, 1)[:, :16].repeat(1, 2, 1)).square().sum().backward()
        return [module.lora_B.default.weight.grad.clone() for module in (attention.q_proj, attention.k_proj)]

    expected = gradients()
    fuse(model)
    for one, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert calls == [3], "the short way was taken"


INEXACT: dict[str, Callable[[Any], object]] = {
    "dropout": lambda model: model.train(),
    "merged": lambda model: model.merge_adapter(),
    "two adapters": lambda model: (
        model.add_adapter("second", LoraConfig(r=2, target_modules=LINEARS)),
        model.base_model.set_adapter(["default", "second"]),
    ),
    "hook inside": lambda model: [
        module.base_layer.register_forward_hook(lambda *a: a[-1] * 2)
        for module in model.modules()
        if isinstance(module, FusedLinear)
    ],
    "parametrised": lambda model: [
        torch.nn.utils.parametrize.register_parametrization(module.base_layer, "weight", nn.Identity())
        for module in model.modules()
        if isinstance(module, FusedLinear)
    ],
    "trained base": lambda model: model.requires_grad_(True),
    "other number type": lambda model: [
        module.lora_A.double() and module.lora_B.double()
        for module in model.modules()
        if isinstance(module, FusedLinear)
    ],
}


@pytest.mark.parametrize("state", INEXACT)
def test_where_it_would_not_be_exact_peft_computes(
    tiny_llama: Callable[..., Any], calls: list[int], state: str
) -> None:
    model = adapted(tiny_llama(), lora_dropout=0.5)
    fuse(model)
    model.eval()
    outcome(model)
    assert calls == [3, 1, 2, 1] * 2  # dropout alone does not matter outside training
    INEXACT[state](model)
    calls.clear()
    torch.manual_seed(2)
    got = model(input_ids=IDS).logits
    assert not calls
    unfuse(model)
    torch.manual_seed(2)
    assert torch.equal(got, model(input_ids=IDS).logits)


def test_switched_off_it_is_the_base_bitwise(tiny_llama: Callable[..., Any]) -> None:
    base = tiny_llama()
    expected = base(input_ids=IDS).logits
    model = adapted(base)
    fuse(model)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_stay_with_peft(tiny_llama: Callable[..., Any], calls: list[int], fields: dict[str, Any]) -> None:
    model = adapted(tiny_llama(attention_bias=True, mlp_bias=True), **fields)
    expected = outcome(model)
    fuse(model)
    compare(outcome(model), expected, 0.0)
    assert not calls


def test_second_derivatives_are_refused(tiny_llama: Callable[..., Any]) -> None:
    model = adapted(tiny_llama())
    fuse(model)
    weight = next(weight for name, weight in model.named_parameters() if "lora_A" in name)
    (gradient,) = torch.autograd.grad(model(input_ids=IDS).logits.pow(2).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_method_lora_uses_it(tiny_llama: Callable[..., Any], calls: list[int]) -> None:
    attachment = get("lora").attach(tiny_llama(), DEFAULT_LORA, generator=torch_generator(0, "init"))
    attachment.model(input_ids=IDS)
    assert calls == [3, 1, 2, 1] * 2
    assert not any(isinstance(module, FusedLinear) for module in attachment.detach().modules())


@pytest.mark.model
def test_on_the_default_model() -> None:
    from foretune.catalogue.models import ModelReference
    from foretune.models.load import load

    base = load(ModelReference("SmolLM2-135M-Instruct", dtype="float32"), device="cpu").model
    base.requires_grad_(False)
    model = adapted(base, r=16, lora_alpha=32)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.01)
    ids = torch.randint(0, 40_000, (2, 48), generator=torch.Generator().manual_seed(0))
    expected = outcome(model, ids)
    assert fuse(model) == 210
    compare(outcome(model, ids), expected, 2e-5)  # thirty layers of float32 rounding
