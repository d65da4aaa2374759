"""Combined adapters: the exact weighted sum of updates, plain LoRA to everybody, and nothing inexact taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import ModelError, OutputError, UsageError
from foretune.evaluation.representation import likeness, weights_for
from foretune.export.ensemble import combine, read_lora
from foretune.export.loading import load, load_plain
from tests.export.conftest import Tiny, make_adapter

IDS = torch.tensor([[5, 9, 40, 77, 120, 3]])


def adapter(tiny: Tiny, folder: Path, seed: int, **fields: Any) -> Path:
    make_adapter(load_plain(tiny.base, "causal", torch.float32), folder, **fields)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    changed = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    return folder


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def merged(tiny: Tiny, folder: Path) -> dict[str, torch.Tensor]:
    model: Any = load(folder, torch.float32, base=tiny.base)
    return weights_of(model.merge_and_unload())


def test_the_sum_is_exact_for_different_ranks_scales_and_targets(tiny: Tiny, tmp_path: Path) -> None:
    first = adapter(tiny, tmp_path / "a", 1, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3})
    second = adapter(tiny, tmp_path / "b", 2, r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "v_proj"])
    weights = [0.7, -0.4]
    together = combine([first, second], weights, tmp_path / "both")
    base = weights_of(load_plain(tiny.base, "causal", torch.float32))
    parts = [merged(tiny, folder) for folder in (first, second)]
    result = merged(tiny, together)
    for name, weight in base.items():
        expected = weight + sum(w * (part[name] - weight) for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-5)
    stored = read_lora(together)
    assert stored.modules["model.layers.0.self_attn.q_proj"][0].shape[0] == 2 + 3
    assert all(scale == 1.0 for _, _, scale in stored.modules.values())
    again = combine([together], [1.0], tmp_path / "again")
    torch.testing.assert_close(merged(tiny, again), result)


def test_one_adapter_with_weight_one_answers_as_it_did(tiny: Tiny, tmp_path: Path) -> None:
    one = adapter(tiny, tmp_path / "a", 1)
    same = combine([one], [1.0], tmp_path / "same")
    answers = [load(folder, torch.float32, base=tiny.base)(input_ids=IDS).logits for folder in (one, same)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_has_no_exact_sum_is_refused(tiny: Tiny, tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tmp_path / "odd"
    make_adapter(load_plain(tiny.base, "causal", torch.float32), folder, **fields)
    with pytest.raises((UsageError, ModelError)):
        combine([folder, folder], [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_bases_counts_and_numbers_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    one, two = adapter(tiny, tmp_path / "a", 1), adapter(tiny, tmp_path / "b", 2)
    with pytest.raises(UsageError, match="do not fit together"):
        combine([one, two], [1.0], tmp_path / "out")
    with pytest.raises(UsageError, match="finite"):
        combine([one, two], [1.0, float("nan")], tmp_path / "out")
    config = json.loads((two / "adapter_config.json").read_text())
    (two / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "another"}))
    with pytest.raises(UsageError, match="other base models"):
        combine([one, two], [0.5, 0.5], tmp_path / "out")


def test_a_folder_in_use_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    one = adapter(tiny, tmp_path / "a", 1)
    used = tmp_path / "used"
    used.mkdir()
    (used / "own.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        combine([one], [1.0], used)
    for adapters in ([one, one], [tmp_path / "none"]):  # before anything is read
        outcome = CliRunner().invoke(app, ["adapters", "combine", *map(str, adapters), "-o", str(used)])
        assert isinstance(outcome.exception, OutputError)
    assert [path.read_text() for path in used.iterdir()] == ["mine"]


def test_a_weight_for_each_adapter_is_asked_for(tmp_path: Path) -> None:
    call = ["adapters", "combine", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, [*call, "--weights", "1"])
    assert isinstance(outcome.exception, UsageError) and "has 1 for 2 adapters" in str(outcome.exception)


def test_weights_by_likeness() -> None:
    stored = [np.array([3.0, 0.0, 5.0]), np.array([0.0, 3.0, 5.0]), np.array([-3.0, -3.0, 5.0])]
    near = likeness(stored[1], stored)
    assert near[1] == pytest.approx(1.0) and near[0] == pytest.approx(0.0) and near[2] < 0
    soft = weights_for(stored[1], stored, temperature=0.5)
    assert soft == pytest.approx(np.exp(near / 0.5) / np.exp(near / 0.5).sum())
    only = weights_for(stored[1], stored, nearest=1)
    assert only.tolist() == [0.0, 1.0, 0.0]
    mixed = 0.25 * stored[0] + 0.75 * stored[1]
    assert weights_for(mixed, stored, weighting="linear") == pytest.approx([0.25, 0.75, 0.0], abs=0.01)
    with pytest.raises(UsageError, match="widths differ"):
        weights_for(np.zeros(2), stored)
    with pytest.raises(UsageError, match="unknown weighting"):
        weights_for(stored[0], stored, weighting="other")
