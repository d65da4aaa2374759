"""Kill a selection five times and see that it ends as one that was not: the same blocks, byte for byte, the same rows.

    python scripts/kill_selection.py    # 3,000 translations, k-centre (MiniLM), then delift (SmolLM2): 6 minutes a core
    python scripts/kill_selection.py --data foldoc --method delift-se --set delift-se.embedder=all-MiniLM-L6-v2

Carries the selection out once undisturbed, then in another store with `KILLS` times ``kill -9`` at random points of the
work, and compares every file of scores, the kept rows and their scores. Prints one line of JSON; ends with 1 where
anything differs, or where a life ended by itself. The suite holds the same on few rows
(tests/selection/test_killed.py); run this by hand on a real model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from foretune.data.write import write_rows
from foretune.fit.select import read_pool
from foretune.seeding import generator

KILLS = 5
POLL_S = 0.05


def command(arguments: argparse.Namespace, data: Path, folder: Path) -> list[str]:
    """The selection, with store and output in ``folder``."""
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    return [
        sys.executable, "-m", "foretune", "select", str(data), "--method", arguments.method, "--keep", arguments.keep,
        "--model", arguments.model, "--context", "128", "--store", str(folder / "store"),
        "--output", str(folder / "kept.jsonl"), "--json", *settings,
    ]  # fmt: skip


def blocks(folder: Path) -> dict[str, bytes]:
    """Every finished block of scores by name."""
    store = folder / "store"
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.safetensors")
            if not path.name.startswith(".")}  # fmt: skip


def chosen(folder: Path) -> tuple[Any, ...]:
    """What was handed over: the rows as written, their indices and scores."""
    manifest = json.loads((folder / "kept.manifest.json").read_text(encoding="utf-8"))
    return (folder / "kept.jsonl").read_bytes(), manifest["indices"], manifest["scores"]


def finished(folder: Path) -> int:
    """How many blocks of scores there are."""
    return sum(not path.name.startswith(".") for path in (folder / "store").rglob("*.safetensors"))


def one_life(words: list[str], folder: Path, until: int, wait_s: float) -> bool:
    """Run the command until so many blocks are there, wait, kill it with all its children; whether it was alive then.

    By blocks and not by the clock: under another load a life would reach the end, or all end before the first block.
    """
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and finished(folder) < until:
        time.sleep(POLL_S)
    time.sleep(wait_s)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def main() -> int:
    """The whole check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="interface-en-de")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--method", default="k-centre:15%+delift")
    parser.add_argument("--keep", default="10%")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--set", action="append", default=[], help="a selector's setting")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death")
    arguments = parser.parse_args()
    if arguments.method == parser.get_default("method") and not arguments.set:
        arguments.set = ["k-centre.embedder=all-MiniLM-L6-v2", "delift.rows=4"]
    _, pool = read_pool(arguments.data)
    if len(pool) < arguments.rows:
        parser.error(f"{arguments.data} has {len(pool)} rows for training")
    taken = sorted(generator(0, "kill-selection").permutation(len(pool))[: arguments.rows])
    with tempfile.TemporaryDirectory(prefix="kill-selection-") as name:
        root = Path(name)
        data = root / "rows.jsonl"
        write_rows(data, [pool[int(i)] for i in taken])
        found = compared(arguments, data, root)
    print(json.dumps(found))
    return 0 if found["equal_blocks"] and found["equal_rows"] and found["kills"] == KILLS else 1


def compared(arguments: argparse.Namespace, data: Path, root: Path) -> dict[str, Any]:
    """Both selections and what they have in common."""
    started = time.monotonic()
    subprocess.run(command(arguments, data, root / "whole"), check=True, stdout=subprocess.DEVNULL)
    whole_s = time.monotonic() - started
    draw, words, folder = random.Random(arguments.seed), command(arguments, data, root / "killed"), root / "killed"
    total = finished(root / "whole")
    seen = []
    for share in sorted(draw.random() for _ in range(KILLS)):
        wait_s = draw.uniform(0, 2 * whole_s / total)  # into the middle of a block as well
        if one_life(words, folder, int(share * total), wait_s):
            seen.append(finished(folder))
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    one, other = blocks(root / "whole"), blocks(root / "killed")
    return {
        "rows": arguments.rows, "method": arguments.method, "model": arguments.model, "kills": len(seen),
        "blocks": len(one), "blocks_after_each_kill": seen, "equal_blocks": one == other,
        "equal_rows": chosen(root / "whole") == chosen(root / "killed"), "undisturbed_s": round(whole_s, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
