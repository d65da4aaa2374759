"""What each method adds, written a second time in NumPy float64 from its equation, agrees to 1e-6."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foretune.methods.dsee import DseeConfig, DseeUpdate
from foretune.methods.lorasp import LoraspConfig, LoraspUpdate
from foretune.methods.loratrf import LoratrfConfig, LoratrfUpdate
from foretune.methods.loretta import LorettaConfig, LorettaUpdate
from foretune.methods.melora import MeloraConfig, MeloraUpdate
from foretune.methods.mora import APART, MoraConfig, MoraUpdate
from foretune.methods.mtllora import MtlloraConfig, MtlloraUpdate
from foretune.methods.nola import NolaConfig, NolaUpdate
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.tasks import Tasks

INPUTS, OUTPUTS = 12, 18
Array = np.ndarray[Any, np.dtype[np.float64]]


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def made(update: type[Update], config: Any) -> tuple[Update, torch.Tensor, torch.Tensor, nn.Linear]:
    """The update with noise on its tensors, an input (2, 5, inputs), the layer's output, and the layer."""
    torch.manual_seed(1)
    base = nn.Linear(INPUTS, OUTPUTS)
    built = update(base, INPUTS, OUTPUTS, config, "layer")
    built.reset()
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    x = torch.randn(2, 5, INPUTS)
    return built, x, base(x).detach(), base


def agree(update: Update, x: torch.Tensor, hidden: torch.Tensor, expected: Array) -> None:
    with torch.no_grad():
        added = array(update(x, hidden))
    assert np.abs(added - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())
    assert np.abs(expected).max() > 0.01


def agree_with_matrix(update: Update, x: torch.Tensor, hidden: torch.Tensor, matrix: Array) -> None:
    """The addition is a matrix product, and the matrix that a merge adds."""
    agree(update, x, hidden, array(x) @ matrix.T)
    assert np.abs(array(update.delta()) - matrix).max() <= 1e-6 * max(1.0, np.abs(matrix).max())


@pytest.mark.parametrize("gate", ["clamp_cos", "cos_scaled", "sigmoid", "channel", "none"])
def test_loratrf(gate: str) -> None:
    config = LoratrfConfig(rank=3, alpha=6.0, trf_rank=2, trf_alpha=5.0, trf_gate=gate)
    update, x, hidden, _ = made(LoratrfUpdate, config)
    edit: Any = update.edit
    h, task = array(hidden), None if edit.task is None else array(edit.task)
    if gate == "none":
        g = np.ones((2, 5, 1))
    elif gate == "channel":
        g = 1 / (1 + np.exp(-task)) * np.ones_like(h)
    else:
        cosine = (h @ task / (np.linalg.norm(h, axis=-1) * np.linalg.norm(task)))[..., None]
        stretched = math.sqrt(OUTPUTS) * cosine
        g = {"clamp_cos": np.clip(cosine, 0, 1), "cos_scaled": np.clip(stretched, 0, 1),
             "sigmoid": 1 / (1 + np.exp(-stretched))}[gate]  # fmt: skip
    lora = 6.0 / 3 * array(x) @ array(update.a).T @ array(update.b).T
    agree(update, x, hidden, lora + 5.0 / 2 * ((g * h) @ array(edit.down).T) @ array(edit.up).T)


def test_loratrf_without_a_gate_is_a_lora_of_both_ranks() -> None:
    """A' = [A; C W₀], B' = [sB, s_t D], b' = b + s_t D C b, as the specification writes it."""
    config = LoratrfConfig(rank=3, alpha=6.0, trf_rank=2, trf_alpha=5.0, trf_gate="none")
    update, x, hidden, base = made(LoratrfUpdate, config)
    edit: Any = update.edit
    down = np.concatenate([array(update.a), array(edit.down) @ array(base.weight)])
    up = np.concatenate([2.0 * array(update.b), 2.5 * array(edit.up)], axis=1)
    bias = 2.5 * array(edit.up) @ array(edit.down) @ array(base.bias)
    agree(update, x, hidden, array(x) @ down.T @ up.T + bias)
    weight, merged_bias = update.merged(base.weight.detach(), base.bias.detach())
    assert merged_bias is not None
    assert np.abs(array(weight) - (array(base.weight) + up @ down)).max() < 1e-6
    assert np.abs(array(merged_bias) - (array(base.bias) + bias)).max() < 1e-6


def test_loratrf_edits_only_the_positions_it_is_told_to() -> None:
    for positions, edited in (("first:2", [0, 1]), ("all", [0, 1, 2, 3, 4])):
        config = LoratrfConfig(rank=3, trf_rank=2, trf_gate="none", trf_positions=positions, use_lora=False)
        update, x, hidden, _ = made(LoratrfUpdate, config)
        added = update(x, hidden).detach().abs().sum((0, 2))
        assert [i for i in range(5) if added[i] > 0] == edited


