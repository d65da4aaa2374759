"""An earlier run whose checkpoint is not the whole of it is no start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from foretune.fit.warm_start import why_not


@pytest.mark.parametrize("method", ["loraga", "lofit", "cpt"])
def test_what_came_from_other_rows_is_not_begun_at(method: str) -> None:
    task: Any = SimpleNamespace(
        task="generation", labels=(), tasks=(), plain_template=False, model=SimpleNamespace(quantize="none")
    )
    prepared: Any = SimpleNamespace(task=task)
    earlier: Any = SimpleNamespace(prepared=prepared, weights="w", config={"method": method})
    assert "took from its own training rows" in why_not(earlier, prepared, "w", {})
