"""Where edits of activations go: after or beside a sub-layer, or after a whole layer. Loads no torch.

A site is the module whose output is edited (``exit``), and for the parallel sites the module whose input is read
(``entry``). Sub-layers end in one linear layer in every architecture we know (attention's output projection, the
feed-forward's down projection), so ``after_attention`` and ``after_ffn`` edit that layer's output: before residual
connection and, where there is one, before the norm behind the sub-layer (Houlsby et al. 2019, figure 2).
``parallel_…`` reads what the sub-layer reads (He et al. 2022, 2110.04366, figure 3). Cross-attention is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.catalogue.methods.base import Target

SITES = ("after_attention", "after_ffn", "parallel_attention", "parallel_ffn", "after_layer")
SITES_PATTERN = rf"(?:{'|'.join(SITES)})(?:\+(?:{'|'.join(SITES)}))*"
"""One or more sites joined by ``+``"""

_EXITS = {"attention": ("attention.o",), "ffn": ("mlp.down",)}
_ENTRIES = {"attention": ("attention.q", "attention.qkv"), "ffn": ("mlp.up", "mlp.gate_up")}


@dataclass(frozen=True)
class Site:
    """One module that is edited."""

    exit: str
    """The module whose output is edited"""
    entry: str = ""
    """The module whose input is read; empty where the output itself is"""


def block_of(name: str) -> str:
    """The layer that a module belongs to: its name up to the first number; empty outside the layers."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def sites_of(targets: Sequence[Target], words: str) -> list[Site]:
    """The sites that ``words`` (`SITES` joined by ``+``) name among the layers of ``targets``, in model order."""
    found: list[Site] = []
    for word in words.split("+"):
        where, _, part = word.partition("_")
        if part == "layer":
            found += [Site(name) for name in dict.fromkeys(block_of(target.name) for target in targets) if name]
            continue
        entries = {block_of(target.name): target.name for target in targets if target.role in _ENTRIES[part]}
        for target in targets:
            if target.role in _EXITS[part]:
                found.append(Site(target.name, entries[block_of(target.name)] if where == "parallel" else ""))
    return list(dict.fromkeys(found))


def attentions_of(targets: Sequence[Target]) -> list[str]:
    """The self-attention modules of the layers of ``targets``: what holds the query projections, in model order."""
    entries = [target.name for target in targets if target.role in _ENTRIES["attention"]]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in entries))
