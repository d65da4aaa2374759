"""All methods by name: one file and one line each. Importing this registers our tuners with peft.

A method from a plugin comes through `add`; what it declares goes into the catalogue as well.
"""

from __future__ import annotations

from foretune.catalogue.methods import Declaration, declare
from foretune.errors import UsageError
from foretune.methods import (
    adalink,
    adaption_prompt,
    bottleneck,
    cartridge,
    contextpeft,
    cpt,
    dept,
    direft,
    dsee,
    e2vpt,
    eva,
    full,
    hf_peft,
    lofit,
    lora,
    lorafa,
    loraga,
    loraplus,
    lorasp,
    loratrf,
    loreft,
    loretta,
    loretta_adp,
    mam,
    melora,
    mora,
    mtllora,
    multitask_prompt_tuning,
    nola,
    p_tuning,
    partial,
    prefix_tuning,
    promot,
    prompt_tuning,
    red,
    ssf,
)
from foretune.methods.base import Method

METHODS: dict[str, Method] = {
    "full": full.METHOD,
    "lora": lora.METHOD,
    "loratrf": loratrf.METHOD,
    "mtllora": mtllora.METHOD,
    "mora": mora.METHOD,
    "melora": melora.METHOD,
    "lorasp": lorasp.METHOD,
    "loretta": loretta.METHOD,
    "dsee": dsee.METHOD,
    "nola": nola.METHOD,
    "bottleneck": bottleneck.METHOD,
    "loreft": loreft.METHOD,
    "direft": direft.METHOD,
    "red": red.METHOD,
    "ssf": ssf.METHOD,
    "adalink": adalink.METHOD,
    "lofit": lofit.METHOD,
    **partial.PARTIAL_METHODS,
    **hf_peft.PEFT_METHODS,
    "contextpeft": contextpeft.METHOD,
    "mam": mam.METHOD,
    "dept": dept.METHOD,
    "e2vpt": e2vpt.METHOD,
    "loretta_adp": loretta_adp.METHOD,
    "prompt_tuning": prompt_tuning.METHOD,
    "p_tuning": p_tuning.METHOD,
    "multitask_prompt_tuning": multitask_prompt_tuning.METHOD,
    "cpt": cpt.METHOD,
    "prefix_tuning": prefix_tuning.METHOD,
    "cartridge": cartridge.METHOD,
    "adaption_prompt": adaption_prompt.METHOD,
    "promot": promot.METHOD,
    "loraplus": loraplus.METHOD,
    "lorafa": lorafa.METHOD,
    "eva": eva.METHOD,
    "loraga": loraga.METHOD,
}


def get(name: str) -> Method:
    """The method called ``name``; raises `UsageError` naming the known ones."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.", remedy=f"Known: {', '.join(METHODS)}.")
    return METHODS[name]


def add(declared: Declaration, method: Method) -> None:
    """Add a method from outside. Raises `UsageError` when its name is taken or the two disagree about it."""
    if method.name != declared.name:
        raise UsageError(f"the method calls itself {method.name!r} and its declaration {declared.name!r}.")
    declare(declared)
    METHODS[declared.name] = method
