"""After ``import foretune``, peft loads the adapters of our methods: their types are registered once peft is there.

peft is heavy and most of foretune's commands never need it, so nothing is imported here. If peft was imported before,
our methods are registered at once; otherwise a finder waits at the head of ``sys.meta_path`` for ``import peft``, lets
the usual loader do its work, registers our methods behind it, and is gone. Where peft is imported by one of our own
method modules, these register themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTRY = "foretune.methods.registry"


def install() -> None:
    """Register our methods now if peft is loaded, else when it is."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    """Import our registry, unless an import of ours brought peft in and will register by itself."""
    ours = (module for name, module in sys.modules.items() if name.startswith("foretune.methods."))
    if not any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in ours):
        importlib.import_module(_REGISTRY)


class _AfterPeft:
    """A finder that answers once, for peft."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The usual specification of peft, whose loader registers our methods when it is done."""
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """A loader that does what the one it wraps does, and registers our methods afterwards."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the wrapped loader."""
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        """As the wrapped loader, then register."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
