"""All regularizers by name, and building them from a configuration.

``regularizer`` in a configuration is ``none`` or a comma-separated list of ``name`` or ``name:strength``
(`catalogue.regularizers`); the settings of each stand under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING, named, with_strengths
from foretune.regularization.base import Regularizer
from foretune.regularization.dropout import Dropout
from foretune.regularization.gaussian_dropout import GaussianDropout
from foretune.regularization.guided_dropout import GuidedDropout
from foretune.regularization.neftune import Neftune
from foretune.regularization.prune_rewind import PruneRewind
from foretune.regularization.tfew import Tfew

REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "guided-dropout": GuidedDropout,
    "dropout": Dropout,
    "gaussian-dropout": GaussianDropout,
    "neftune": Neftune,
    "tfew": Tfew,
    "prune-rewind": PruneRewind,
}


def build(config: Mapping[str, Any]) -> list[Regularizer]:
    """The regularizers of a configuration, in composition order. Raises `UsageError`."""
    complete = with_strengths(config)
    built = []
    for declared, _ in named(str(config.get(SETTING, NONE))):
        prefix = f"{declared.name}."
        fields = {key.removeprefix(prefix): value for key, value in complete.items() if key.startswith(prefix)}
        built.append(REGULARIZERS[declared.name](**fields))
    return built
