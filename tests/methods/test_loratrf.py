"""LoRATRF as a whole: equal to LoRA without its edit, its controls, its gates, its sites and starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from foretune.catalogue.methods import METHODS, resolve
from foretune.data.batches import lay_out
from foretune.errors import UsageError
from foretune.methods.contract.checks import Case, broken_points
from foretune.methods.contract.models import specimen
from foretune.methods.loratrf import LoratrfLayer, edits
from foretune.methods.registry import get
from foretune.methods.tuners.task_edit import Cosine
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from tests.training.rows import random_rows


@contextmanager
def attached(method: str, calibration: Any = None, **settings: Any) -> Iterator[Any]:
    config = resolve({"method": method, f"{method}.rank": 4, **{f"{method}.{k}": v for k, v in settings.items()}})
    base = specimen("llama").model
    attachment = get(method).attach(base, config, generator=torch_generator(3, "init"), calibration=calibration)
    try:
        yield attachment
    finally:
        attachment.detach()


def test_without_an_edit_it_is_peft_lora() -> None:
    with attached("lora") as lora:
        tensors = {name: tensor for name, tensor in lora.state().items()}
        for tensor in tensors.values():
            tensor.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
        lora.load_state(tensors)
        expected = specimen("llama").logits(lora.model)
    with attached("loratrf", trf_rank=0) as ours:
        state = {}
        for name in ours.state():
            place, _, letter = name.rpartition(".foretune_loratrf_update.")
            state[name] = tensors[f"{place}.lora_{letter.upper()}.weight"]
        ours.load_state(state)
        assert ours.adapter_parameters == sum(tensor.numel() for tensor in tensors.values())
        found = specimen("llama").logits(ours.model)
        assert torch.allclose(found, expected, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "settings",
    [
        {"trf_gate": "none"},
        {"trf_gate": "channel"},
        {"trf_gate": "sigmoid", "trf_rank": 3},
        {"trf_gate": "clamp_cos", "use_lora": False},
        {"trf_site": "block", "trf_rank": 2},
        {"trf_site": "block", "trf_rank": 2, "use_lora": False},
        {"trf_rank": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["llama", "bart"])
def test_every_form_keeps_the_contract(settings: dict[str, Any], architecture: str) -> None:
    """What merges exactly, in these settings, may be merged: only the refusal of a merge is not asked for."""
    config = resolve({"method": "loratrf", "loratrf.rank": 4, **{f"loratrf.{k}": v for k, v in settings.items()}})
    broken = broken_points(Case(get("loratrf"), METHODS["loratrf"], specimen(architecture), config))
    exact = settings.get("trf_gate") in ("none", "channel") or settings.get("trf_rank") == 0
    assert set(broken) <= ({"merges"} if exact else set()), broken
    if exact:
        assert broken == {"merges": "merging is not refused, as the traits say it is"}


@pytest.mark.parametrize("gate", ["none", "channel"])
def test_a_gate_that_no_token_moves_merges_exactly(gate: str) -> None:
    for architecture in ("llama", "bert"):
        one = specimen(architecture)
        config = resolve({"method": "loratrf", "loratrf.rank": 4, "loratrf.trf_gate": gate})
        case = Case(get("loratrf"), METHODS["loratrf"], one, config)
        with case.attached(trained=True, model=one.twin()) as attachment:
            unmerged = one.logits(attachment.model)
            merged = one.logits(attachment.merge())
        assert torch.allclose(merged, unmerged, atol=2e-6 * float(unmerged.abs().max()))


def test_gates_are_counted_while_observed() -> None:
    with attached("loratrf", trf_rank=2, trf_gate="clamp_cos") as attachment:
        assert "gate_mean" not in attachment.statistics()
        with attachment.observed():
            specimen("llama").logits(attachment.model)
        found = attachment.statistics()
    width = METHODS["loratrf"] and 32
    assert found["gate_mean"] == pytest.approx(0.4 / math.sqrt(width), rel=0.5)  # nearly dead, as theory has it
    assert 0.3 < found["gate_open_share"] < 0.7
    assert found["gate_lowest_layer"] <= found["gate_mean"] <= found["gate_highest_layer"]


def test_mean_hidden_points_task_vectors_to_the_data_and_needs_it() -> None:
    inputs = [dict(specimen("llama").inputs)]
    with attached("loratrf", inputs, trf_rank=2, trf_task_init="mean_hidden") as attachment:
        for edit in edits(attachment.model).values():
            assert edit.task is not None
            norm = torch.linalg.vector_norm(edit.task.detach())
            assert float(norm) == pytest.approx(math.sqrt(edit.task.numel()), rel=1e-4)
        with attachment.observed():
            specimen("llama").logits(attachment.model)
        assert attachment.statistics()["gate_open_share"] > 0.6  # half the tokens for a direction drawn at random
    with pytest.raises(UsageError, match="needs calibration rows"), attached("loratrf", trf_task_init="mean_hidden"):
        pass


def test_the_gradient_of_the_gate_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 12, requires_grad=True)
    task = torch.randn(12, requires_grad=True)
    weights = torch.randn(7)
    ours = torch.autograd.grad((Cosine.apply(hidden, task) * weights).sum(), (hidden, task))
    plain = torch.nn.functional.cosine_similarity(hidden, task[None], dim=-1)
    theirs = torch.autograd.grad((plain * weights).sum(), (hidden, task))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bert", "bart"])
@pytest.mark.parametrize("gate", ["cos_scaled", "clamp_cos", "sigmoid"])
def test_the_shorter_way_gives_the_same(gate: str, architecture: str) -> None:
    """Logits and every gradient against the layers' own long way; the stacks share their input's product."""
    one = specimen(architecture)
    settings = {"loratrf.rank": 4, "loratrf.trf_rank": 3, "loratrf.raised": 3, "loratrf.trf_gate": gate}
    case = Case(get("loratrf"), METHODS["loratrf"], one, resolve({"method": "loratrf", **settings}))
    found: list[dict[str, torch.Tensor]] = []
    with case.attached(trained=True, model=one.twin()) as attachment:
        layers = [module for module in attachment.model.modules() if isinstance(module, LoratrfLayer)]
        assert len(layers) > len({id(layer.stack) for layer in layers}) > 1
        for shorter in (True, False):
            for layer in layers:
                layer.stack = layer.stack if shorter else None
            loss = one.loss(attachment.model)
            named = attachment.trainable()
            gradients = torch.autograd.grad(loss, [weight for _, weight in named])
            found.append({"loss": loss.detach(), **dict(zip((name for name, _ in named), gradients, strict=True))})
    shorter, longer = found
    assert set(shorter) == set(longer)
    for name, value in longer.items():
        assert float((shorter[name] - value).norm()) <= 1e-5 * float(value.norm()), name
    assert float((shorter["loss"] - longer["loss"]).abs()) <= 1e-6 * float(longer["loss"].abs())


def test_the_long_way_is_taken_where_the_shorter_would_differ() -> None:
    with attached("loratrf", trf_rank=2) as attachment:
        layer = next(module for module in attachment.model.modules() if isinstance(module, LoratrfLayer))
        x = torch.randn(2, 3, layer.base_layer.in_features)
        update = layer._active()[0]
        assert layer.exact_for(x)
        assert not layer.exact_for(x.double())
        handle = update.edit.register_forward_hook(lambda *seen: None)
        assert not layer.exact_for(x), "somebody looks at the edit"
        handle.remove()
        update.dropout = torch.nn.Dropout(0.5)
        assert not layer.exact_for(x)
        update.dropout.eval()
        assert layer.exact_for(x)
        with attachment.observed():
            assert not layer.exact_for(x)
        with attachment.disabled():
            assert not layer.exact_for(x)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="trains nothing"), attached("loratrf", trf_rank=0, use_lora=False):
        pass


def test_the_first_positions_are_those_of_each_row() -> None:
    """Packed, apart and token by token: the same rows are edited at the same places."""
    rows = random_rows(4, vocabulary=90)
    ids = torch.as_tensor(rows[0].ids)[None]
    with attached("loratrf", trf_positions="first:3", trf_gate="none") as attachment, torch.no_grad():
        for name, weight in attachment.trainable():
            if name.endswith("edit.up"):
                weight.normal_(0, 0.2)
        network, losses = Network(attachment.model, "causal"), []
        for packing in (True, False):
            batch = lay_out(rows, range(4), kind="causal", limit_tokens=512, packing=packing).micro_batches[0]
            with network.mode(packing=packing, training=False):
                losses.append(network.run(batch).nll())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
        whole = attachment.model(input_ids=ids).logits[:, -1]
        cache = DynamicCache(config=attachment.model.config)
        attachment.model(input_ids=ids[:, :-1], cache=cache, use_cache=True)
        last = attachment.model(input_ids=ids[:, -1:], cache=cache, use_cache=True).logits[:, -1]
        torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)


def test_an_encoder_counts_from_zero_after_an_answer_was_written() -> None:
    """Answers are written by an encoder that is called by itself; it counted on from the last answer's tokens."""
    model = specimen("bart").model.eval()
    config = resolve({"method": "loratrf", "loratrf.rank": 4, "loratrf.trf_positions": "first:2"})
    attachment = get("loratrf").attach(model, config, generator=torch.Generator().manual_seed(0))
    for name, weight in attachment.model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    ids = torch.tensor([[5, 6, 7, 8]])
    encoder = attachment.model.get_encoder()
    with torch.no_grad():
        before = encoder(input_ids=ids).last_hidden_state
        attachment.model.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6)
        after = encoder(input_ids=ids).last_hidden_state
    attachment.detach()
    assert torch.equal(before, after)
