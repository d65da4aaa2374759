"""What the recipes around LoRA share: its settings, its count, its promises."""

from __future__ import annotations

from dataclasses import replace

from foretune.catalogue.methods.base import Declaration, low_rank_menu, low_rank_space
from foretune.catalogue.methods.lora import LORA
from foretune.catalogue.space import Parameter, Space


def lora_recipe(
    name: str, about: str, source: str, *more: Parameter, menu: Space | None = None, **changes: object
) -> Declaration:
    """LoRA's declaration under another name, with ``more`` settings and other fields changed."""
    base = replace(
        LORA,
        name=name,
        about=about,
        space=low_rank_space(name, *more),
        menu=low_rank_menu(name) if menu is None else menu,
        source=source,
        family="recipe",
    )
    return replace(base, **changes)  # type: ignore[arg-type]
