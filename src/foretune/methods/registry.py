"""All methods by name."""

from __future__ import annotations

from foretune.errors import UsageError
from foretune.methods.base import Method
from foretune.methods.full import Full
from foretune.methods.lora import Lora

METHODS: dict[str, Method] = {
    "full": Full(),
    "lora": Lora(),
}


def get(name: str) -> Method:
    """The method called ``name``; raises `UsageError` naming the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.", remedy=f"Known: {', '.join(METHODS)}.")
    return METHODS[name]
