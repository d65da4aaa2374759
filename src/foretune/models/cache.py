"""Keys and values that a transformers model keeps between calls: handed in and taken out under the name it gives them.

transformers 5.24 calls ``cache`` what was ``past_key_values``, in a model's arguments and in its output.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def cache_of(values: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments or in the output of a model; None where there is none."""
    cache = values.get("cache")
    return values.get("past_key_values") if cache is None else cache


def cached(base: nn.Module, cache: Any) -> dict[str, Any]:
    """``cache`` as an argument of ``base``."""
    return {"cache" if "cache" in arguments_of(base) else "past_key_values": cache, "use_cache": True}


def arguments_of(base: nn.Module) -> frozenset[str]:
    """The names of what the forward pass of ``base`` takes."""
    return _parameters(type(base).forward)


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
