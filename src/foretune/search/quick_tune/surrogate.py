"""Quick-Tune's two models: a deep-kernel Gaussian process for the score, a network for log-seconds.

Encoders for configuration, task features and curve feed a joint network, whose output is the input of an RBF kernel;
all weights are learnt through the exact marginal likelihood of mini-batches of one task each (Wistuba & Grabocka 2021).
Predictions condition on a sample of the meta-training rows. ``refit`` goes on training on what was seen on the task and
conditions on it as well. Weights are plain arrays: they are kept as JSON, never pickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.search.encoding import Floats
from foretune.search.past_tasks import PastTask
from foretune.search.quick_tune.inputs import CURVE, Examples, Scaling, examples
from foretune.seeding import derive, generator

if TYPE_CHECKING:
    import torch

WIDTHS = {"config": 32, "features": 16, "curve": 16}
JOINT = (32, 16)
STEPS = 400
REFIT_STEPS = 50
BATCH = 96
RATE = 3e-3
CONTEXT = 400
"""Rows that predictions condition on."""
SMALLEST_NOISE = 1e-3
SMALLEST_SECONDS = 1e-3
"""No stretch is forecast to be free: the acquisition divides by this."""

Weights = dict[str, Any]


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
            weights = _tensors(self.weights)
            known = _embedded(weights, self.context.configs, self.context.features, self.context.curves)
            new = _embedded(weights, configs, features, curves)
            scale, noise = weights["log_scale"].exp(), weights["log_noise"].exp() + SMALLEST_NOISE
            gram = scale * _rbf(known, known) + noise * torch.eye(len(known))
            root = torch.linalg.cholesky(gram)
            target = torch.as_tensor(self.context.targets, dtype=torch.float32)[:, None]
            cross = scale * _rbf(new, known)
            mean = cross @ torch.cholesky_solve(target, root)
            explained = torch.linalg.solve_triangular(root, cross.T, upper=False).square().sum(0)
            variance = (scale + noise - explained).clamp_min(SMALLEST_NOISE)
        return mean[:, 0].double().numpy(), variance.sqrt().double().numpy()

    def seconds(self, configs: Floats, features: Floats, curves: Floats) -> Floats:
        """Seconds of the stretch to the rung behind each curve, in seconds: never zero, never scaled."""
        import torch

        with torch.no_grad():
            scaled = _cost(_tensors(self.weights), configs, features, curves).double().numpy()
        return np.maximum(np.exp(scaled * self.seconds_spread + self.seconds_mean), SMALLEST_SECONDS)

    def refitted(self, seen: Examples, steps: int = REFIT_STEPS) -> Surrogate:
        """This surrogate trained on with what was seen on the task, which then is part of the context."""
        if len(seen.targets) == 0:
            return self
        merged = Examples(*(np.concatenate([getattr(self.context, name), getattr(seen, name)]) for name in vars(seen)))
        weights = _trained(self.weights, merged, steps, self.seed, batch=len(seen.targets) + BATCH)
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


def fit(tasks: Sequence[PastTask], seed: int = 0, *, steps: int = STEPS) -> Surrogate:
    """Meta-train both models on ``tasks``."""
    scaling = Scaling.of(tasks)
    rows = examples(tasks, scaling)
    known = rows.log_seconds[np.isfinite(rows.log_seconds)]
    mean, spread = (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
    scaled = replace(rows, log_seconds=(rows.log_seconds - mean) / spread)
    weights = _trained(_begun(scaled, seed), scaled, steps, seed)
    chosen = generator(seed, "search", "quick-tune", "context").permutation(len(rows.targets))[:CONTEXT]
    context = Examples(*(getattr(scaled, name)[chosen] for name in vars(scaled)))
    return Surrogate(scaling, weights, context, mean, spread, seed)


def _begun(rows: Examples, seed: int) -> dict[str, Floats]:
    """Fresh weights: He's normal for every layer, zeros for biases."""
    sizes = {"config": rows.configs.shape[1], "features": rows.features.shape[1], "curve": CURVE}
    layers = {name: (sizes[name], WIDTHS[name]) for name in WIDTHS}
    layers |= {"joint": (sum(WIDTHS.values()), JOINT[0]), "out": JOINT, "cost": (sum(WIDTHS.values()), JOINT[0])}
    layers["seconds"] = (JOINT[0], 1)
    weights: dict[str, Floats] = {}
    for name, (inputs, outputs) in layers.items():
        stream = generator(seed, "search", "quick-tune", name)
        weights[name] = stream.standard_normal((inputs, outputs)) * math.sqrt(2.0 / max(1, inputs))
        weights[f"{name}.bias"] = np.zeros(outputs)
    return weights | {"log_scale": np.zeros(()), "log_noise": np.asarray(math.log(0.1))}


def _trained(
    begun: Mapping[str, Floats], rows: Examples, steps: int, seed: int, batch: int = BATCH
) -> dict[str, Floats]:
    """``begun`` after so many steps on mini-batches of one task each: marginal likelihood and squared log-seconds."""
    import torch

    weights = {name: value.requires_grad_() for name, value in _tensors(begun).items()}
    optimizer = torch.optim.Adam(list(weights.values()), lr=RATE)
    tasks = np.unique(rows.task)
    stream = generator(derive(seed, "quick-tune", "batches"), str(len(rows.targets)))
    for _ in range(steps):
        own = np.flatnonzero(rows.task == stream.choice(tasks))
        chosen = stream.permutation(own)[:batch]
        parts = (rows.configs[chosen], rows.features[chosen], rows.curves[chosen])
        target = torch.as_tensor(rows.targets[chosen], dtype=torch.float32)
        known = torch.as_tensor(np.isfinite(rows.log_seconds[chosen]))
        seconds = torch.as_tensor(np.nan_to_num(rows.log_seconds[chosen]), dtype=torch.float32)
        loss = -_likelihood(weights, _embedded(weights, *parts), target) / len(chosen)
        loss = loss + ((_cost(weights, *parts) - seconds).square() * known).sum() / known.sum().clamp_min(1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach().double().numpy() for name, value in weights.items()}


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


def _layer(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    layered: torch.Tensor = inputs @ weights[name] + weights[f"{name}.bias"]
    return layered


def _encoded(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n, sum of widths): the three encoders side by side."""
    import torch

    inputs = {"config": configs, "features": features, "curve": curves}
    encoded = [
        _layer(weights, name, torch.as_tensor(np.asarray(value), dtype=torch.float32)).relu()
        for name, value in inputs.items()
    ]
    return torch.cat(encoded, dim=1)


def _embedded(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n, d): where the kernel looks."""
    return _layer(weights, "out", _layer(weights, "joint", _encoded(weights, configs, features, curves)).relu())


def _cost(weights: Weights, configs: Floats, features: Floats, curves: Floats) -> torch.Tensor:
    """(n,): scaled log-seconds."""
    hidden = _layer(weights, "cost", _encoded(weights, configs, features, curves).detach()).relu()
    return _layer(weights, "seconds", hidden)[:, 0]


def _rbf(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    squared = one.square().sum(1)[:, None] + other.square().sum(1)[None, :] - 2 * one @ other.T
    return (-0.5 * squared.clamp_min(0)).exp()
