"""All selectors by name: one file for each family, one line for each selector.

Another package offers its own by an entry point of the group ``foretune.selectors`` that names a `Selector`.
"""

from __future__ import annotations

from typing import Any

from foretune.catalogue.selection import declaration, third_party
from foretune.selection.base import Selector
from foretune.selection.baselines import Longest, Random
from foretune.selection.ifd import Ifd

SELECTORS: dict[str, Selector] = {
    "random": Random(),
    "longest": Longest(),
    "ifd": Ifd(),
}


def get(name: str) -> Selector:
    """The selector called ``name``. Raises `UsageError` with the nearest name."""
    if name in SELECTORS:
        return SELECTORS[name]
    declaration(name)
    found: Any = third_party(name)
    selector: Selector = found
    return selector
