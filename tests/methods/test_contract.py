"""Every registered method keeps the contract on tiny Llama, Gemma, BERT and BART models."""

from __future__ import annotations

import warnings

import pytest

from foretune.catalogue.methods import METHODS
from foretune.errors import UsageError
from foretune.methods.contract.checks import broken_points, case
from foretune.methods.contract.models import ARCHITECTURES, specimen
from foretune.methods.registry import get
from foretune.methods.trainable import count
from foretune.training.packing_contract import packs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_the_contract_is_kept(method: str, architecture: str) -> None:
    declared = METHODS[method]
    kind = ARCHITECTURES[architecture][0]
    if kind not in declared.kinds:
        pytest.skip(f"{method} is not for {kind} models")
    if declared.expression:
        try:
            count(specimen(architecture).shapes, {"method": method})
        except UsageError as error:
            pytest.skip(error.what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = broken_points(case(get(method), declared, specimen(architecture)), (packs,))
    assert not broken, "\n".join(f"{point}: {what}" for point, what in broken.items())
