"""A function of this package as the job of a worker: selections by several processes travel this way.

The name of the function, its settings and a block of work travel as JSON, so nothing is pickled and only functions of
this package can be asked for. A setting called ``bench`` stands for the worker's own bench.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from foretune.errors import UsageError

BENCH = "bench"
PACKAGE = "foretune."


def named(function: Callable[..., Any]) -> dict[str, Any]:
    """The function and its settings as JSON. Raises `UsageError` for one that has no name in this package."""
    if not isinstance(function, partial) or function.args:
        raise UsageError("work for other processes is a partial of a function with named settings.")
    target = function.func
    name = f"{target.__module__}:{target.__qualname__}"
    if called(name) is not target:
        raise UsageError(f"{name} cannot be found by its name in another process.")
    settings = {key: value for key, value in function.keywords.items() if key != BENCH}
    return {"function": name, "settings": settings, BENCH: BENCH in function.keywords}


def called(name: str) -> Callable[..., Any]:
    """The function of this package called ``module:function``. Raises `UsageError` for anything else."""
    module, _, function = name.partition(":")
    if not module.startswith(PACKAGE) or not function.isidentifier():
        raise UsageError(f"{name!r} is no function of this package.")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def carry_out(bench: Any, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The work of one block, in the worker."""
    settings = dict(payload["settings"])
    if payload[BENCH]:
        settings[BENCH] = bench
    return {"value": called(payload["function"])(payload["block"], **settings)}
