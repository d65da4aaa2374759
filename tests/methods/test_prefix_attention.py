"""Learnt keys and values: the numbers of a cache that holds them, in one pass and token by token; and MAM's adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from foretune.catalogue.methods import resolve
from foretune.methods.contract.checks import disturb
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.methods.tuners.prefix import PrefixUpdate
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from tests.methods.test_edit_oracles import attached, seen_in, tensors

IDS = specimen("llama").inputs["input_ids"]


def prefixes(attachment: Any) -> list[Any]:
    return [module for module in attachment.model.modules() if isinstance(module, PrefixUpdate)]


@pytest.fixture(params=["sdpa", "eager"])
def mam(request: pytest.FixtureRequest) -> Any:
    """MAM with a prefix that is not small, and adapters that add nothing."""
    model = specimen("llama").twin()
    model.set_attn_implementation(request.param)
    config = resolve({"method": "mam", "mam.width": 2, "mam.prefix": 3})
    attachment = get("mam").attach(model, config, generator=torch_generator(0, "init"))
    with torch.no_grad():
        for prefix in prefixes(attachment):
            torch.nn.init.normal_(prefix.keys)
            torch.nn.init.normal_(prefix.values)
    yield attachment
    attachment.detach()


def with_cache(attachment: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the plain base that finds the prefixes in its cache."""
    base = specimen("llama").twin()
    cache = DynamicCache(config=base.config)
    for layer, prefix in enumerate(prefixes(attachment)):
        rows = (len(ids), -1, -1, -1)
        cache.update(prefix.keys.detach().expand(rows), prefix.values.detach().expand(rows), layer)
    mask = torch.ones(len(ids), 3 + ids.shape[1], dtype=torch.long)
    with torch.no_grad():
        logits: torch.Tensor = base(
            input_ids=ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None], cache=cache
        ).logits
    return logits


def test_it_is_what_a_cache_with_the_same_vectors_gives(mam: Any) -> None:
    with torch.no_grad():
        got = mam.model(input_ids=IDS).logits
    torch.testing.assert_close(got, with_cache(mam, IDS), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, specimen("llama").answers, atol=0.05)


def test_padding_stays_hidden_and_answers_token_by_token_are_the_same(mam: Any) -> None:
    whole = mam.model(input_ids=IDS).logits.detach()
    padded = torch.cat([torch.full((2, 2), 5), IDS], dim=1)
    mask = (torch.arange(11) >= 2).long().expand(2, -1)
    positions = (torch.arange(11) - 2).clamp_min(0)[None]
    with torch.no_grad():
        shifted = mam.model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 2:]
        cache = DynamicCache(config=mam.model.config)
        steps = [
            mam.model(input_ids=IDS[:, i : i + 1], position_ids=torch.tensor([[i]]), cache=cache, use_cache=True).logits
            for i in range(9)
        ]
    torch.testing.assert_close(shifted, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_call_that_failed_before_the_attention_leaves_no_prefix_to_the_next(mam: Any) -> None:
    def out_of_memory(module: Any, inputs: Any) -> None:
        raise MemoryError

    with torch.no_grad():
        before = mam.model(input_ids=IDS).logits
        hook = mam.model.model.layers[0].self_attn.base_layer.q_proj.register_forward_pre_hook(out_of_memory)
        with pytest.raises(MemoryError):
            mam.model(input_ids=IDS)
        hook.remove()
        assert torch.equal(mam.model(input_ids=IDS).logits, before)


def test_it_refuses_packed_streams_and_leaves_no_trace(mam: Any) -> None:
    with torch.no_grad():
        before = mam.model(input_ids=IDS).logits
        assert not Network(mam.model, "causal").packs
        assert torch.equal(mam.model(input_ids=IDS).logits, before)  # the refused trial left nothing behind
    base = mam.detach()
    assert base.model.layers[0].self_attn.config is base.config
    base.set_attn_implementation("sdpa")
    assert Network(base, "causal").packs
    config = resolve({"method": "mam", "mam.width": 2, "mam.prefix": 3})
    again = get("mam").attach(base, config, generator=torch_generator(0, "init"))
    disturb(again)
    assert len(prefixes(again)) == 2


def test_mams_adapter_is_he_et_als_parallel_one() -> None:
    with attached("mam", {"width": 4, "prefix": 2}) as attachment:
        names = [name for name, module in attachment.model.named_modules() if hasattr(module, "updates")]
        seen = {name: found for name, found in zip(names, seen_in(attachment.model), strict=True)}
        _, x, _, _ = seen["model.layers.0.mlp.up_proj"]
        layer, _, base, whole = seen["model.layers.0.mlp.down_proj"]
        t = tensors(layer)
        hidden = np.maximum(x @ t["down.weight"].T + t["down.bias"], 0)
        expected = base + 4.0 * (hidden @ t["up.weight"].T + t["up.bias"])
        np.testing.assert_allclose(whole, expected, rtol=1e-6, atol=3e-6)
