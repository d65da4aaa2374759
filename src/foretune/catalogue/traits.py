"""What a method promises, declared without importing torch; the contract suite checks each promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Merge = Literal["exact", "per_task", "approximate", "no"]


@dataclass(frozen=True)
class Traits:
    """Promises of a method, read by the planner, the exporter and the packer."""

    identity_at_init: bool
    """The model with a fresh adapter answers exactly as the base does."""
    merge: Merge
    """Whether the adapter can become part of the base weights."""
    disables_to_base: bool
    """Switching the adapter off gives the base bitwise."""
    packable: bool
    """Packed rows give the same losses as separate ones (where the architecture allows it too)."""
    deterministic: bool
    """Same seed, same threads, same weights."""
    servable: bool
    """Servers load the exported adapter without our code."""
