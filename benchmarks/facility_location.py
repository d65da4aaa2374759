"""Facility location: Foretune's greedy against submodlib's and apricot's on the same kernels.

    python benchmarks/facility_location.py [--quick] [--rows 10000] [--choose 1000] [--repeats 3]

Dense: cosines of clustered vectors, cut at 0, float32. Every contestant is a process of its own that makes the kernel
from the seed, warms up on a small one (numba compiles), and then goes from the array to the chosen rows; that is what
is measured, in processor seconds of one thread. Contestants take turns; the ratio of a repeat is that of processor
times, and the median is reported. All use their lazy greedy. Objectives are computed by one function from what each
chose. Sparse kernels (100 or 32 entries a candidate) are run by Foretune alone: the peers copy or densify them.
Needs ``submodlib-py`` and ``apricot-select``; a contestant that is not installed is left out and its keys are null.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from common import FOLDER, finish, median, parser, record

from foretune.seeding import generator

CONTESTANTS = ("foretune", "submodlib", "apricot")
WARM_UP_ROWS = 50
WIDTH, CLUSTERS = 32, 100
SPARSE = {"1e5": (100_000, 100, 10_000), "1e6": (1_000_000, 32, 100_000)}
"""Name → (rows and candidates, entries a candidate, rows to choose)"""


def dense_kernel(rows: int, seed: int) -> np.ndarray:
    """(rows, rows) float32 cosines of vectors around `CLUSTERS` centres, cut at 0."""
    random = generator(seed, "benchmark", "dense", rows)
    centres = random.standard_normal((CLUSTERS, WIDTH))
    vectors = (centres[random.integers(CLUSTERS, size=rows)] + random.standard_normal((rows, WIDTH))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = vectors @ vectors.T
    return np.maximum(similar, 0, out=similar)


def sparse_kernel(rows: int, entries: int, seed: int) -> Any:
    """(rows, rows) with ``entries`` values a candidate, in random rows."""
    from scipy.sparse import csc_array

    random = generator(seed, "benchmark", "sparse", rows)
    where = random.integers(0, rows, rows * entries, dtype=np.int32)
    values = random.random(rows * entries, dtype=np.float32)
    made = csc_array((values, where, np.arange(0, rows * entries + 1, entries)), shape=(rows, rows))
    made.sum_duplicates()
    return made


def by_foretune(similar: Any, count: int) -> list[int]:
    """Our engine, checks included."""
    from foretune.selection.greedy import facility_location, kernel

    made = kernel.dense(similar) if isinstance(similar, np.ndarray) else kernel.sparse(similar)
    return [int(i) for i in facility_location.rank(facility_location.fl(made), count).indices]


def by_submodlib(similar: Any, count: int) -> list[int]:
    """Submodlib's C++ lazy greedy on the given kernel."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(similar), mode="dense", sijs=similar, separate_rep=False)
    chosen = function.maximize(
        budget=count, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return [int(i) for i, _ in chosen]


def by_apricot(similar: Any, count: int) -> list[int]:
    """Apricot's lazy greedy on the given kernel."""
    from apricot import FacilityLocationSelection

    selection = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy", n_jobs=1)
    return [int(i) for i in selection.fit(similar).ranking]


RUN: Mapping[str, Callable[[Any, int], list[int]]] = {
    "foretune": by_foretune, "submodlib": by_submodlib, "apricot": by_apricot,
}  # fmt: skip


def contest(arguments: argparse.Namespace) -> None:
    """Be one contestant: what it chose, its processor seconds and its peak, as one line of JSON."""
    run = RUN[arguments.contestant]
    run(dense_kernel(WARM_UP_ROWS, 1), 5)
    if arguments.sparse:
        rows, entries, count = SPARSE[arguments.sparse]
        by_foretune(sparse_kernel(WARM_UP_ROWS, 5, 1), 5)
        similar = sparse_kernel(rows, entries, arguments.seed)
    else:
        similar, count = dense_kernel(arguments.rows, arguments.seed), arguments.choose
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    chosen = run(similar, count)
    cpu_s = time.process_time() - cpu
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("\n" + json.dumps({"cpu_s": cpu_s, "extra_memory_mb": extra / 1024, "chosen": chosen}))


def ask(name: str, arguments: argparse.Namespace, sparse: str = "") -> dict[str, Any] | None:
    """The contestant's line; None when its package is not there."""
    command = [sys.executable, str(FOLDER / "facility_location.py"), "--contestant", name, "--sparse", sparse]
    command += ["--rows", str(arguments.rows), "--choose", str(arguments.choose), "--seed", str(arguments.seed)]
    one = {name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one}, check=False)
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            print(f"{name} is not installed: left out", file=sys.stderr)
            return None
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {sparse}: {found['cpu_s']:.2f} CPU s, {found['extra_memory_mb']:.0f} MB", file=sys.stderr)
    return found


def objective(similar: np.ndarray, chosen: list[int]) -> float:
    """Σ_i max_A s_ij."""
    return float(similar[:, chosen].max(axis=1).sum(dtype=np.float64))


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=10_000)
    made.add_argument("--choose", type=int, default=1_000)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--contestant", default="", help=argparse.SUPPRESS)
    made.add_argument("--sparse", default="", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.quick:
        arguments.rows, arguments.choose, arguments.repeats = 2_000, 200, 1
    return arguments


def main() -> None:
    """Let the contestants take turns and print one JSON object."""
    arguments = arguments_of()
    if arguments.contestant:
        contest(arguments)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for repeat in range(arguments.repeats):
        for name in CONTESTANTS[repeat % 3 :] + CONTESTANTS[: repeat % 3]:
            if (one := ask(name, arguments)) is not None:
                found[name].append(one)
    similar = dense_kernel(arguments.rows, arguments.seed)
    reached = {name: objective(similar, parts[0]["chosen"]) for name, parts in found.items() if parts}
    del similar
    ours = [part["cpu_s"] for part in found["foretune"]]
    ratios = {
        name: [part["cpu_s"] / own for part, own in zip(found[name], ours, strict=True)]
        for name in CONTESTANTS[1:]
        if found[name]
    }
    sparse = {name: ask("foretune", arguments, name) for name in (("1e5",) if arguments.quick else SPARSE)}
    summary: dict[str, Any] = {
        **{f"ratio_vs_{name}": median(ratios[name]) if name in ratios else None for name in CONTESTANTS[1:]},
        "objective_relative_difference": max(abs(value / reached["foretune"] - 1) for value in reached.values()),
        "foretune_cpu_s": median(ours),
        "foretune_extra_memory_mb": max(part["extra_memory_mb"] for part in found["foretune"]),
        **{f"sparse_{name}_cpu_s": part["cpu_s"] for name, part in sparse.items() if part},
        **{f"sparse_{name}_extra_memory_mb": part["extra_memory_mb"] for name, part in sparse.items() if part},
        **{key: vars(arguments)[key] for key in ("rows", "choose", "repeats")},
    }
    times = {name: [part["cpu_s"] for part in parts] for name, parts in found.items()}
    ranges = {name: [min(values), max(values)] for name, values in ratios.items()}
    finish(arguments, "facility_location", summary, record(arguments, ranges=ranges, cpu_s=times, objectives=reached))


if __name__ == "__main__":
    main()
