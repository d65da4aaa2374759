"""What all benchmarks share: their arguments, the record of a run, and one JSON object as the last line.

A benchmark compares two ways to do the same work in one run and reports the ratio; seconds alone say more about
the machine than about the code. With ``--quick`` it takes at most a minute on two cores and writes no file unless
``--output`` names one; without, the result also goes to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from foretune.catalogue.models import DEFAULT_MODEL
from foretune.execution.machine import detect
from foretune.files import write_json
from foretune.models.load import locate

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PACKAGES = ("foretune", "torch", "transformers", "peft", "accelerate", "trl", "numpy")


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; ``about`` is the module's docstring."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="at most a minute on two cores: is it right, not how fast")
    made.add_argument("--model", default=DEFAULT_MODEL, help="a catalogue name, folder, GGUF file or hub id")
    made.add_argument("--threads", type=int, default=1, help="threads of each process")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", type=Path, help="where to write the result as JSON")
    return made


def model_folder(name: str) -> str:
    """Where the model ``name`` lies, fetched when missing; what transformers loads."""
    return str(locate(name, progress=lambda line: print(line, file=sys.stderr)))


def record(arguments: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """What is needed to repeat a run: commit, versions, machine, command and seed, with ``facts`` added."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "machine": detect().to_json(),
        "seed": arguments.seed,
        "threads": arguments.threads,
        "quick": arguments.quick,
        **facts,
    }


def commit() -> str:
    """The commit of the source tree, with a mark where files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(FOLDER), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    return git("rev-parse", "HEAD") + (" with local changes" if changed else "")


def versions() -> dict[str, str]:
    """Python and the packages whose speed or arithmetic matters, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def finish(arguments: argparse.Namespace, name: str, summary: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Write ``details`` with the summary to a file (see the module) and print the summary as the last line."""
    path = arguments.output or (None if arguments.quick else RESULTS / f"{name}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**summary, **details})
    sys.stderr.flush()
    print(json.dumps(summary), flush=True)


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    from statistics import median as middle

    return float(middle(values))
