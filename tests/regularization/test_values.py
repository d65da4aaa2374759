"""Single regularizers against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from foretune.data.batches import lay_out
from foretune.regularization.base import Context
from foretune.regularization.dropout import Dropout
from foretune.regularization.extrapolation import Extrapolation
from foretune.regularization.flat_lora import FlatLora
from foretune.regularization.kl_to_base import KlToBase
from foretune.regularization.l2_sp import L2Sp
from foretune.regularization.lora_pairs import lora_pairs
from foretune.regularization.mixout import Mixout
from foretune.regularization.r_drop import RDrop
from foretune.regularization.recadam import Recadam
from foretune.regularization.reinit_top import ReinitTop
from foretune.regularization.smart import Smart
from foretune.regularization.token_weighting import TokenWeighting
from foretune.regularization.weight_noise import noisy
from foretune.seeding import torch_generator
from foretune.training.divergence import divergence, symmetric_divergence
from tests.regularization.models import tiny
from tests.regularization.test_contract import attach, trained, training


def context_of(run: Any, **fields: Any) -> Context:
    values = {
        "kind": "causal", "names": tuple(run.masters.names), "masters": tuple(run.masters.masters),
        "weights": tuple(run.masters.weights), "rows": run.rows, "runner": run.network, "lay_out": run._lay_out,
    }  # fmt: skip
    return Context(run.network.model, run.attachment, 3, 10, **{**values, **fields})


def test_divergences_equal_their_formulas_with_and_without_a_frozen_head() -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 11)
    head.requires_grad_(False)
    one, other = (torch.randn(300, 6, requires_grad=True) for _ in range(2))
    weight = torch.rand(300)
    p, q = (head(hidden).log_softmax(-1) for hidden in (one, other))
    expected = {
        "kl": (q.exp() * (q - p)).sum(-1),
        "symmetric": ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)) / 2,
    }
    for frozen in (head, None):
        found = {
            "kl": divergence(one, other.detach(), head, frozen),
            "symmetric": symmetric_divergence(one, other, head, frozen),
        }
        for name, value in found.items():
            assert torch.allclose(value, expected[name], atol=1e-6), name
            wanted = torch.autograd.grad((expected[name] * weight).sum(), (one, other), retain_graph=True)
            got = torch.autograd.grad((value * weight).sum(), (one, other), allow_unused=True)
            assert torch.allclose(got[0], wanted[0], atol=1e-6)
            if name == "symmetric":
                assert torch.allclose(got[1], wanted[1], atol=1e-6)


def test_l2_sp_of_lora_follows_the_gradient_of_the_products_distance_from_its_start() -> None:
    run = training("l2-sp", parts=[])  # B does not begin at 0 here, as with PiSSA
    context = context_of(run)
    pull = L2Sp(0.3)
    pull.setup(context)
    pairs = lora_pairs(context)
    starts = [(p.scale * p.up @ p.down).detach().clone() for p in pairs]
    pull.post_step(context.masters, 0.1)
    assert pull.report()["distance"] == pytest.approx(0.0, abs=1e-3), "at the start nothing pulls"
    assert all(torch.allclose(p.scale * p.up @ p.down, s, atol=1e-6) for p, s in zip(pairs, starts, strict=True))
    with torch.no_grad():
        for number, master in enumerate(context.masters):
            master.add_(torch.randn(master.shape, generator=torch_generator(number, "moved")), alpha=0.3)
    down, up = (context.masters[number].detach().clone().requires_grad_(True) for number in pairs[0].numbers)
    gaps = [p.scale * p.up.double() @ p.down.double() - s.double() for p, s in zip(pairs, starts, strict=True)]
    by_down, by_up = torch.autograd.grad((pairs[0].scale * up @ down - starts[0]).pow(2).sum() / 2, (down, up))
    pull.post_step(context.masters, 0.1)
    for number, before, gradient in zip(pairs[0].numbers, (down, up), (by_down, by_up), strict=True):
        assert torch.allclose(context.masters[number], before - 0.1 * 0.3 * gradient, atol=1e-5)
    expected = sum(float(gap.detach().pow(2).sum()) for gap in gaps)
    assert pull.report()["distance"] ** 2 == pytest.approx(expected, rel=1e-3)


def test_l2_sp_under_full_tuning_pulls_to_the_start_and_recadam_anneals() -> None:
    run = training("l2-sp full", parts=[])
    context = context_of(run)
    start = [master.detach().clone() for master in context.masters]
    pull, anneal = L2Sp(0.5), Recadam(pull=2.0, midpoint=0.5, speed=10.0)
    pull.setup(context)
    anneal.setup(context)
    with torch.no_grad():
        for master in context.masters:
            master.add_(1.0)
    pull.post_step(context.masters, 0.1)
    assert all(torch.allclose(m, s + 1 - 0.05, atol=1e-6) for m, s in zip(context.masters, start, strict=True))
    anneal._step = 2
    share = 1 / (1 + math.exp(-10 * (0.2 - 0.5)))
    before = [master.detach().clone() for master in context.masters]
    anneal.pre_step(context.masters, 0.1)
    with torch.no_grad():
        for master in context.masters:
            master.sub_(0.2)
    anneal.post_step(context.masters, 0.1)
    for master, old, origin in zip(context.masters, before, start, strict=True):
        expected = old - share * 0.2 - 0.1 * (1 - share) * 2.0 * (old - origin)
        assert torch.allclose(master, expected, atol=1e-5)


def test_r_drop_is_half_the_papers_objective() -> None:
    run = training("r-drop", parts=[Dropout(0.3), RDrop(4.0)])
    with run.network.mode(packing=True, training=True):
        update = run._lay_out([0, 1, 2])
        (batch,) = update.micro_batches
        passes = []
        for number in (0, 1):
            run.regularizers.pre_forward(0, batch, 3, number)
            passes.append(run.network.run(batch))
        p, q = (scored.log_probs(slice(None)) for scored in passes)
        kl = ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)) / 2
        paper = (passes[0].nll() + passes[1].nll() + 4.0 * kl).mean()
        seen: list[torch.Tensor] = []
        run.backward = lambda loss: seen.append(loss.detach())
        run._micro_batch(batch, None, update.targets, update.targets)
    assert float(seen[0]) == pytest.approx(float(paper.detach()) / 2, rel=1e-5)
    run.close()


def test_kl_to_base_is_zero_at_the_base_and_grows_away_from_it() -> None:
    from peft import LoraConfig

    from foretune.methods.attachment import PeftAttachment
    from tests.training.test_loop import TRAITS

    model = tiny("llama")
    fresh = PeftAttachment(model, LoraConfig(r=2, target_modules="all-linear"), TRAITS, seed=0)
    run = training("kl-to-base", parts=[KlToBase(1.0)])
    trained(run, 1)
    assert run.regularizers.report()["kl-to-base"]["last_divergence"] > 0.01
    from foretune.training.forward import Network

    network = Network(fresh.model, "causal")
    update = lay_out(run.rows, [0, 1], kind="causal", limit_tokens=999, packing=False)
    with torch.no_grad(), network.mode(packing=False, training=False):
        scored = network.run(update.micro_batches[0])
        with fresh.disabled():
            base = network.run(update.micro_batches[0])
    assert float(scored.divergence_from(base.hidden).abs().max()) < 1e-6


def test_kept_states_of_the_base_are_asked_for_once_a_row() -> None:
    kept, fresh = KlToBase(1.0), KlToBase(1.0, cache_mib=0)
    runs = [training("kl-to-base", parts=[part]) for part in (kept, fresh)]
    weights = [trained(run) for run in runs]
    assert kept.report()["base_passes"] == 12 and kept.report()["cached_mib"] > 0
    assert fresh.report()["base_passes"] == 6 and fresh.report()["cached_mib"] == 0
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(*weights, strict=True))


def test_flat_lora_draws_noise_of_the_papers_size_and_the_same_one_on_the_way_back() -> None:
    run = training("flat-lora", parts=[])
    flat = FlatLora(0.5)
    flat.setup(context_of(run))
    (batch,) = run._lay_out([0]).micro_batches
    flat.pre_forward(5, batch, torch_generator(0, "x"))  # half of ten steps: f = ½
    pair = flat._pairs[3]
    base: Any = pair.base
    merged = base.weight + pair.scale * pair.up @ pair.down
    expected = 0.5 * 0.5 / math.sqrt(merged.shape[1]) * merged.norm(dim=1)
    base.train()
    x = torch.eye(base.weight.shape[1], requires_grad=True)
    passed = base(x)  # the weight as it is used, transposed
    noise = passed.T - base.weight
    assert float((noise.detach().pow(2).mean(1).sqrt() / expected.detach()).mean()) == pytest.approx(1.0, abs=0.1)
    flat.pre_forward(5, batch, torch_generator(0, "x", 1))  # another pass of the same update
    assert torch.equal(base(x), passed)
    back = torch.randn(passed.shape)
    (gradient,) = torch.autograd.grad((passed * back).sum(), x)
    assert torch.allclose(gradient, back @ passed.detach().T, atol=1e-5)
    base.eval()
    assert torch.equal(base(x), torch.nn.functional.linear(x, base.weight))
    base.train()
    flat.end_forward()
    flat.pre_forward(0, batch, torch_generator(0, "x"))
    assert torch.equal(base(x), torch.nn.functional.linear(x, base.weight)), "f = 0 at the start"
    flat.teardown()


def test_noise_on_weights_is_normal_and_its_own_for_every_seed() -> None:
    spread = torch.full((300,), 2.0)
    one, again, other = (noisy(torch.ones(300, 401), spread, seed) - 1 for seed in (1, 1, 2))
    assert torch.equal(one, again)
    shares = [(0.6745, 0.5), (1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)]
    for size, share in shares:
        assert float((one.abs() <= 2.0 * size).float().mean()) == pytest.approx(share, abs=5e-3)
    assert float(one.mean()) == pytest.approx(0.0, abs=0.02) and float(one.std()) == pytest.approx(2.0, rel=0.01)
    assert float((one * other).mean()) / 4 == pytest.approx(0.0, abs=0.012)
    neighbours = [(one[:, 1:] * one[:, :-1]).mean(), (one[1:] * one[:-1]).mean()]
    assert all(abs(float(value)) / 4 < 0.012 for value in neighbours)


def test_smarts_proximal_step_is_the_divergence_from_an_average_that_follows_the_weights() -> None:
    run = training("smart", parts=[])
    context = context_of(run)
    smart = Smart(2.0, radius=1e-8, proximal=3.0)  # next to no adversary
    smart.setup(context)
    (batch,) = run._lay_out([0, 1]).micro_batches
    start = [master.detach().clone() for master in context.masters]

    def term() -> tuple[float, torch.Tensor]:
        smart.prepare(batch)
        assert all(torch.equal(a, b) for a, b in zip(context.masters, moved, strict=True)), "weights are put back"
        smart.pre_forward(0, batch, torch_generator(0, "x"))
        with run.network.mode(packing=batch.layout is not None, training=True):
            own = run.network.run(batch)
            found = smart.loss(own, lambda fresh=True: run.network.run(batch), 10)
        smart.end_forward()
        assert found is not None
        return float(found.value().detach()), own.log_probs(slice(None)).detach()

    moved = start
    value, before = term()
    assert value == pytest.approx(0.0, abs=1e-6), "the average begins where the weights do"
    with torch.no_grad():
        for number, master in enumerate(context.masters):
            master.add_(torch.randn(master.shape, generator=torch_generator(number, "moved")), alpha=0.1)
    moved = [master.detach().clone() for master in context.masters]
    value, after = term()
    expected = ((after.exp() - before.exp()) * (after - before)).sum() / 2
    assert value == pytest.approx(2.0 * 3.0 * float(expected) / 10, rel=1e-3) and float(expected) > 0.01
    smart.post_step(context.masters, 0.1)  # step 0 of 10: the first tenth
    averages = smart.state_dict().values()
    for average, origin, now in zip(averages, start, moved, strict=True):
        assert torch.allclose(average, 0.99 * origin + 0.01 * now, atol=1e-6)


def test_smarts_proximal_step_is_refused_where_the_head_is_trained() -> None:
    run = training("l2-sp full", parts=[])
    assert "smart.proximal=0" in Smart().check(context_of(run)).refusal
    assert not Smart(proximal=0.0).check(context_of(run)).refusal


def test_mixout_mixes_by_input_neuron_and_keeps_the_mean() -> None:
    run = training("mixout", parts=[])
    mixout = Mixout(0.25)
    mixout.setup(context_of(run))
    layer = mixout._layers[0]
    origin = layer.weight.detach().clone()
    (batch,) = run._lay_out([0]).micro_batches
    with torch.no_grad():
        layer.weight.add_(1.0)
    layer.train()
    x = torch.eye(layer.weight.shape[1])
    mean = torch.zeros_like(origin)
    for step in range(400):
        mixout.pre_forward(step, batch, torch_generator(step, "x"))
        effective = layer(x).T
        mask = mixout._masks[0][0] * 0.75
        assert set(mask.tolist()) <= {0.0, 1.0}
        expected = ((1 - mask) * origin + mask * layer.weight - 0.25 * origin) / 0.75
        assert torch.allclose(effective, expected, atol=1e-5)
        mean += effective.detach() / 400
    assert float((mean - layer.weight).abs().mean()) < 0.06
    layer.eval()
    assert torch.allclose(layer(x).T, layer.weight, atol=1e-6)
    mixout.teardown()


def test_extrapolation_takes_the_gradient_a_step_ahead_and_comes_back() -> None:
    run = training("extrapolation", parts=[])
    ahead = Extrapolation(0.5)
    context = context_of(run)
    ahead.setup(context)
    for number, master in enumerate(context.masters):
        master.grad = torch.full_like(master, float(number % 3))
    ahead.pre_step(context.masters, 0.1)
    before = [weight.detach().clone() for weight in context.weights]
    (batch,) = run._lay_out([0]).micro_batches
    ahead.pre_forward(1, batch, torch_generator(0))
    ahead.pre_forward(1, batch, torch_generator(0))
    for number, (weight, old) in enumerate(zip(context.weights, before, strict=True)):
        assert torch.allclose(weight, old - 0.5 * (number % 3))
    ahead.end_forward()
    assert all(torch.equal(weight, old) for weight, old in zip(context.weights, before, strict=True))


def test_fresh_blocks_are_the_last_and_differ_by_seed() -> None:
    model = tiny("bert", num_hidden_layers=3)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    from foretune.training.optimizer import MasterWeights, OptimizerSettings

    attachment = attach(model, "reinit-top")
    masters = MasterWeights(attachment.parameter_groups(1e-3), OptimizerSettings(1e-3, 3))
    context = Context(model, attachment, 7, 3, kind="encoder", names=tuple(masters.names),
                      masters=tuple(masters.masters), weights=tuple(masters.weights))  # fmt: skip
    fresh = ReinitTop(1)
    assert not fresh.check(context).refusal
    fresh.setup(context)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all("layer.2." in name or "pooler" in name for name in changed)
    assert any("pooler.dense.weight" in name for name in changed) and any("layer.2.output" in name for name in changed)
    first = model.bert.encoder.layer[2].output.dense.weight.detach().clone()
    assert float(first.std()) == pytest.approx(model.config.initializer_range, rel=0.1)
    ReinitTop(1).setup(Context(model, attachment, 8, 3, kind="encoder"))
    assert not torch.equal(model.bert.encoder.layer[2].output.dense.weight, first)
    attachment.detach()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_token_weights_follow_the_base_and_the_loss_is_their_mean() -> None:
    weighting = TokenWeighting(2.0)
    run = training("token-weighting", parts=[weighting])
    with run.network.mode(packing=True, training=True):
        update = run._lay_out([0, 1, 2])
        (batch,) = update.micro_batches
        with torch.no_grad(), run.attachment.disabled(), run.network.mode(packing=True, training=False):
            base = run.network.run(batch).nll()
        (weights,), total = run.regularizers.prepare(update, torch.device("cpu"))
        assert weights is not None
        assert torch.allclose(weights, (base + 1e-3) ** 2, rtol=1e-4)
        assert total == pytest.approx(float(weights.sum()), rel=1e-5)
        losses = run.network.run(batch).nll()
        seen: list[torch.Tensor] = []
        run.backward = lambda loss: seen.append(loss.detach())
        run._micro_batch(batch, weights, total, update.targets)
    assert float(seen[0]) == pytest.approx(float((weights * losses).sum() / weights.sum()), rel=1e-5)
    run.close()


def test_a_lesson_prefers_tokens_whose_step_helps_the_other_rows() -> None:
    """The measured inner products are those of the gradients themselves."""
    weighting = TokenWeighting(1.0, by="learned", every=1, rate=1.0)
    run = training("token-weighting learned", parts=[weighting])
    context = weighting._context
    assert context is not None
    with run.network.mode(packing=True, training=True):
        update = run._lay_out([0, 1, 2])
        run.regularizers.prepare(update, torch.device("cpu"))
        slope = weighting._slope(context, [5, 6, 7])
        norm = torch.linalg.vector_norm(torch.stack([part.norm() for part in slope]))
        direction = [part / norm for part in slope]
        measured = weighting._inner_products(context, direction)
        (batch,) = update.micro_batches
        exact = []
        for token in range(len(batch.labels)):
            loss = context.quiet_pass(batch).nll()[token]
            gradients = torch.autograd.grad(loss, list(context.weights))
            exact.append(sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True)))
    wanted = torch.tensor(exact)
    assert float(torch.corrcoef(torch.stack([measured, wanted]))[0, 1]) > 0.98
    run.close()
