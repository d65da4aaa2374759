"""Quick-Tune's two models: a deep-kernel Gaussian process for the score, a network for log-seconds.

Encoders for configuration, task features and curve feed a joint network, whose output is the input of an RBF kernel;
all weights are learnt through the exact marginal likelihood of mini-batches (Wistuba & Grabocka 2021). Predictions
condition on a sample of the meta-training rows. ``refit`` goes on training on what was seen on the task and conditions
on it as well. Sizes, batches, passes and patience are those of the published Quick-Tune-Tool (Rapant et al. 2024).
Weights are plain arrays: they are kept as JSON, never pickled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.search.encoding import Floats
from foretune.search.past_tasks import PastTask
from foretune.search.quick_tune.inputs import CURVE, Examples, Scaling, examples
from foretune.seeding import derive, generator

if TYPE_CHECKING:
    import torch

HIDDEN = 128
ENCODED = {"config": 32, "features": 16, "curve": 16}
"""Outputs of the encoders: features through one layer, the others through three."""
EMBEDDED = 32
"""Dimensions in which the kernel looks."""
PASSES = 100
BATCH = 2048
FEWEST_BATCHES = 4
"""A pass has so many at least: the published experience is large enough for that, a young one is not."""
HELD_OUT = 0.1
PATIENCE, TOLERANCE = 5, 1e-4
"""Training ends when the mean absolute error on held-out rows has not fallen by so much for so many passes."""
RATE = 1e-3
REFIT_STEPS = 50
REFIT_BATCH = 1024
"""A refit's batches are what was seen, filled up with rows of meta-training."""
CONTEXT = 4096
"""Rows that predictions condition on."""
SMALLEST_NOISE = 1e-3
SMALLEST_SECONDS = 1e-3
"""No stretch is forecast to be free: the acquisition divides by this."""

FARTHEST = 4.0
"""Spreads of log-seconds beyond which a network's extrapolation is none: a small model beside imported large ones."""

