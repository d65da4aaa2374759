"""On a GPU: a whole fit that chooses its device by itself. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fit_runs_there_and_hands_over_an_adapter(fast_fit: Callable[..., Any], tmp_path: Path, dtype: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    result = fast_fit(output=tmp_path / "run", options={"device": "auto", "model.dtype": dtype})
    assert (result.adapter / "adapter_config.json").is_file()
    assert torch.cuda.max_memory_allocated() > 0
