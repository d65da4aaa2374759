"""All selectors by name: one file for each family, one line for each selector.

Another package offers its own by an entry point of the group ``foretune.selectors`` that names a `Selector`.
"""

from __future__ import annotations

from typing import Any

from foretune.catalogue.selection import declaration, third_party
from foretune.selection.base import Selector
from foretune.selection.baselines import Longest, Random
from foretune.selection.delift import Delift, DeliftSe
from foretune.selection.embedding_based import DeftUcs, Deita, Herding, KCentre, RdsPlus
from foretune.selection.gain_filter import Igf
from foretune.selection.ifd import Ifd
from foretune.selection.in_context import Miwv, SelfUtility
from foretune.selection.iterative import ActiveLearning, DiverseEvol
from foretune.selection.less import Less
from foretune.selection.row_sources import Rs2
from foretune.selection.select_it import SelectIt

SELECTORS: dict[str, Selector] = {
    "random": Random(),
    "longest": Longest(),
    "ifd": Ifd(),
    "self-utility": SelfUtility(),
    "miwv": Miwv(),
    "select-it": SelectIt(),
    "delift": Delift(),
    "delift-se": DeliftSe(),
    "rds-plus": RdsPlus(),
    "k-centre": KCentre(),
    "herding": Herding(),
    "deft-ucs": DeftUcs(),
    "deita": Deita(),
    "less": Less(),
    "diverse-evol": DiverseEvol(),
    "active-learning": ActiveLearning(),
    "rs2": Rs2(),
    "igf": Igf(),
}


def get(name: str) -> Selector:
    """The selector called ``name``. Raises `UsageError` with the nearest name."""
    if name in SELECTORS:
        return SELECTORS[name]
    declaration(name)
    found: Any = third_party(name)
    selector: Selector = found
    return selector
