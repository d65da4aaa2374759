"""Every registered regularizer: it acts, does not depend on the layout, resumes bit for bit, and leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from foretune.data.encode import EncodedRow
from foretune.data.update import Epochs
from foretune.methods.attachment import PeftAttachment
from foretune.methods.full import FullAttachment
from foretune.regularization.base import Regularizer
from foretune.regularization.child_tuning import ChildTuning
from foretune.regularization.dropout import Dropout
from foretune.regularization.extrapolation import Extrapolation
from foretune.regularization.flat_lora import FlatLora
from foretune.regularization.gaussian_dropout import GaussianDropout
from foretune.regularization.guided_dropout import GuidedDropout
from foretune.regularization.kl_to_base import KlToBase
from foretune.regularization.l2_sp import L2Sp
from foretune.regularization.mixout import Mixout
from foretune.regularization.neftune import Neftune
from foretune.regularization.r_drop import RDrop
from foretune.regularization.recadam import Recadam
from foretune.regularization.registry import REGULARIZERS
from foretune.regularization.reinit_top import ReinitTop
from foretune.regularization.smart import Smart
from foretune.regularization.tfew import Tfew
from foretune.regularization.token_weighting import TokenWeighting
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests.regularization.models import KINDS, assert_same, fingerprint, tiny
from tests.regularization.test_rates import file_of
from tests.training.rows import random_rows
from tests.training.test_loop import TRAITS

Make = Callable[[], list[Regularizer]]
LORA: dict[str, Make] = {
    "guided-dropout": lambda: [GuidedDropout(0.5, 0.1, rates=file_of(tiny("llama")))],
    "dropout": lambda: [Dropout(0.3)],
    "gaussian-dropout": lambda: [GaussianDropout(0.3)],
    "l2-sp": lambda: [L2Sp(20.0)],
    "r-drop": lambda: [Dropout(0.3), RDrop(5.0)],
    "kl-to-base": lambda: [KlToBase(5.0)],
    "kl-to-base without cache": lambda: [KlToBase(5.0, cache_mib=0)],
    "flat-lora": lambda: [FlatLora(0.5)],
    "neftune": lambda: [Neftune(5.0)],
    "child-tuning": lambda: [ChildTuning(0.3)],
    "smart": lambda: [Smart(1.0, radius=0.5)],
    "smart without proximal step": lambda: [Smart(1.0, radius=0.5, proximal=0.0)],
    "recadam": lambda: [Recadam(50.0)],
    "extrapolation": lambda: [Extrapolation(1.0)],
    "tfew": lambda: [Tfew(1.0, choices=1)],
    "token-weighting": lambda: [TokenWeighting(1.0)],
    "token-weighting learned": lambda: [TokenWeighting(1.0, by="learned", every=1, rate=3.0)],
    "all that go together": lambda: [Dropout(0.2), Neftune(5.0), FlatLora(0.3), RDrop(1.0), KlToBase(1.0), L2Sp(5.0)],
}
FULL: dict[str, Make] = {
    "l2-sp full": lambda: [L2Sp(20.0)],
    "child-tuning by fisher": lambda: [ChildTuning(0.3, by="fisher", fisher_rows=4)],
    "reinit-top": lambda: [ReinitTop(1)],
    "mixout": lambda: [Mixout(0.5)],
    "recadam full": lambda: [Recadam(50.0)],
}
EVERY = {**LORA, **FULL}
CAUSAL = ("tfew", "token-weighting", "kl-to-base", "all that go together")
ENCODER: dict[str, Make] = {
    **{name: make for name, make in EVERY.items() if not name.startswith(CAUSAL)},
    "guided-dropout": lambda: [GuidedDropout(0.5, 0.1, rates=file_of(tiny("bert")))],
}
STEPS = 6
ROWS = [replace(row, label=i % 3) for i, row in enumerate(random_rows(12))]


def attach(model: Any, name: str) -> Any:
    if name in FULL:
        return FullAttachment(model)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return PeftAttachment(model, config, TRAITS, seed=1)


SILENT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "bart": {"dropout": 0.0},
    "t5": {"dropout_rate": 0.0},
}


def training(
    name: str, *, family: str = "llama", seed: int = 3, parts: list[Regularizer] | None = None, **fields: Any
) -> Training:
    silent = SILENT.get(family, {})
    model = tiny(family, **silent, **({"num_labels": 3} if family == "bert" else {"dtype": "float32"}))
    attachment = attach(model, name)
    settings = LoopSettings(OptimizerSettings(1e-2, STEPS, warmup_share=0.0), seed=seed, **fields)
    made = (ENCODER if family == "bert" else EVERY)[name]() if parts is None else parts
    kind = KINDS.get(family, "causal")
    rows = [two_sided(row) for row in ROWS] if kind == "seq2seq" else ROWS
    return Training(Network(attachment.model, kind), attachment, rows, Epochs(12, 4, 3), settings, made)  # type: ignore[arg-type]


def two_sided(row: EncodedRow) -> EncodedRow:
    """The prompt for the encoder, the answer for the decoder."""
    prompt, answer = row.ids[: row.prompt_length], row.ids[row.prompt_length :]
    return replace(row, ids=prompt, target_mask=np.zeros(len(prompt), dtype=bool), decoder_ids=answer)


def trained(run: Training, steps: int = STEPS) -> list[torch.Tensor]:
    assert run.run(steps) == "ok"
    return [master.detach().clone() for master in run.masters.masters]


def test_every_registered_regularizer_is_among_these() -> None:
    elsewhere = {"prune-rewind", "rank-schedule"}  # for one method each: tests of their own have their points
    assert set(REGULARIZERS) - elsewhere <= {part.name for make in EVERY.values() for part in make()}


@pytest.mark.parametrize("name", EVERY)
def test_it_acts_and_reports_and_the_same_seed_repeats_it(name: str) -> None:
    run = training(name)
    weights = trained(run)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)
    report = run.regularizers.report()
    assert report and all(math.isfinite(value) for part in report.values() for value in part.values())
    run.close()
    plain = trained(training(name, parts=[]))
    moved = max(float((a - b).abs().max()) for a, b in zip(weights, plain, strict=True))
    assert moved > 1e-3
    again = training(name)
    assert all(torch.equal(a, b) for a, b in zip(weights, trained(again), strict=True))
    again.close()


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_does_not_depend_on_the_layout(name: str) -> None:
    same_gradient_in_every_layout(name, "llama")


@pytest.mark.parametrize("name", ENCODER)
def test_nor_does_an_encoder_s(name: str) -> None:
    # smart climbs along the gradient of a divergence near 0: two padded layouts differ by 4e-5 in float32
    same_gradient_in_every_layout(name, "bert", 1e-4 if name.startswith("smart") else 1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("name", ["neftune", "smart"])
def test_what_moves_input_embeddings_moves_those_of_an_encoder_with_a_decoder(name: str, family: str) -> None:
    found = []
    for fields in ({}, {"micro_batch_tokens": 21}, {"parts": []}):
        run = training(name, family=family, decoder_start_id=2, **fields)  # type: ignore[arg-type]
        found.append(torch.cat([weight.flatten() for weight in trained(run, 2)]))
        run.close()
    whole, split, plain = found
    assert float((whole - plain).abs().max()) > 1e-3
    assert torch.allclose(whole, split, atol=1e-3)


def same_gradient_in_every_layout(name: str, family: str, tolerance: float = 1e-5) -> None:
    """The same four rows in one micro-batch, in several, and padded instead of packed, in the middle of a run."""
    start = training(name, family=family, micro_batch_tokens=1000)
    trained(start, 2)
    tensors, facts = start.state()
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    start.close()
    found = []
    for limit, packing in ((1000, True), (21, True), (42, False)):
        run = training(name, family=family, micro_batch_tokens=limit, packing=packing)
        run.load_state(2, tensors, {**facts, "micro_batch_tokens": limit})
        with run.network.mode(packing=run.packing, training=True):
            update, loss = run._gradients([0, 1, 2, 3])
        run.regularizers.pre_step(run.masters.masters, 1e-3)
        assert (len(update.micro_batches) > 1) == (limit < 1000) and run.packing == packing
        shared = {batch.layout.head for batch in update.micro_batches if batch.layout is not None}
        assert limit < 1000 or any(shared) == (run.share_head and family == "llama")
        found.append((loss, torch.cat([master.grad.flatten() for master in run.masters.masters])))  # type: ignore[union-attr]
        run.close()
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert torch.allclose(gradient, found[0][1], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_resumed_equals_uninterrupted_bit_for_bit(name: str) -> None:
    whole = training(name)
    weights = trained(whole)
    whole.close()
    first = training(name)
    trained(first, 3)
    tensors, facts = first.state()
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    first.close()
    second = training(name)
    second.load_state(3, tensors, facts)
    assert all(torch.equal(a, b) for a, b in zip(weights, trained(second), strict=True))
    second.close()


@pytest.mark.parametrize("name", EVERY)
def test_teardown_leaves_trained_weights_and_nothing_else(name: str) -> None:
    model = tiny("llama")
    attachment = attach(model, name)
    settings = LoopSettings(OptimizerSettings(1e-2, STEPS, warmup_share=0.0), seed=3)
    network = Network(attachment.model, "causal")
    assert network.packs
    before = fingerprint(attachment.model)
    run = Training(network, attachment, ROWS, Epochs(12, 4, 3), settings, EVERY[name]())
    weights = trained(run, 3)
    run.close()
    run.close()
    after = fingerprint(attachment.model)
    learnt = {id(weight) for weight in run.masters.weights}
    for key, tensor in attachment.model.named_parameters():
        if id(tensor) in learnt:
            before["tensors"][key] = after["tensors"][key]
    if attachment.model.config.tie_word_embeddings:
        before["tensors"]["lm_head.weight"] = after["tensors"]["model.embed_tokens.weight"]
    assert_same(before, after)
    assert all(torch.equal(a, b.detach()) for a, b in zip(weights, run.masters.masters, strict=True))
    assert network.training_attention is None


IDENTITIES: dict[str, Make] = {
    "r-drop": lambda: [Dropout(0.0), RDrop(3.0)],
    "l2-sp": lambda: [L2Sp(0.0)],
    "flat-lora": lambda: [FlatLora(0.0)],
    "kl-to-base": lambda: [KlToBase(0.0)],
    "child-tuning": lambda: [ChildTuning(1.0)],
    "smart": lambda: [Smart(0.0)],
    "extrapolation": lambda: [Extrapolation(0.0)],
    "token-weighting": lambda: [TokenWeighting(0.0)],
    "mixout": lambda: [Mixout(0.0)],
    "dropout": lambda: [Dropout(0.0)],
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_at_strength_0_nothing_changes(name: str) -> None:
    run = training(name, parts=IDENTITIES[name]())
    plain = training(name, parts=[])
    plain.share_head = run.share_head  # where activations differ by row, every row computes the head itself
    expected = trained(plain)
    for a, b in zip(trained(run), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    run.close()


def test_noise_is_another_for_another_seed_and_each_update() -> None:
    for name in ("dropout", "flat-lora", "neftune", "child-tuning"):
        one, other = (trained(training(name, seed=seed), 3) for seed in (3, 4))
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True)), name


def test_an_update_that_fails_for_memory_is_tried_again_with_the_same_result() -> None:
    for name in ("extrapolation", "flat-lora", "kl-to-base without cache", "token-weighting learned"):
        expected = trained(training(name), 3)
        run = training(name)
        real = run.network.run

        def small(batch: Any, real: Any = real) -> Any:
            if batch.ids.numel() > 29:  # the first update already, single rows not
                raise torch.OutOfMemoryError("simulated")
            return real(batch)

        run.network.run = small  # type: ignore[method-assign]
        for a, b in zip(trained(run, 3), expected, strict=True):
            assert torch.allclose(a, b, atol=2e-4), name
        run.close()
