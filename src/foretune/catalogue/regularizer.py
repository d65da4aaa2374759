"""What is declared of one regularizer, torch-free; the registry of all is `foretune.catalogue.regularizers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.catalogue.space import Number, Space


@dataclass(frozen=True)
class Declaration:
    """What is known of a regularizer without loading it."""

    name: str
    about: str
    source: str
    strength: str
    """The field that the strength in ``name:strength`` sets"""
    space: Space
    """Every setting, named ``"<regularizer>.<field>"``, with the default"""
    menu: tuple[str, ...] = ()
    """Words that a search may draw for ``regularizer``; empty where it should not choose this by itself"""
    methods: tuple[str, ...] = ()
    """The only methods it works with; empty for all"""
    needs_base: bool = False
    """Only with methods that give the base back when they are switched off"""
    kinds: tuple[str, ...] = ("causal", "seq2seq", "encoder")
    """Kinds of model it works with"""
    fix: str = ""
    """What to do where method or kind do not fit"""
    conflicts: tuple[tuple[str, str], ...] = ()
    """(another regularizer, why they cannot be used together and what to do)"""


def number(name: str, low: float, high: float, default: float, about: str, **more: Any) -> Number:
    """A number with its range, default and meaning."""
    return Number(name, low, high, default, about=about, **more)
