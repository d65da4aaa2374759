"""The arms of a study: written out, or multiplied from factors; and what each one is on a given model.

An arm is the base configuration with settings of its own. Beside those it may name a share of the parameters to train
(``trainable: 0.5%``; the knob of its method is then set for each model), the tasks that it is for, and the arm that it
is compared with. ``factors`` is short for a product (or a list of several): every combination of their values is an
arm, named after them. A combination that a model cannot have is left out of the product with the reason; one that was
written out as an arm is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from foretune.catalogue.methods import config_space, declaration
from foretune.catalogue.rules import TRAINABLE
from foretune.config.load import nearest
from foretune.config.spec import flat_settings
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.methods.share import with_share
from foretune.methods.trainable import count, countable
from foretune.units import parse_share

GOVERNED = {
    "epochs": "`horizon` says how long every arm trains",
    "learning_rate": "`learning_rate` at the top of the grid is for all arms; one arm's own goes into the arm",
}
TASKS = "tasks"
"""The tasks that an arm is for, where it is not for all."""
CONTROL = "control"
"""The arm that an arm is compared with, where it is not the one of all."""
ABOUT_ARMS = (TRAINABLE, TASKS, CONTROL)
"""What an arm may say beside settings of a run."""
_JOINT = "-"


@dataclass(frozen=True)
class ModelArm:
    """An arm on one model."""

    config: Mapping[str, Any]
    """The whole configuration, but for learning rate and epochs"""
    trainable: int
    """Trained parameters; 0 where no closed count is known"""
    parameters: int

    @property
    def share(self) -> float:
        """Trained parameters as a share of all."""
        return self.trainable / self.parameters

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``ModelArm(**value)`` reads it back."""
        return {**asdict(self), "config": dict(self.config)}


def written_share(value: Any) -> float:
    """A share as people write it (``0.5%``); raises `UsageError`."""
    share = parse_share(value)
    if share <= 0:
        raise UsageError("a share of nothing trains nothing.", remedy="Write a share such as 0.5%.")
    return share


def checked_settings(key: str, settings: Any) -> dict[str, Any]:
    """The settings of ``base`` or of an arm, flat, each one a setting that runs have. Raises `ValueError`."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key}: settings are a group of key: value lines")
    tasks = settings.get(TASKS) if key != "base" else None
    if tasks is not None and (not isinstance(tasks, list) or not tasks):
        raise ValueError(f"{key}.{TASKS}: write the names of the tasks as a list")
    control = settings.get(CONTROL) if key != "base" else None
    if control is not None and not isinstance(control, str):
        raise ValueError(f"{key}.{CONTROL}: write the name of an arm")
    about = {TASKS: list(tasks or ()), CONTROL: control}
    flat = flat_settings({name: value for name, value in settings.items() if not about.get(name)})
    try:
        share = {TRAINABLE: written_share(flat.pop(TRAINABLE))} if TRAINABLE in flat and key != "base" else {}
    except UsageError as error:
        raise ValueError(f"{key}.{TRAINABLE}: {error.paragraph()}") from error
    space = config_space()
    for name in flat:
        if name in GOVERNED and (name == "epochs" or key == "base"):
            raise ValueError(f"{key}.{name}: {GOVERNED[name]}")
        if name not in space.names():
            raise ValueError(f"{key}.{name}: it is not a setting of a run. {nearest(name, space.names())}")
    try:
        return {**space.check(flat), **share, **{name: value for name, value in about.items() if value}}
    except UsageError as error:
        raise ValueError(f"{key}.{error.paragraph()}") from error


def nearest_key(key: str, known: list[str]) -> str:
    """The known key that was probably meant, or all of them."""
    close = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in known], n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(name.rpartition('.')[2] for name in known)}."


def multiplied(factors: Any) -> dict[str, dict[str, Any]]:
    """Every combination of the factors' values as an arm by name: ``{"lora-0.5pct": {"method": "lora", …}}``.

    ``factors`` is one group of settings with their values, or a list of groups. Raises `ValueError`.
    """
    groups = factors if isinstance(factors, list) else [factors]
    arms: dict[str, dict[str, Any]] = {}
    for name, settings in (arm for group in groups for arm in _combinations(group)):
        if name in arms:
            raise ValueError(f"factors: two combinations are both called {name!r}; write these arms out")
        arms[name] = settings
    return arms


def _combinations(group: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(group, Mapping) or not all(isinstance(values, list) and values for values in group.values()):
        raise ValueError("factors: every factor is a setting with a list of values")
    for values in product(*group.values()):
        settings = dict(zip(group, values, strict=True))
        try:
            yield _JOINT.join(_word(key, value) for key, value in settings.items()), settings
        except UsageError as error:
            raise ValueError(f"factors.{TRAINABLE}: {error.paragraph()}") from error


def _word(key: str, value: Any) -> str:
    """A value as part of an arm's name: letters, digits and ``. _ + -``; half a percent is ``0.5pct``."""
    if key == TRAINABLE:
        return f"{100 * written_share(value):g}pct"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "._+-" else "." for c in text)


def on_model(config: Mapping[str, Any], share: float | None, shapes: ModelShapes) -> ModelArm:
    """An arm's configuration on a model, its knob set to ``share``. Raises `UsageError` where it cannot be had."""
    if share is not None:
        config = with_share(config, share, shapes)
    known = countable(declaration(str(config["method"])))  # else its share is unknown, and no budget rule speaks of it
    trainable = count(shapes, config) if known else 0
    return ModelArm(dict(config), trainable, shapes.parameters)
