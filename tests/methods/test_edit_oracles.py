"""Edits of activations against their equations in NumPy float64, module by module inside a tiny Llama."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from foretune.catalogue.methods import METHODS, resolve
from foretune.methods.contract.checks import broken_points, case, disturb
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.methods.trainable import count
from foretune.methods.tuners.layer import AdapterLayer
from foretune.seeding import torch_generator

Array = np.ndarray[Any, np.dtype[np.float64]]
Tensors = Mapping[str, Array]


@contextmanager
def attached(method: str, fields: Mapping[str, Any], *, model: Any = None, **more: Any) -> Iterator[Any]:
    base = specimen("llama").twin() if model is None else model
    config = resolve({"method": method, **{f"{method}.{key}": value for key, value in fields.items()}})
    attachment = get(method).attach(base, config, generator=torch_generator(0, "init"), **more)
    disturb(attachment)
    try:
        yield attachment
    finally:
        attachment.detach()


def seen_in(model: Any) -> Iterator[tuple[AdapterLayer, Array, Array, Array]]:
    """Every adapted module of one pass: (layer, its input, the base's output, the layer's output)."""
    record: dict[str, list[Any]] = {}

    def watch(name: str, what: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            record.setdefault(name, []).append((what, given, output[0] if isinstance(output, tuple) else output))

        return hook

    layers = {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}
    for name, layer in layers.items():
        layer.register_forward_hook(watch(name, "whole"), with_kwargs=True)
        layer.base_layer.register_forward_hook(watch(name, "base"), with_kwargs=True)
    specimen("llama").logits(model)
    for name, layer in layers.items():
        found = {what: (given, output) for what, given, output in record[name]}
        x, whole = found["whole"]
        yield layer, x.double().numpy(), found["base"][1].double().numpy(), whole.double().numpy()


def tensors(layer: AdapterLayer) -> Tensors:
    update: Any = layer.updates["default"]
    return {name: weight.detach().double().numpy() for name, weight in update.named_parameters()}


def orthonormal(matrix: Array) -> Array:
    columns, triangle = np.linalg.qr(matrix.T)
    return (columns * np.sign(np.diagonal(triangle))).T


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def bottleneck(t: Tensors, x: Array, h: Array) -> Array:
    inner = layer_norm(h, t["norm.weight"], t["norm.bias"]) if "norm.weight" in t else h
    hidden = np.maximum(inner @ t["down.weight"].T + t["down.bias"], 0)
    return 2.5 * (hidden @ t["up.weight"].T + t["up.bias"])


def loreft(t: Tensors, x: Array, h: Array) -> Array:
    rotation = orthonormal(t["rotate"])
    return (h @ t["source"].T + t["bias"] - h @ rotation.T) @ rotation


def loreft_first(t: Tensors, x: Array, h: Array) -> Array:
    edit = loreft(t, x, h)
    edit[:, 3:] = 0
    return edit


ORACLES: dict[str, tuple[str, Mapping[str, Any], Callable[[Tensors, Array, Array], Array]]] = {
    "bottleneck": ("bottleneck", {"width": 4, "scale": 2.5, "activation": "relu"}, bottleneck),
    "bottleneck, pfeiffer": ("bottleneck", {"width": 4, "scale": 2.5, "design": "pfeiffer"}, bottleneck),
    "loreft": ("loreft", {"rank": 3}, loreft),
    "loreft, first positions": ("loreft", {"rank": 3, "positions": "first:3"}, loreft_first),
    "direft": ("direft", {"rank": 3}, lambda t, x, h: (h @ t["source"].T + t["bias"]) @ t["target"]),
    "red": ("red", {}, lambda t, x, h: t["scale"] * h + t["shift"]),
    "ssf": ("ssf", {"targets": "attention"}, lambda t, x, h: t["scale"] * h + t["shift"]),
    "adalink": ("adalink", {"width": 3}, lambda t, x, h: h @ t["down"].T @ t["up"].T),
}


@pytest.mark.parametrize("name", ORACLES)
def test_the_equation(name: str) -> None:
    method, fields, equation = ORACLES[name]
    with attached(method, fields) as attachment:
        layers = 0
        for layer, x, base, whole in seen_in(attachment.model):
            np.testing.assert_allclose(whole, base + equation(tensors(layer), x, base), rtol=1e-6, atol=2e-6)
            assert not np.allclose(whole, base, atol=1e-3)
            layers += 1
        assert layers > 0


def test_a_parallel_adapter_reads_what_its_sub_layer_reads() -> None:
    fields = {"width": 4, "scale": 2.5, "sites": "parallel_attention+parallel_ffn", "norm": "no"}
    with attached("bottleneck", fields) as attachment:
        seen = {name: found for name, found in zip(_names(attachment), seen_in(attachment.model), strict=True)}
        for part, entry, last in (("self_attn", "q_proj", "o_proj"), ("mlp", "up_proj", "down_proj")):
            _, x, _, _ = seen[f"model.layers.1.{part}.{entry}"]
            layer, _, base, whole = seen[f"model.layers.1.{part}.{last}"]
            np.testing.assert_allclose(whole, base + bottleneck(tensors(layer), x, x), rtol=1e-6, atol=2e-6)


def _names(attachment: Any) -> list[str]:
    return [name for name, module in attachment.model.named_modules() if isinstance(module, AdapterLayer)]


def test_lofit_adds_its_offsets_to_the_heads_outputs() -> None:
    with attached("lofit", {"share": 0.4}) as attachment:
        config = attachment.peft_model.active_peft_config
        assert sum(map(len, config.heads.values())) == 3  # 0.4 of 8 heads
        for name, (layer, x, _, whole) in zip(_names(attachment), seen_in(attachment.model), strict=True):
            offset = np.zeros(32)
            for head, values in zip(config.heads[name], tensors(layer)["offsets"], strict=True):
                offset[8 * head : 8 * head + 8] = values
            weight = layer.base_layer.weight.detach().double().numpy()
            np.testing.assert_allclose(whole, (x + offset) @ weight.T, rtol=1e-6, atol=2e-6)


def test_lofit_chooses_the_heads_that_the_loss_asks_for() -> None:
    """A head that the output projection ignores has no gradient and is never chosen."""
    model = specimen("llama").twin()
    for layer in model.model.layers:
        with torch.no_grad():
            layer.self_attn.o_proj.weight[:, 8:24] = 0  # heads 1 and 2
    ids = specimen("llama").inputs["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}]
    with attached("lofit", {"share": 0.5}, model=model, calibration=rows) as attachment:
        heads = attachment.peft_model.active_peft_config.heads
        assert {name: sorted(chosen) for name, chosen in heads.items()} == {
            f"model.layers.{i}.self_attn.o_proj": [0, 3] for i in range(2)
        }


@pytest.mark.parametrize("design", ["houlsby", "pfeiffer", "parallel", "peterrec"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "bart"])
def test_every_design_keeps_the_contract(design: str, architecture: str) -> None:
    declared = METHODS["bottleneck"]
    given = case(get("bottleneck"), declared, specimen(architecture))
    given.config = {**given.config, "bottleneck.design": design}
    assert broken_points(given) == {}


def test_first_positions_keep_the_contract_and_pack() -> None:
    from foretune.training.packing_contract import packs

    given = case(get("direft"), METHODS["direft"], specimen("gemma"))
    given.config = {**given.config, "direft.positions": "first:4"}
    assert broken_points(given, (packs,)) == {}


def test_counts_of_the_translation_study() -> None:
    """mBART-50, Üstün & Cooper Stickland 2022: adapters of width 1024 after all 24 layers are 50.43 M parameters."""
    from foretune.cost.shapes import ModelShapes

    mbart = {
        "model_type": "mbart", "vocab_size": 250054, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096, "max_position_embeddings": 1024,
    }  # fmt: skip
    shapes = ModelShapes.from_config(mbart)
    assert count(shapes, resolve({"method": "bottleneck", "bottleneck.width": 1024})) == 24 * (1024 * 2049 + 3 * 1024)
    assert round(count(shapes, resolve({"method": "bottleneck", "bottleneck.width": 1024})) / 1e6, 2) == 50.43


def test_layers_restrict_an_edit() -> None:
    model = specimen("llama").twin()
    config = resolve({"method": "loreft", "layers": "last:1"})
    attachment = get("loreft").attach(model, config, generator=torch_generator(0, "init"))
    assert _names(attachment) == ["model.layers.1"]
    attachment.detach()
