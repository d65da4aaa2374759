"""Fisher information: closed form, norms = per-sample gradients in every family, all samples, any batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foretune.errors import ModelError
from foretune.regularization.fisher.norms import GradientNorms, squared_norms
from foretune.regularization.fisher.per_sample import diagonal
from foretune.regularization.fisher.samples import Source
from foretune.regularization.fisher.scores import TensorMeans, place_scores, tensor_means
from foretune.regularization.places.find import find_sites
from tests.regularization.models import FAMILIES, KINDS, tiny
from tests.tiny import tokenizer

LENGTHS = (9, 7, 9, 4, 8)


class Logistic(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(x).squeeze(-1)


def test_logistic_regression_has_its_closed_form() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(37, 5, dtype=torch.float64), (torch.rand(37) > 0.4).double()
    model = Logistic(5).double()
    error = torch.sigmoid(model(x)) - y
    expected_weight = (error**2)[:, None].mul(x**2).mean(0)
    expected_bias = (error**2).mean()

    def loss(i: slice) -> Any:
        return lambda m: torch.nn.functional.binary_cross_entropy_with_logits(m(x[i]), y[i], reduction="none")

    plain = diagonal(model, [loss(slice(i, i + 1)) for i in range(37)])
    assert torch.allclose(plain["score.weight"][0], expected_weight, atol=1e-6)
    assert torch.allclose(plain["score.bias"], expected_bias, atol=1e-6)

    def connected(m: Any) -> torch.Tensor:
        logits = m(x.clone().requires_grad_(True))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")

    norms = squared_norms(GradientNorms(model), connected, 37)
    assert float(norms["score.weight"].mean()) / 5 == pytest.approx(float(expected_weight.mean().detach()), abs=1e-6)
    assert float(norms["score.bias"].mean()) == pytest.approx(float(expected_bias.detach()), abs=1e-6)


def losses_of(family: str, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Per-sample mean losses of a batch of tokens; of the batch alone, whatever it is padded with."""

    def loss(model: Any) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if KINDS.get(family) == "seq2seq":
            inputs["decoder_input_ids"] = ids
        logits = model(**inputs).logits.float()
        if logits.ndim == 2:
            return -logits.log_softmax(-1)[:, 1]
        shift = 1 if family in ("llama", "gemma3", "qwen3", "gpt2") else 0
        labels, scored = ids[:, shift:], mask[:, shift:]
        nll = -logits[:, : labels.shape[1]].log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
        return (nll * scored).sum(1) / scored.sum(1)

    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_per_sample_gradients(family: str) -> None:
    model = tiny(family)
    torch.manual_seed(1)
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    ids = torch.randint(3, 97, (5, 9)) * mask
    ids[0, 3] = ids[0, 1]  # a token that occurs twice in a row
    asked = [weight.requires_grad for weight in model.parameters()]
    found = squared_norms(GradientNorms(model), losses_of(family, ids, mask), 5)
    assert [weight.requires_grad for weight in model.parameters()] == asked
    assert not any(module._forward_hooks for module in model.modules())
    single = [losses_of(family, ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    expected = diagonal(model, single)
    uncovered = {name for name in expected if "relative_attention_bias" in name}
    assert set(found) == set(expected) - uncovered
    for name in found:
        assert float(found[name].mean()) == pytest.approx(float(expected[name].sum()), rel=1e-5, abs=1e-12), name


def test_long_rows_take_the_other_way_to_the_same_norm() -> None:
    from foretune.regularization.fisher.norms import Use

    torch.manual_seed(0)
    short = Use(torch.randn(3, 40, 6), torch.randn(3, 40, 5))  # 40 · 11 > 30: the gradient itself is smaller
    expected = [float((d.T @ x).pow(2).sum()) for d, x in zip(short.output, short.input, strict=True)]
    assert short.with_itself().tolist() == pytest.approx(expected, rel=1e-5)
    assert short.inner(short).tolist() == pytest.approx(expected, rel=1e-5)


def text_source(kind: str, variant: str, context: int = 12) -> Source:
    words = tokenizer(chat=False, encoder=kind == "encoder")
    if kind == "encoder":
        words.mask_token = "[UNK]"
    special = frozenset(words.all_special_ids)
    return Source(kind, variant, words, context_tokens=context, pad_id=5, special=special)  # type: ignore[arg-type]


TEXTS = [f"What colour is the {thing} number {i}?" for i, thing in enumerate(["kite", "lamp", "fox", "green door"] * 3)]


@pytest.mark.parametrize("kind", ["causal", "encoder", "seq2seq"])
@pytest.mark.parametrize("variant", ["pre-training", "label-sampled"])
def test_all_samples_count_whatever_the_batches(kind: str, variant: str) -> None:
    if kind == "encoder":
        family = "bert-mlm" if variant == "pre-training" else "bert"
    else:
        family = "llama" if kind == "causal" else "bart"
    model = tiny(family, vocab_size=400)
    source = text_source(kind, variant)
    samples = source.of_texts(TEXTS)
    assert len(samples) > 12 or all(len(sample.ids) <= 12 for sample in samples)
    seen: list[tuple[int, int]] = []
    one = tensor_means(model, source, samples, limit_tokens=1, progress=lambda done, of: seen.append((done, of)))
    many = tensor_means(model, source, samples, limit_tokens=70)
    assert one.samples == many.samples == len(samples) == seen[-1][0] == len(seen)
    assert one.loss == pytest.approx(many.loss, rel=1e-5)
    for name, value in one.means.items():
        assert many.means[name] == pytest.approx(value, rel=2e-5, abs=1e-14), name
    left_out = tensor_means(model, source, samples[:-1], limit_tokens=70)
    assert any(left_out.means[name] != pytest.approx(value, rel=1e-4) for name, value in one.means.items())


def test_task_rows_are_scored_where_training_scores_them() -> None:
    from tests.training.rows import random_rows

    model, rows = tiny("llama"), random_rows(4)
    source = Source("causal", "task", None)
    samples = source.of_rows(rows)
    (batch,) = source.batches(samples, 999)
    losses = batch.loss(model)
    for sample, loss in zip(batch.samples, losses, strict=True):
        row = rows[sample.number]
        logits = model(torch.tensor(row.ids[None].astype("int64"))).logits[0].log_softmax(-1)
        at = row.target_mask.nonzero()[0]
        expected = -sum(logits[t - 1, row.ids[t]] for t in at) / len(at)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_groups_are_aggregated_in_three_ways() -> None:
    model = tiny("llama")
    site = next(site for site in find_sites(model) if site.kind == "attention")
    names = ["model." + name for name in site.tensors]
    found = TensorMeans(
        dict(zip(names, (1.0, 2.0, 6.0), strict=True)), dict(zip(names, (4, 2, 2), strict=True)), 1, 1, 0
    )
    (scores,) = place_scores(model, [site], found)
    assert scores == {"mean_of_means": 3.0, "parameter_mean": 20 / 8, "sum": 20.0}
    with pytest.raises(ModelError, match="no gradient reached"):
        place_scores(model, [site], TensorMeans({}, {}, 1, 1, 0))


def test_the_same_weights_and_text_are_read_from_the_cache(tmp_path: Any, monkeypatch: Any) -> None:
    from foretune.regularization.fisher import scores

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    model, source = tiny("llama", vocab_size=400), text_source("causal", "pre-training")
    samples = source.of_texts(TEXTS[:3])
    first = scores.kept_tensor_means(model, source, samples, weights="abc", limit_tokens=99)
    monkeypatch.setattr(scores, "tensor_means", None)
    assert scores.kept_tensor_means(model, source, samples, weights="abc", limit_tokens=99) == first
    with pytest.raises(TypeError):
        scores.kept_tensor_means(model, source, samples, weights="other", limit_tokens=99)


def test_a_4_bit_base_has_scores(tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from foretune.catalogue.models import ModelReference
    from foretune.models.load import load
    from tests.tiny import llama

    folder = llama(tmp_path / "model")
    source = text_source("causal", "pre-training")
    dense = load(ModelReference(str(folder), dtype="float32")).model
    packed = load(ModelReference(str(folder), dtype="float32", quantize="4bit")).model
    samples = source.of_texts(TEXTS)
    exact, rough = (tensor_means(model, source, samples, limit_tokens=99) for model in (dense, packed))
    assert set(exact.means) == set(rough.means) and exact.sizes == rough.sizes
    ratios = [rough.means[name] / value for name, value in exact.means.items() if value > 0]
    assert all(0.2 < ratio < 5 for ratio in ratios)  # the same model up to the rounding of its weights