Weights = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """The process given rows: (n, d) where they lie, the factor of their covariance, and their targets behind it."""

    weights: Weights
    places: torch.Tensor
    root: torch.Tensor
    solved: torch.Tensor

    @classmethod
    def given(cls, weights: Weights, rows: Examples) -> Process:
        """The process that knows ``rows``: the work of n³ is done here, once for all predictions."""
        import torch

        places = _embedded(weights, rows.configs, rows.features, rows.curves)
        scale, noise = weights["log_scale"].exp(), weights["log_noise"].exp() + SMALLEST_NOISE
        root = torch.linalg.cholesky(scale * _rbf(places, places) + noise * torch.eye(len(places)))
        target = torch.as_tensor(rows.targets, dtype=torch.float32)[:, None]
        return cls(weights, places, root, torch.cholesky_solve(target, root))

    def at(self, configs: Floats, features: Floats, curves: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, variance) at new rows."""
        import torch

        scale, noise = self.weights["log_scale"].exp(), self.weights["log_noise"].exp() + SMALLEST_NOISE
        cross = scale * _rbf(_embedded(self.weights, configs, features, curves), self.places)
        explained = torch.linalg.solve_triangular(self.root, cross.T, upper=False).square().sum(0)
        return (cross @ self.solved)[:, 0], (scale + noise - explained).clamp_min(SMALLEST_NOISE)


@dataclass(frozen=True)
class Surrogate:
    """Both models and what they condition on."""

    scaling: Scaling
    weights: Mapping[str, Floats]
    context: Examples
    seconds_mean: float
    seconds_spread: float
    seed: int = 0

    def predict(self, configs: Floats, features: Floats, curves: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of the scaled score at the rung behind each curve."""
        import torch

        with torch.no_grad():
            mean, variance = self._process.at(configs, features, curves)
        return mean.double().numpy(), variance.sqrt().double().numpy()

    @cached_property
    def _process(self) -> Process:
        import torch

        with torch.no_grad():
            return Process.given(_tensors(self.weights), self.context)

    def seconds(self, configs: Floats, features: Floats, curves: Floats) -> Floats:
        """Seconds of the stretch to the rung behind each curve, in seconds: never zero, never scaled."""
        import torch

        with torch.no_grad():
            scaled = _cost(_tensors(self.weights), configs, features, curves).double().numpy()
        within = np.clip(scaled, -FARTHEST, FARTHEST)
        seconds: Floats = np.maximum(np.exp(within * self.seconds_spread + self.seconds_mean), SMALLEST_SECONDS)
        return seconds

    def scaled_seconds(self, seconds: float) -> float:
        """Measured seconds of a stretch as the network for seconds is trained on them; NaN stays NaN."""
        return (math.log(max(seconds, SMALLEST_SECONDS)) - self.seconds_mean) / self.seconds_spread

    def refitted(self, seen: Examples) -> Surrogate:
        """This surrogate trained on with what was seen on the task, which then is part of the context."""
        if len(seen.targets) == 0:
            return self
        merged = joined(self.context, seen)
        stream = generator(derive(self.seed, "quick-tune", "refit"), str(len(merged.targets)))

        def batches() -> list[Examples]:
            chosen = stream.permutation(len(self.context.targets))[: max(0, REFIT_BATCH - len(seen.targets))]
            return [joined(seen, rows_at(self.context, chosen))]

        weights = _trained(self.weights, batches, seen, REFIT_STEPS)
        return replace(self, weights=weights, context=merged)

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {
            "scaling": self.scaling.to_json(),
            "weights": {
                name: [list(np.shape(value)), np.ravel(value).tolist()] for name, value in self.weights.items()
            },
            "context": {name: plain(value) for name, value in vars(self.context).items()},
            "seconds": [self.seconds_mean, self.seconds_spread],
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Surrogate:
        """The inverse of `to_json`."""
        weights = {name: np.asarray(flat).reshape(shape) for name, (shape, flat) in value["weights"].items()}
        context = Examples(**{name: np.asarray(each, dtype=float) for name, each in value["context"].items()})
        mean, spread = value["seconds"]
        return cls(Scaling.from_json(value["scaling"]), weights, context, mean, spread, value["seed"])


def plain(values: Floats) -> Any:
    """Nested lists in which what is missing is None: JSON knows no NaN."""
    known: Any = values.astype(object)
    known[~np.isfinite(values)] = None
    return known.tolist()


def fit(tasks: Sequence[PastTask], seed: int = 0) -> Surrogate:
    """Meta-train both models on ``tasks``."""
    scaling = Scaling.of(tasks)
    rows = examples(tasks, scaling)
    known = rows.log_seconds[np.isfinite(rows.log_seconds)]
    mean, spread = (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
    scaled = replace(rows, log_seconds=(rows.log_seconds - mean) / spread)
    stream = generator(seed, "search", "quick-tune", "rows")
    order = stream.permutation(len(rows.targets))
    held, kept = np.split(order, [max(1, round(HELD_OUT * len(order)))])
    size = min(BATCH, -(-len(kept) // FEWEST_BATCHES))

    def batches() -> list[Examples]:
        shuffled = stream.permutation(kept)
        return [rows_at(scaled, part) for part in np.split(shuffled, range(size, len(shuffled), size))]

    weights = _trained(_begun(scaled, seed), batches, rows_at(scaled, held), PASSES)
    return Surrogate(scaling, weights, rows_at(scaled, stream.permutation(order)[:CONTEXT]), mean, spread, seed)


def rows_at(rows: Examples, chosen: Any) -> Examples:
    """The chosen rows."""
    return Examples(*(getattr(rows, name)[chosen] for name in vars(rows)))


def joined(one: Examples, other: Examples) -> Examples:
    """Rows of both."""
    return Examples(*(np.concatenate([getattr(one, name), getattr(other, name)]) for name in vars(one)))


def _begun(rows: Examples, seed: int) -> dict[str, Floats]:
    """Fresh weights: He's normal for every layer, zeros for biases."""
    encoded = sum(ENCODED.values())
    sizes = {
        "config": (rows.configs.shape[1], HIDDEN, HIDDEN, ENCODED["config"]),
        "features": (rows.features.shape[1], ENCODED["features"]),
        "curve": (CURVE, HIDDEN, HIDDEN, ENCODED["curve"]),
        "joint": (encoded, HIDDEN, HIDDEN, EMBEDDED),
        "cost": (encoded, HIDDEN, HIDDEN, 1),
    }
    weights: dict[str, Floats] = {}
    for name, widths in sizes.items():
        stream = generator(seed, "search", "quick-tune", name)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            weights[f"{name}.{layer}"] = stream.standard_normal((inputs, outputs)) * math.sqrt(2.0 / max(1, inputs))
            weights[f"{name}.{layer}.bias"] = np.zeros(outputs)
    return weights | {"log_scale": np.zeros(()), "log_noise": np.asarray(math.log(0.1))}


def _trained(
    begun: Mapping[str, Floats], batches: Callable[[], list[Examples]], held_out: Examples, passes: int
) -> dict[str, Floats]:
    """The best of what ``begun`` becomes in so many passes, by both models' mean absolute errors on ``held_out``."""
    import torch

    weights = {name: value.requires_grad_() for name, value in _tensors(begun).items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=RATE)
    best, best_error, waited = dict(begun), math.inf, 0
    for _ in range(passes):
        for batch in batches():
            loss = _loss(weights, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            mean, _ = Process.given(weights, batch).at(held_out.configs, held_out.features, held_out.curves)
            seconds = _cost(weights, held_out.configs, held_out.features, held_out.curves)
        off = np.abs(seconds.numpy() - held_out.log_seconds)
        error = float(np.abs(mean.numpy() - held_out.targets).mean())
        error += float(off[np.isfinite(off)].mean()) if np.isfinite(off).any() else 0.0
        waited += 1
        if error + TOLERANCE < best_error:
            best = {name: value.detach().double().numpy().copy() for name, value in weights.items()}
            best_error, waited = error, 0
        if waited >= PATIENCE:
            break
    return best


def _loss(weights: Weights, batch: Examples) -> torch.Tensor:
    """Negative log marginal likelihood a row, and squared log-seconds where they are known."""
    import torch

    parts = (batch.configs, batch.features, batch.curves)
    target = torch.as_tensor(batch.targets, dtype=torch.float32)
    known = torch.as_tensor(np.isfinite(batch.log_seconds))
    seconds = torch.as_tensor(np.nan_to_num(batch.log_seconds), dtype=torch.float32)
    off = (_cost(weights, *parts) - seconds).square() * known
    return -_likelihood(weights, _embedded(weights, *parts), target) / len(target) + off.sum() / known.sum().clamp_min(
        1
    )


def _likelihood(weights: Weights, places: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Log marginal likelihood of ``target`` (n,) at ``places`` (n, d)."""
    import torch

    noise = weights["log_noise"].exp() + SMALLEST_NOISE
    gram = weights["log_scale"].exp() * _rbf(places, places) + noise * torch.eye(len(places))
    root = torch.linalg.cholesky(gram)
    white = torch.linalg.solve_triangular(root, target[:, None], upper=False)[:, 0]
    constant = 0.5 * len(target) * math.log(2 * math.pi)
    found: torch.Tensor = -0.5 * white.square().sum() - root.diagonal().log().sum() - constant
    return found


def _tensors(weights: Mapping[str, Floats]) -> Weights:
    import torch

    return {name: torch.as_tensor(value, dtype=torch.float32).clone() for name, value in weights.items()}


def _network(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """(n, outputs): the layers called ``name`` one after the other, rectified in between."""
    hidden, layer = inputs, 0
    while f"{name}.{layer}" in weights:
        hidden = hidden.relu() if layer else hidden
        hidden = hidden @ weights[f"{name}.{layer}"] + weights[f"{name}.{layer}.bias"]
        layer += 1
    return hidden


def _encoded(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n, sum of widths): the three encoders side by side."""
    import torch

    inputs = {"config": configs, "features": features, "curve": curves}
    return torch.cat(
        [_network(weights, name, torch.as_tensor(np.asarray(value), dtype=torch.float32)) for name, value in
         inputs.items()], dim=1,
    ).relu()  # fmt: skip


def _embedded(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n, d): where the kernel looks."""
    return _network(weights, "joint", _encoded(weights, configs, features, curves))


def _cost(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n,): scaled log-seconds."""
    return _network(weights, "cost", _encoded(weights, configs, features, curves).detach())[:, 0]


def _rbf(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    squared = one.square().sum(1)[:, None] + other.square().sum(1)[None, :] - 2 * one @ other.T
    return (-0.5 * squared.clamp_min(0)).exp()
