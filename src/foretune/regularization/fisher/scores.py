"""From samples to the scores of a model's places: means over tensors, over groups, kept by the model's hash.

Means over all n samples, whatever the batches. From tensors to a group there are three ways, and the ranking depends on
them, so a rates file holds all: ``mean_of_means``, the unweighted mean of the tensors' means (Sharma et al. 2024),
``parameter_mean``, the mean over all elements, and ``sum``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.errors import ModelError
from foretune.files import cache_folder, fingerprint, read_json, write_json
from foretune.regularization.fisher.norms import GradientNorms, squared_norms
from foretune.regularization.fisher.samples import Batch, Sample, Source
from foretune.regularization.places.find import Site, backbone

Progress = Callable[[int, int], None]
"""Told (samples done, samples in all)"""


@dataclass(frozen=True)
class TensorMeans:
    """The mean of the diagonal over every parameter tensor."""

    means: Mapping[str, float]
    sizes: Mapping[str, int]
    samples: int
    tokens: int
    loss: float
    """Mean loss over the samples"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``TensorMeans(**value)`` reads it back."""
        return {**vars(self), "means": dict(self.means), "sizes": dict(self.sizes)}


def tensor_means(
    model: Any, source: Source, samples: Sequence[Sample], *, limit_tokens: int, progress: Progress | None = None
) -> TensorMeans:
    """The diagonal's mean over every tensor, from all ``samples``; the model is put into evaluation mode meanwhile."""
    norms = GradientNorms(model)
    totals: dict[str, float] = {}
    done = 0
    total_loss = 0.0
    training = model.training
    model.eval()
    try:
        for batch in source.batches(samples, limit_tokens):
            losses: list[float] = []
            squares = squared_norms(norms, _noting(batch, losses), len(batch.samples))
            for name, values in squares.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
            done += len(batch.samples)
            total_loss += math.fsum(losses)
            if progress is not None:
                progress(done, len(samples))
    finally:
        model.train(training)
    means = {name: total / done / norms.sizes[name] for name, total in totals.items()}
    tokens = sum(len(sample.ids) for sample in samples)
    return TensorMeans(means, {name: norms.sizes[name] for name in means}, done, tokens, total_loss / done)


def _noting(batch: Batch, losses: list[float]) -> Callable[[Any], Any]:
    def run(model: Any) -> Any:
        found = batch.loss(model)
        losses.extend(found.detach().double().tolist())
        return found

    return run


def kept_tensor_means(
    model: Any,
    source: Source,
    samples: Sequence[Sample],
    *,
    weights: str,
    limit_tokens: int,
    progress: Progress | None = None,
) -> TensorMeans:
    """As `tensor_means`, read from the cache where it was computed for the same weights (their hash) and samples."""
    texts = [[s.ids.tolist(), s.labels.tolist(), s.class_label] for s in samples]
    key = fingerprint([weights, source.variant, source.kind, source.seed, type(model).__name__, texts])
    path = cache_folder() / "regularization" / f"fisher-{key}.json"
    if weights and path.is_file():
        return TensorMeans(**read_json(path))
    found = tensor_means(model, source, samples, limit_tokens=limit_tokens, progress=progress)
    if weights:
        write_json(path, found.to_json())
    return found


def place_scores(model: Any, sites: Sequence[Site], found: TensorMeans) -> list[dict[str, float]]:
    """The scores of every place by aggregation. Raises `ModelError` for a place none of whose tensors has a score."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    body = backbone(model)
    scores = []
    for site in sites:
        own = [names[id(_parameter(body, tensor))] for tensor in site.tensors]
        known = [name for name in dict.fromkeys(own) if name in found.means]
        if not known:
            raise ModelError(f"no gradient reached the tensors of {site.name}.")
        sizes = [found.sizes[name] for name in known]
        sums = [found.means[name] * size for name, size in zip(known, sizes, strict=True)]
        scores.append(
            {
                "mean_of_means": math.fsum(found.means[name] for name in known) / len(known),
                "parameter_mean": math.fsum(sums) / sum(sizes),
                "sum": math.fsum(sums),
            }
        )
    return scores


def _parameter(body: Any, name: str) -> Any:
    owner, _, part = name.rpartition(".")
    return body.get_submodule(owner)._parameters[part]
