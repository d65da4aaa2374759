"""Damaged or foreign adapters and quantised bases are refused with our errors, by every tuner of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foretune.catalogue.methods import METHODS, resolve
from foretune.errors import ModelError, UsageError
from foretune.export.loading import load_adapted, load_plain
from foretune.methods.contract.checks import case
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.seeding import torch_generator
from tests import tiny

DELTA = ("loratrf", "mtllora", "mora", "melora", "lorasp", "loretta", "dsee", "nola", "bitfit", "layernorm")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bart(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("method", [*DELTA, "lora", "dora", "vera", "ia3"])
def test_a_damaged_adapter_is_refused(method: str, base: Path, tmp_path: Path) -> None:
    model = load_plain(base, "seq2seq", torch.float32)
    config = {"method": method, **{f"{method}.{key}": value for key, value in METHODS[method].example.items()}}
    attachment = get(method).attach(model, {**config, "layers": "all"}, generator=torch_generator(0, "init"))
    attachment.save(tmp_path)
    weights, whole = tmp_path / "adapter_model.safetensors", load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(whole)[-1]
    damages: dict[str, dict[str, torch.Tensor]] = {
        "missing": {key: value for key, value in whole.items() if key != name},
        "extra": {**whole, f"{name}.odd": torch.zeros(2)},
        "misshapen": {**whole, name: torch.zeros((*whole[name].shape, 2))},
    }
    for tensors in damages.values():
        save_file(tensors, weights)
        with pytest.raises(ModelError):
            load_adapted(base, tmp_path, torch.float32)
    save_file(whole, weights)
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ModelError):
        load_adapted(base, tmp_path, torch.float32)
    save_file(whole, weights)
    assert load_adapted(base, tmp_path, torch.float32) is not None
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "FORETUNE_NOTHING"}))
    with pytest.raises(ModelError):
        load_adapted(base, tmp_path, torch.float32)


class Packed(nn.Linear):
    """A linear layer of another class, as quantised ones are: it computes, and its weight must not be merged into."""


@pytest.mark.parametrize("method", [name for name in DELTA if name not in ("bitfit", "layernorm")])
def test_a_quantised_base_is_adapted_but_not_merged_into(method: str) -> None:
    one = specimen("llama")
    twin: Any = one.twin()
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and "layers" in name:
            module.__class__ = Packed
    with case(get(method), METHODS[method], one).attached(trained=True, model=twin) as attachment:
        before = one.logits(attachment.model)
        with pytest.raises(UsageError, match=r"quantised|depends on the token"):
            attachment.merge()
        assert torch.equal(one.logits(attachment.model), before)


@pytest.mark.parametrize("method", ["pissa", "olora", "mica", "kasa", "psoft", "deft", "adamss"])
def test_a_rank_above_the_narrowest_target_is_refused_before_anything_is_changed(method: str) -> None:
    one = specimen("llama")
    twin: Any = one.twin()
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    config = resolve({"method": method, f"{method}.rank": 24})
    with pytest.raises(UsageError, match="above the width 16"):
        get(method).attach(twin, config, generator=torch_generator(0, "init"))
    after = twin.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("method", ["cartridge", "pissa"])
def test_a_start_that_fails_is_undone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twin: Any = specimen("llama").twin()
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    if method == "pissa":
        monkeypatch.setattr("foretune.methods.trainable.count", lambda shapes, fields: 1)
    with pytest.raises((UsageError, ModelError), match=r"rows|was to train"):
        get(method).attach(twin, resolve({"method": method}), generator=torch_generator(0, "init"), calibration=[])
    after = twin.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
