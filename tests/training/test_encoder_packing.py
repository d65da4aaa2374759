"""Texts of an encoder in one stream: the losses of separate texts, no look at the neighbour, and trials that tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foretune.catalogue.methods import resolve
from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.methods.contract.checks import disturb
from foretune.methods.registry import get
from foretune.regularization.places.attention import IMPLEMENTATION, agrees, noisy_attention
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.prefix import blocks_of
from tests.training.rows import random_rows

ROBERTA = "roberta, whose positions start behind the padding's"


def encoders() -> dict[str, Any]:
    from transformers import (
        AlbertConfig,
        AlbertForSequenceClassification,
        BertConfig,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        ElectraConfig,
        ElectraForSequenceClassification,
        ModernBertConfig,
        ModernBertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    own = {"vocab_size": 97, "initializer_range": 0.2, "num_labels": 3, "pad_token_id": 0}
    small = {**own, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    modern = {**small, **ids, "local_attention": 6}
    distil = {**own, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    return {
        "bert": (BertForSequenceClassification, BertConfig(**small)),
        ROBERTA: (RobertaForSequenceClassification, RobertaConfig(**small)),
        "electra": (ElectraForSequenceClassification, ElectraConfig(**small, embedding_size=16)),
        "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(**distil)),
        "modernbert with a window": (ModernBertForSequenceClassification, ModernBertConfig(**modern)),
        "modernbert that pools by a mask": (
            ModernBertForSequenceClassification, ModernBertConfig(**modern, classifier_pooling="mean")
        ),
        "albert, one block over and over": (AlbertForSequenceClassification, AlbertConfig(**small, embedding_size=16)),
    }  # fmt: skip


PACKED_ENCODERS = {
    "bert": True,
    ROBERTA: True,
    "electra": True,
    "distilbert": True,
    "modernbert with a window": True,
    "modernbert that pools by a mask": False,
    "albert, one block over and over": False,
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", PACKED_ENCODERS)
def test_packed_texts_of_an_encoder_give_the_loss_and_gradient_of_separate_ones(name: str, checkpointing: bool) -> None:
    kind, config = encoders()[name]
    torch.manual_seed(0)
    model = kind(config)
    for module in model.modules():  # noise would differ between layouts
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network = Network(model, "encoder")
    assert network.packs is PACKED_ENCODERS[name]
    if not network.packs:
        return
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = [
        EncodedRow(row.ids.clip(3), np.zeros(len(row.ids), bool), 0, 0, label=i % 3, pair_start=6 if i % 2 else None)
        for i, row in enumerate(random_rows(7))
    ]
    if name not in ("bert", "electra"):  # the others do not tell the two texts of a pair apart
        rows = [replace(row, pair_start=None) for row in rows]
    found = []
    for packing, limit in ((False, 1), (True, 1000), (True, 45)):
        model.zero_grad()
        losses = np.zeros(len(rows))
        with network.mode(packing=packing, training=True):
            update = lay_out(rows, [3, 1, 0, 2, 6, 5, 4], kind="encoder", limit_tokens=limit, packing=packing)
            for batch in update.micro_batches:
                assert (batch.layout is not None) == packing and batch.real_tokens <= max(limit, 20)
                scored = network.run(batch)
                loss = scored.nll()
                np.add.at(losses, scored.row.numpy(), loss.detach().numpy())
                loss.sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        found.append((len(update.micro_batches), losses, gradient))
    assert [count for count, _, _ in found[:2]] == [7, 1] and found[2][0] > 2
    for _, losses, gradient in found[1:]:
        assert losses == pytest.approx(found[0][1], rel=1e-4)
        torch.testing.assert_close(gradient, found[0][2], rtol=1e-3, atol=2e-5)
    assert not blocks_of(model)[-1]._forward_hooks


@pytest.mark.parametrize("name", PACKED_ENCODERS)
def test_what_one_number_of_a_fresh_head_can_be_computed_by_is_no_matter_of_luck(name: str) -> None:
    """Three scores of a fresh head lie closer together than bfloat16 tells numbers apart."""

    def halved(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
        attended, weights = noisy_attention(module, query, key, value, attention_mask, **given)
        return attended / 2, weights

    ALL_ATTENTION_FUNCTIONS.register("halved", halved)
    ALL_MASK_ATTENTION_FUNCTIONS.register("halved", ALL_MASK_ATTENTION_FUNCTIONS[IMPLEMENTATION])
    for seed in range(8):
        kind, config = encoders()[name]
        config.num_labels = 1
        torch.manual_seed(seed)
        network = Network(kind(config).to(torch.bfloat16), "encoder")
        assert network.packs is PACKED_ENCODERS[name]
        attends = [agrees(network.model, network, given) for given in (IMPLEMENTATION, "halved")]
        assert attends == [True, False]


@pytest.mark.parametrize("name", ["bert", ROBERTA])
def test_edits_of_first_positions_are_the_same_in_a_stream(name: str) -> None:
    kind, config = encoders()[name]
    torch.manual_seed(0)
    model = kind(config).eval().requires_grad_(False)
    chosen = resolve({"method": "loreft", "loreft.positions": "first:2"})
    attachment: Any = get("loreft").attach(model, chosen, generator=torch_generator(0, "init"))
    disturb(attachment)
    network, scores = Network(attachment.model, "encoder"), []
    rows = [replace(row, ids=row.ids.clip(3), label=0) for row in random_rows(4)]
    for packing in (True, False):
        batch = lay_out(rows, range(4), kind="encoder", limit_tokens=512, packing=packing).micro_batches[0]
        with torch.no_grad(), network.mode(packing=packing, training=False):
            scores.append(network.scores(batch))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_an_encoder_s_attention_never_sees_the_neighbouring_text() -> None:
    """Other neighbours in the stream change nothing; without the layout they do."""
    kind, config = encoders()["bert"]
    torch.manual_seed(0)
    network = Network(kind(config).eval(), "encoder")
    rows = [EncodedRow(row.ids, np.zeros(len(row.ids), bool), 0, 0, label=0) for row in random_rows(5)]
    scores = []
    for chosen in ([0, 1, 2], [3, 0, 4]):
        batch = lay_out(rows, chosen, kind="encoder", limit_tokens=1000, packing=True).micro_batches[0]
        with torch.no_grad(), network.mode(packing=True, training=False):
            scores.append(network.scores(batch)[batch.rows.index(0)])
    torch.testing.assert_close(scores[0], scores[1])
    with torch.no_grad(), network.mode(packing=False, training=False):
        leaking = network.model(input_ids=batch.ids, position_ids=batch.positions).logits
    assert not torch.allclose(leaking[0], scores[1], atol=0.05)
