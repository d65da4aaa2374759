"""A selection that is killed at random moments ends as one that was not: the same rows with the same scores."""

from __future__ import annotations

import random
import time
from pathlib import Path

import foretune
from foretune.files import remove_leftovers
from foretune.selection.took import SUFFIX

from ..faults.lives import live
from .conftest import rows

KILLS = 5
ASKED = {"method": "ifd:50%+k-centre", "budget": "20%", "context_tokens": 96, "device": "cpu", "dtype": "float32"}


def test_five_kills_change_nothing(ground, tmp_path):
    pool = rows(600)
    started = time.monotonic()
    whole = foretune.select(pool, model=str(ground.llama), store=tmp_path / "one", **ASKED)
    whole_s = time.monotonic() - started
    draw = random.Random(0)
    killed = tmp_path / "two"
    for _ in range(KILLS):
        live(
            lambda: foretune.select(pool, model=str(ground.llama), store=killed, **ASKED),
            limit_s=whole_s * draw.uniform(0.3, 0.9),
        )
    found = foretune.select(pool, model=str(ground.llama), store=killed, **ASKED)
    assert found.indices == whole.indices and found.scores == whole.scores and found.gains == whole.gains
    assert found.manifest["counted"]["blocks_reused"] >= 1
    remove_leftovers(killed)
    assert contents(killed) == contents(tmp_path / "one")  # nothing but whole blocks, byte for byte


def contents(folder: Path) -> dict[str, bytes]:
    """Every block by name; what it took lies beside it and differs from run to run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(SUFFIX)}
