"""LESS: gradients of single rows, Adam's direction, projections and influence, beside plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.data.example import conversation
from foretune.errors import UsageError
from foretune.selection.base import Request
from foretune.selection.less import adam_step, influence, subtasks
from foretune.selection.row_gradients import Projection, lora_layers, row_gradients
from foretune.selection.run import select

from .. import tiny
from .conftest import rows

CONFIG = resolve({"method": "lora", "lora.rank": 3, "lora.alpha": 6.0, "lora.dropout": 0.0})


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(rows(8))


def test_gradients_of_many_rows_are_those_of_one_row_at_a_time(bench):
    encoded = bench.encode(bench.split("train").examples)
    with bench.attached(CONFIG, 0) as (_, network):
        for layer in lora_layers(network.model).values():  # B is zero at the start, and A's gradient with it
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3, generator=torch.Generator().manual_seed(1))
        found = {}
        row_gradients(bench, network, encoded, lambda name, gradient: found.update({name: gradient.clone()}))
        assert len(found) == 2 * len(lora_layers(network.model))
        for number, row in enumerate(encoded):
            network.model.zero_grad()
            labels = np.where(row.target_mask, row.ids, -100).astype(np.int64)
            loss = network.model(
                input_ids=torch.tensor(row.ids[None].astype(int)), labels=torch.tensor(labels[None])
            ).loss
            loss.backward()
            for name, layer in lora_layers(network.model).items():
                for part in ("lora_A", "lora_B"):
                    plain = getattr(layer, part)["default"].weight.grad
                    assert torch.allclose(found[f"{name}.{part}"][number], plain, atol=1e-5), (name, part, number)
        network.model.zero_grad()


def test_the_step_is_adams():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    gradients = torch.tensor([[0.3, -1.0, 2.0, 0.01], [1.0, 0.5, -0.2, 0.0], [-0.4, 0.2, 0.1, 3.0]])
    for gradient in gradients[:2]:
        weight.grad = gradient.clone()
        optimizer.step()
    state = optimizer.state[weight]
    step = adam_step(gradients[2:], state["exp_avg"].clone(), state["exp_avg_sq"].clone(), 2)[0]
    before = weight.detach().clone()
    weight.grad = gradients[2].clone()
    optimizer.step()
    assert torch.allclose(before - weight.detach(), step, atol=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_projections_keep_inner_products(kind):
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 3000, generator=draw)
    vectors[1] = vectors[0] + 0.1 * vectors[1]
    projection = Projection(2048, kind=kind, seed=5)
    total = torch.zeros(6, 2048)
    projection.add(total, "a", vectors[:, :1000])
    projection.add(total, "b", vectors[:, 1000:])
    exact, kept = vectors @ vectors.T, total @ total.T
    scale = exact.diagonal().sqrt()
    assert ((kept - exact) / scale[:, None] / scale[None, :]).abs().max() < 0.12  # a few / √2048
    again = torch.zeros(6, 2048)
    Projection(2048, kind=kind, seed=5).add(again, "a", vectors[:, :1000])
    other = torch.zeros(6, 2048)
    Projection(2048, kind=kind, seed=6).add(other, "a", vectors[:, :1000])
    first = torch.zeros(6, 2048)
    projection.add(first, "a", vectors[:, :1000])
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_influence_is_the_mean_over_rows_of_a_subtask():
    own = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    goal = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -5.0]])
    tasks = subtasks(["a", "a", "b"])
    half = 1 / np.sqrt(2)
    expected = [[(1 + half) / 2, 0.0], [half / 2, -1.0], [0.0, 0.0]]
    assert np.allclose(influence(own, goal, tasks), expected)


def test_rows_like_the_target_have_the_most_influence(bench):
    """A row that is the target itself moves the model as the target wants."""
    examples = bench.split("train").examples
    fields = {"less.warmup_epochs": 2, "less.warmup_share": 0.5, "less.width": 512, "less.rank": 4}
    request = Request(examples, 8, bench=bench, target=[examples[5]], fields=fields)
    found = select(request, "less")
    assert found.indices[0] == 5
    assert found.scores[0] == max(found.scores)


def test_encoder_decoders_have_gradients_too_and_no_ratings(bench, tmp_path):
    """Rows were laid out without the tokens of their decoder, so that some were left over."""
    other = bench.with_model(str(tiny.bart(tmp_path / "bart")))
    examples = [*bench.split("train").examples, conversation("a", "much longer than what is asked " * 3)]
    fields = {"less.warmup_epochs": 1, "less.width": 64, "less.rank": 2}
    request = Request(examples, 3, bench=other, target=[examples[1]], fields=fields)
    assert len(select(request, "less").indices) == 3
    with pytest.raises(UsageError, match="goes on writing"):
        select(request, "select-it")