@pytest.mark.parametrize("tasks", ["default", "rows", "tokens"])
def test_mtllora(tasks: str) -> None:
    config = MtlloraConfig(rank=3, alpha=6.0, tasks=4, ups=2, temperature=0.7, default_task=2)
    update, x, hidden, _ = made(MtlloraUpdate, config)
    update.context = Tasks()
    ids = {"default": np.full((2, 5), 2), "rows": np.array([[1] * 5, [3] * 5])}.get(tasks)
    if tasks == "tokens":
        ids = np.random.default_rng(0).integers(0, 4, (2, 5))
    if tasks != "default":
        update.context.ids = torch.tensor(ids[:, 0] if tasks == "rows" else ids)
    weights = np.exp(array(update.mixture) / 0.7)
    weights /= weights.sum(1, keepdims=True)
    expected = np.zeros((2, 5, OUTPUTS))
    for row in range(2):
        for token in range(5):
            t = ids[row, token]
            up = sum(weights[t, j] * array(update.b)[j] for j in range(2))
            expected[row, token] = 2.0 * up @ array(update.inner)[t] @ array(update.a) @ array(x)[row, token]
    agree(update, x, hidden, expected)


@pytest.mark.parametrize(("kind", "stored"), [("sharing", False), ("rotation", False), ("rotation", True)])
@pytest.mark.parametrize("rank", [1, 2])
def test_mora(kind: str, stored: bool, rank: int) -> None:
    """An adapter that says nothing of its groups is of a version that multiplied the sum of the rotated ones."""
    config = MoraConfig(rank=rank, kind=kind) if stored else MoraConfig(rank=rank, kind=kind, groups=APART)
    update, x, hidden, _ = made(MoraUpdate, config)
    size = math.floor(math.sqrt((INPUTS + OUTPUTS) * rank) + 0.5)
    assert update.square.shape == (size, size)
    groups = -(-INPUTS // size)
    compress = np.zeros((groups, size, INPUTS))
    for column in range(INPUTS):
        group, place = divmod(column, size)
        pair, second = divmod(place, 2)
        if kind == "sharing" or place >= size - size % 2:
            compress[group, place, column] = 1
            continue
        angle = group * 10_000 ** (-2 * pair / size)
        compress[group, 2 * pair, column] = -math.sin(angle) if second else math.cos(angle)
        compress[group, 2 * pair + 1, column] = math.cos(angle) if second else math.sin(angle)
    if kind == "sharing" or stored:
        compress = compress.sum(0, keepdims=True)
    results = np.concatenate([array(update.square) @ group for group in compress])
    agree_with_matrix(update, x, hidden, results[np.arange(OUTPUTS) % len(results)])


def test_melora() -> None:
    update, x, hidden, _ = made(MeloraUpdate, MeloraConfig(rank=2, alpha=6.0, blocks=3))
    matrix = np.zeros((OUTPUTS, INPUTS))
    for k in range(3):
        matrix[6 * k : 6 * k + 6, 4 * k : 4 * k + 4] = 3.0 * array(update.b)[k] @ array(update.a)[k]
    agree_with_matrix(update, x, hidden, matrix)


def test_lorasp() -> None:
    """Rows of A that are trained meet frozen columns of B, and the other way round."""
    update, x, hidden, _ = made(LoraspUpdate, LoraspConfig(rank=5, alpha=10.0, seed=3))
    rows, columns = map(array, update.frozen())
    a = np.concatenate([array(update.a), rows])
    b = np.concatenate([columns, array(update.b)], axis=1)
    assert a.shape == (5, INPUTS) and b.shape == (OUTPUTS, 5)
    agree_with_matrix(update, x, hidden, 2.0 * b @ a)


def test_loretta() -> None:
    update, x, hidden, _ = made(LorettaUpdate, LorettaConfig(rank=3, bottleneck=4, alpha=8.0))
    a, b = np.zeros((4, INPUTS)), np.zeros((OUTPUTS, 4))
    down, up = [array(core) for core in update.down], [array(core) for core in update.up]
    i1, i2, i3 = (core.shape[1] for core in down[:3])
    o1, o2, o3 = (core.shape[1] for core in up[1:])
    assert i1 * i2 * i3 == INPUTS and o1 * o2 * o3 == OUTPUTS
    for s in range(4):
        for flat in range(INPUTS):
            p, q, r = np.unravel_index(flat, (i1, i2, i3))
            a[s, flat] = (down[0][:, p] @ down[1][:, q] @ down[2][:, r] @ down[3][:, s]).item()
        for flat in range(OUTPUTS):
            p, q, r = np.unravel_index(flat, (o1, o2, o3))
            b[flat, s] = (up[0][:, s] @ up[1][:, p] @ up[2][:, q] @ up[3][:, r]).item()
    agree_with_matrix(update, x, hidden, 2.0 * b @ a)


def test_dsee() -> None:
    update, x, hidden, base = made(DseeUpdate, DseeConfig(rank=2, alpha=4.0, entries=7))
    size = np.abs(array(base.weight))
    matrix = 2.0 * array(update.u) @ array(update.v)
    chosen = sorted(np.argsort(-size, axis=None)[:7])
    for value, place in zip(array(update.values), chosen, strict=True):
        matrix[np.unravel_index(place, size.shape)] += value
    agree_with_matrix(update, x, hidden, matrix)


def test_nola() -> None:
    update, x, hidden, _ = made(NolaUpdate, NolaConfig(bases=6, rank=2, alpha=4.0, seed=9))
    down, up = map(array, update.bases())
    a = sum(array(update.for_a)[j] * down[j] for j in range(6))
    b = sum(array(update.for_b)[j] * up[j] for j in range(6))
    assert np.abs(down).max() <= 1 / math.sqrt(INPUTS) and np.abs(up).max() <= 1 / math.sqrt(6)
    agree_with_matrix(update, x, hidden, 2.0 * b @ a)
