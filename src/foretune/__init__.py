"""Foretune: AutoML for fine-tuning language models.

``foretune.fit`` and ``foretune.plan`` are the two entry points; everything heavy is imported when they run. After
``import foretune``, ``peft.PeftModel.from_pretrained`` loads the adapters of our own methods too.
"""

from __future__ import annotations

import importlib
from typing import Any

from foretune.peft_hook import install as _install_peft_hook

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "plan", "resume", "select"]


def __getattr__(name: str) -> Any:
    """Load ``fit``, ``plan``, ``resume`` and ``select`` on first use, so that ``import foretune`` stays light."""
    if name == "select":
        return importlib.import_module("foretune.fit.select").select
    if name in ("fit", "plan", "resume"):
        module = importlib.import_module("foretune.fit")  # itself callable: see its last lines
        return module if name == "fit" else getattr(module, name)
    raise AttributeError(f"module 'foretune' has no attribute {name!r}")


_install_peft_hook()
