"""Places of dropout: found by role and name in every family, edited and put back bit for bit, noisy by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foretune.errors import ModelError
from foretune.regularization.places.edit import Edit, NoisyDropout
from foretune.regularization.places.find import KINDS, find_sites
from foretune.seeding import torch_generator
from tests.regularization.models import FAMILIES, assert_same, fingerprint, tiny


def test_bert_base_has_the_papers_37_groups() -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    with torch.device("meta"):
        models = [BertForSequenceClassification(BertConfig()), BertForMaskedLM(BertConfig())]
    first, second = (find_sites(model) for model in models)
    assert first == second  # the head's own dropout is not among them
    assert len(first) == 37 and {site.how for site in first} == {"module"}
    assert [len(site.tensors) for site in first] == [5, *([6, 4, 4] * 12)]
    assert [site.kind for site in first[:4]] == list(KINDS)
    assert first[0].tensors[0] == "embeddings.word_embeddings.weight"
    assert not any("intermediate" in name or "pooler" in name for site in first for name in site.tensors)
    by_index = [i for i, (_, module) in enumerate(models[0].named_modules()) if isinstance(module, torch.nn.Dropout)]
    assert len(by_index) == 38  # what code that counts modules would have to hit


def test_a_model_of_minilms_shape_has_19_places() -> None:
    assert len(find_sites(tiny("bert", num_hidden_layers=6))) == 19


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_its_three_places(family: str) -> None:
    sites = find_sites(tiny(family))
    two_sided = family in ("bart", "t5")
    assert len(sites) == (2 * (1 + 6) + 4 if two_sided else 7)  # cross-attention adds two places to a decoder layer
    assert len({site.name for site in sites}) == len(sites)
    assert all(site.tensors for site in sites)
    names = {name for name, _ in tiny(family).base_model.named_parameters(remove_duplicate=False)}
    assert {name for site in sites for name in site.tensors} <= names


def test_a_dropout_that_is_not_understood_is_an_error() -> None:
    model = tiny("bert")
    model.bert.encoder.layer[0].odd = torch.nn.Sequential(torch.nn.Dropout(0.1))
    with pytest.raises(ModelError, match="follows nothing that is known"):
        find_sites(model)
    with pytest.raises(ModelError, match="no layers"):
        find_sites(torch.nn.Linear(3, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_reach_every_place_and_are_taken_back_bit_for_bit(family: str) -> None:
    model = tiny(family)
    sites = find_sites(model)
    before = fingerprint(model)
    rates = {site.name: (number + 1) / 100 for number, site in enumerate(sites)}
    edit = Edit(model, sites, rates, "bernoulli")
    assert edit.touched == rates
    body = model.base_model
    for site in sites:
        owner = body.get_submodule(site.owner)
        if site.how == "module":
            assert isinstance(owner, NoisyDropout) and owner.p == rates[site.name]
        elif site.how == "float":
            assert getattr(owner, site.attribute) == rates[site.name]
        else:
            assert len(owner._forward_hooks) == 1
    edit.restore()
    assert_same(before, fingerprint(model))


def test_every_single_place_changes_the_output_in_training_and_none_in_evaluation() -> None:
    """A place that is counted and has no effect would be dropout in name only."""
    from foretune.data.encode import EncodedRow
    from foretune.training.forward import Network
    from tests.training.rows import random_rows

    for family, packing in (("llama", True), ("llama", False), ("bert", False)):
        model = tiny(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        sites = find_sites(model)
        rows = random_rows(3)
        if family == "bert":
            rows = [EncodedRow(r.ids, r.target_mask & False, len(r.ids), 1, label=1) for r in rows]
        network = Network(model, "causal" if family == "llama" else "encoder")
        plain = _run(network, rows, packing, training=True)
        for chosen in sites:
            rates = {site.name: 0.4 if site is chosen else 0.0 for site in sites}
            edit = Edit(model, sites, rates, "bernoulli")
            network.training_attention = "foretune_noisy"
            noisy = _run(network, rows, packing, training=True, edit=edit)
            again = _run(network, rows, packing, training=True, edit=edit)
            quiet = _run(network, rows, packing, training=False, edit=edit)
            edit.restore()
            network.training_attention = None
            assert (noisy - plain).abs().max() > 1e-3, chosen.name
            assert torch.equal(noisy, again)
            assert torch.allclose(quiet, plain, atol=1e-5)


def _run(network: Any, rows: Any, packing: bool, *, training: bool, edit: Edit | None = None) -> torch.Tensor:
    from foretune.data.batches import lay_out

    chosen = range(len(rows))
    update = lay_out(rows, chosen, kind=network.kind, limit_tokens=999, packing=packing, share_head=False)
    (batch,) = update.micro_batches
    if edit is not None:
        edit.rows.set(batch, torch_generator(3, "noise"))
    with torch.no_grad(), network.mode(packing=packing, training=training):
        return network.run(batch).hidden.clone()


def test_noise_has_the_mean_and_variance_that_its_rate_says() -> None:
    from foretune.regularization.row_noise import _draw

    for noise in ("bernoulli", "gaussian"):
        drawn = torch.empty(400, 500)
        _draw(drawn, 0.2, noise, torch.Generator().manual_seed(0))
        assert float(drawn.mean()) == pytest.approx(1.0, abs=0.01)
        assert float(drawn.var()) == pytest.approx(0.2 / 0.8, abs=0.01)  # the variance, not its square


def test_rates_of_another_architecture_are_refused() -> None:
    sites = find_sites(tiny("bert"))
    with pytest.raises(ModelError, match="another architecture"):
        Edit(tiny("llama"), sites, {site.name: 0.1 for site in sites}, "bernoulli")
