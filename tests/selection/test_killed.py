"""A selection that is killed at random moments ends as one that was not: the same rows with the same scores."""

from __future__ import annotations

import fcntl
import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import foretune
from foretune.files import claimed, remove_leftovers
from foretune.selection import kept_blocks
from foretune.selection.base import Request
from foretune.selection.kept_blocks import in_blocks
from foretune.selection.took import SUFFIX

from ..faults.lives import live
from .conftest import rows

pytestmark = pytest.mark.alone

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


def test_a_claimed_block_is_left_to_its_holder_and_taken_over_when_he_is_gone(tmp_path):
    keys = [str(i) for i in range(6)]
    computed = []

    def compute(block):
        computed.append(block[0])
        return {"value": np.asarray(block)}

    in_blocks(Request((), 0, folder=tmp_path / "alone"), "numbers", keys, None, compute, block_rows=2)
    order = sorted((tmp_path / "alone").glob("*.safetensors"), key=lambda path: kept_blocks.read(path)["value"][0])
    computed.clear()
    request = Request((), 0, folder=tmp_path / "shared")
    found = {}

    def work():
        found.update(in_blocks(request, "numbers", keys, None, compute, block_rows=2))

    with claimed(tmp_path / "shared" / order[1].name) as mine:
        assert mine
        thread = threading.Thread(target=work)
        thread.start()
        while len(computed) < 2:
            time.sleep(0.01)
        thread.join(3 * kept_blocks.WAIT_S)
        assert thread.is_alive() and computed == [0, 4]  # everything but what another has
    thread.join()
    assert computed == [0, 4, 2] and list(found["value"]) == list(range(6))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_who_takes_over_a_block_sweeps_what_the_killed_holder_half_wrote(tmp_path):
    torn = [tmp_path / ".block.safetensors.abc.part", tmp_path / f".block{SUFFIX}.def.part"]
    other = tmp_path / ".block2.safetensors.ghi.part"
    for path in (*torn, other, tmp_path / ".block.safetensors.claim"):
        path.write_bytes(b"half")
    with claimed(tmp_path / "block.safetensors") as mine:
        assert mine and not any(path.exists() for path in torn)
    assert [path.name for path in tmp_path.iterdir()] == [other.name]  # another block, perhaps being written


def test_a_claim_removed_while_it_was_waited_for_is_nobodys(tmp_path, monkeypatch):
    """Its holder removes the file between another's opening and locking it: that lock would keep nobody out."""
    path = tmp_path / "block.safetensors"
    lock_it = fcntl.flock

    def late(stream, how):
        (tmp_path / ".block.safetensors.claim").unlink()
        lock_it(stream, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with claimed(path) as mine:
            assert not mine
    with claimed(path) as mine:
        assert mine


@pytest.mark.slow
def test_two_processes_share_the_work_and_leave_the_same_bytes(ground, tmp_path):
    pool = rows(100)
    ask = {"method": "ifd:50%+delift", "budget": 9, "context_tokens": 96, "device": "cpu", "dtype": "float32",
           "fields": {"delift.rows": 4}, "model": str(ground.llama)}  # fmt: skip
    alone = foretune.select(pool, store=tmp_path / "one", **ask)

    def until_the_other_has_begun(what, done, total):
        end = time.monotonic() + 120
        while what == "utility" and done == 1 and len(_processes(tmp_path / "two")) < 2 and time.monotonic() < end:
            time.sleep(0.05)

    found = foretune.select(pool, store=tmp_path / "two", workers=2, on_progress=until_the_other_has_begun, **ask)
    assert found.indices == alone.indices and found.gains == alone.gains
    assert len(_processes(tmp_path / "two")) == 2
    blocks = {
        path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.safetensors")
    }
    assert {
        p.relative_to(tmp_path / "two"): p.read_bytes() for p in (tmp_path / "two").rglob("*.safetensors")
    } == blocks
    assert found.manifest["counted"]["blocks_computed"] == len(blocks)
    assert [path.name for path in (tmp_path / "two").rglob("*.claim")] == []


def _processes(folder):
    return {json.loads(path.read_text())["process"] for path in folder.rglob(f"*{SUFFIX}")}
