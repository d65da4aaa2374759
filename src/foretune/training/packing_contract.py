"""The point of a method's contract that needs the loop's forward pass: packed rows give the losses of separate ones.

Stands beside `foretune.methods.contract`, one layer up, because packing is the loop's. Not checked where the
architecture itself does not pack.
"""

from __future__ import annotations

import torch

from foretune.methods.contract.checks import Broken, Case
from foretune.training.forward import Network


def packs(case: Case) -> None:
    """A packable method packs wherever its base does. Raises `Broken`."""
    kind = case.specimen.kind
    if kind == "seq2seq" or not case.declared.traits.packable:
        return
    with torch.no_grad(), case.attached(trained=True) as attachment:
        if Network(case.specimen.model, kind).packs and not Network(attachment.model, kind).packs:
            raise Broken("packed rows do not give the answers of separate ones")
