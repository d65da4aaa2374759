"""All regularizers by name, and building them from a configuration.

``regularizer`` in a configuration is ``none`` or a comma-separated list of ``name`` or ``name:strength``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretune.errors import UsageError
from foretune.regularization.base import Regularizer
from foretune.regularization.neftune import Neftune

REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "neftune": Neftune,
}


def build(config: Mapping[str, Any]) -> list[Regularizer]:
    """The regularizers of a configuration, in composition order. Raises `UsageError`."""
    text = str(config.get("regularizer", "none"))
    if text == "none":
        return []
    built = []
    for part in text.split(","):
        name, _, strength = part.strip().partition(":")
        if name not in REGULARIZERS:
            raise UsageError(f"unknown regularizer {name!r}.", remedy=f"Known: none, {', '.join(REGULARIZERS)}.")
        try:
            built.append(REGULARIZERS[name](float(strength)) if strength else REGULARIZERS[name]())
        except ValueError:
            raise UsageError(f"{strength!r} is not a strength of {name}.", remedy="Write it like neftune:5.") from None
    return built
