"""The rates file: what is known of a base model's places, written once and shared across tasks.

``rates.json`` holds the model's name and the hash of its weights, the places in order with their Fisher scores and
rates, and how the scores were made. A file of another model is refused by its hash. Rates for the models of the
catalogue ship with Foretune (``catalogue/rates``, made by ``scripts/make_rates.py``); others are kept in the cache.
Reading one needs no data, no gradient and no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from foretune.catalogue.models import known_model
from foretune.catalogue.regularizers import AGGREGATIONS, SCHEDULES
from foretune.errors import Place, UsageError
from foretune.files import cache_folder, write_json
from foretune.regularization.places.schedule import rates as scheduled

FORMAT = 1
AUTO = "auto"
COMPUTE = "Compute them with `foretune regularize rates --model MODEL`."


@dataclass(frozen=True)
class PlaceRate:
    """One place with its score and its rate."""

    name: str
    kind: str
    layer: int | None
    stack: str
    how: str
    tensors: tuple[str, ...]
    scores: Mapping[str, float]
    """Score by aggregation"""
    rate: float


@dataclass(frozen=True)
class RatesFile:
    """The content of a rates file."""

    model: str
    weights: str
    """`LoadedModel.weights_hash`"""
    variant: str
    """Which Fisher: pre-training, task or label-sampled, with its loss"""
    text: str
    """What text it was taken on"""
    samples: int
    tokens: int
    aggregation: str
    schedule: str
    high: float
    low: float
    places: tuple[PlaceRate, ...]

    def rates(
        self, *, schedule: str, high: float, low: float, aggregation: str | None = None, seed: int = 0
    ) -> dict[str, float]:
        """Rates by place name under another schedule; the scores stay those of the file."""
        scores = [place.scores[aggregation or self.aggregation] for place in self.places]
        found = scheduled(scores, [place.kind for place in self.places], schedule, high=high, low=low, seed=seed)
        return {place.name: rate for place, rate in zip(self.places, found, strict=True)}

    def with_rates(self, *, schedule: str, high: float, low: float, aggregation: str) -> RatesFile:
        """The same scores with rates of another schedule."""
        found = self.rates(schedule=schedule, high=high, low=low, aggregation=aggregation)
        places = tuple(replace(place, rate=found[place.name]) for place in self.places)
        return replace(self, schedule=schedule, high=high, low=low, aggregation=aggregation, places=places)

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {"format": FORMAT, **asdict(self), "places": [asdict(place) for place in self.places]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RatesFile:
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError for what is no rates file."""
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")
        places = tuple(PlaceRate(**{**place, "tensors": tuple(place["tensors"])}) for place in value["places"])
        fields = {key: item for key, item in value.items() if key not in ("format", "places")}
        made = cls(**fields, places=places)
        numbers = [n for place in places for n in (place.rate, *place.scores.values())]
        if not places or not all(math.isfinite(n) and n >= 0 for n in numbers):
            raise ValueError("no places, or numbers that are not finite")
        if made.aggregation not in AGGREGATIONS or made.schedule not in SCHEDULES:
            raise ValueError("an aggregation or schedule that does not exist")
        if not all(set(AGGREGATIONS) <= set(place.scores) and place.rate < 1 for place in places):
            raise ValueError("a place without its scores, or with a rate of 1 and more")
        return made


def save(path: Path, rates: RatesFile) -> None:
    """Write a rates file atomically."""
    write_json(path, rates.to_json())


def read(path: Path) -> RatesFile:
    """Read a rates file. Raises `UsageError` when it is missing or not one."""
    if not path.is_file():
        raise UsageError("there is no rates file here.", place=Place(path), remedy=COMPUTE)
    try:
        return RatesFile.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"this is no rates file ({error}).", place=Place(path), remedy=COMPUTE) from error


def shipped() -> dict[str, RatesFile]:
    """The rates that ship with Foretune, by the catalogue's name of the model."""
    found = {}
    for file in sorted(resources.files("foretune.catalogue").joinpath("rates").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".json"):
            rates = RatesFile.from_json(json.loads(file.read_text(encoding="utf-8")))
            found[rates.model] = rates
    return found


def cached_path(weights: str) -> Path:
    """Where the rates of other models are kept."""
    return cache_folder() / "regularization" / f"rates-{weights}.json"


def find(where: str, *, weights: str, source: str = "") -> RatesFile:
    """The rates of a base model: a file's, or with ``auto`` those shipped or kept for these weights.

    ``source`` is the base's folder: one that Foretune fetched holds the catalogue's model of that name, whose package
    is pinned by its hash, even where converting it again gave a file of other bytes. Raises `UsageError` for a file of
    another model and where nothing is known.
    """
    if where != AUTO:
        path = Path(where).expanduser()
        rates = read(path)
        if weights and rates.weights != weights and not _fetched(rates.model, source):
            raise UsageError(
                f"these rates belong to other weights ({rates.model}, {rates.weights[:8]}; the base is {weights[:8]}).",
                place=Place(path),
                remedy=COMPUTE,
            )
        return rates
    for name, rates in shipped().items():
        if rates.weights == weights or _fetched(name, source):
            return rates
    if weights and cached_path(weights).is_file():
        return read(cached_path(weights))
    raise UsageError("there are no dropout rates for this base model.", remedy=COMPUTE)


def _fetched(name: str, source: str) -> bool:
    """Whether ``source`` is the folder into which the catalogue's model ``name`` was fetched."""
    known = known_model(name)
    return known is not None and bool(source) and Path(source) == cache_folder() / "models" / known.name


def by_layer(rates: RatesFile) -> list[tuple[str, Sequence[PlaceRate]]]:
    """(stack and layer, its places), in order."""
    groups: dict[str, list[PlaceRate]] = {}
    for place in rates.places:
        label = "embeddings" if place.layer is None else f"layer {place.layer}"
        groups.setdefault(f"{place.stack} {label}".strip(), []).append(place)
    return list(groups.items())
