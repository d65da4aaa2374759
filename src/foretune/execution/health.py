"""What a run on this machine would stumble over, checked without importing anything heavy.

Each `Check` is ``ok``, ``note`` (something is absent that only some runs need) or ``fail`` (a fit will fail), and
every one that is not ok says what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foretune.cost.machine import Machine
from foretune.files import cache_folder
from foretune.units import format_bytes

State = Literal["ok", "note", "fail"]

OLDEST_PYTHON = (3, 11)
_SMALLEST_MEMORY_BYTES = 2 * 2**30  # the default model trains in 1.7 GiB
_SMALLEST_DISK_BYTES = 2**30  # the default model, its checkpoints and the export
_SQLITE_MAGIC = b"SQLite format 3\0"
_STORE_VARIABLE = "FORETUNE_STORE"
_PROJECT = "foretune"
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "quantize": ("bitsandbytes",),
    "lm-eval": ("lm-eval",),
    "corpora": ("reasoning-gym",),
}
REQUIRED: Mapping[str, str] = {
    "torch": "2.6", "transformers": "5.0", "peft": "0.19", "accelerate": "1.10", "datasets": "4.0",
    "huggingface-hub": "1.0", "safetensors": "0.5", "tokenizers": "0.21", "gguf": "0.10", "numpy": "1.26",
    "scipy": "1.11", "scikit-learn": "1.4", "pyarrow": "15", "pydantic": "2.6", "pyyaml": "6", "sacrebleu": "2.4",
    "typer": "0.12", "rich": "13.7",
}  # fmt: skip
"""The core dependencies and their lowest versions; a test holds this to ``pyproject.toml``."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""


def check_all(machine: Machine) -> list[Check]:
    """Every check, in the order they are shown."""
    named = os.environ.get(_STORE_VARIABLE)
    return [
        python_check(sys.version_info[:3]),
        *package_checks(installed_versions(REQUIRED)),
        *extra_checks(),
        *machine_checks(machine),
        cache_check(cache_folder()),
        store_check(Path(named) if named else cache_folder() / "experience.sqlite"),
    ]


def python_check(version: Sequence[int]) -> Check:
    """Whether this Python is new enough."""
    found = ".".join(map(str, version)) + f" ({platform.python_implementation()})"
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return Check("python", "ok", found)
    return Check("python", "fail", found, f"Use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer.")


def installed_versions(names: Mapping[str, str]) -> dict[str, str | None]:
    """The installed version of each distribution, None where it is missing; nothing is imported."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def package_checks(versions: Mapping[str, str | None]) -> list[Check]:
    """Whether every core dependency is there and new enough."""
    checks = []
    for name, least in REQUIRED.items():
        version = versions.get(name)
        if version is None:
            checks.append(Check(name, "fail", "missing", f'Run `pip install "{name}>={least}"`.'))
        elif _release(version) < _release(least):
            checks.append(Check(name, "fail", version, f'Too old: run `pip install "{name}>={least}"`.'))
        else:
            checks.append(Check(name, "ok", version))
    return checks


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` → (2, 13, 0)."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits or not part[0].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def extra_checks() -> list[Check]:
    """Which optional parts are installed."""
    checks = []
    for extra, names in EXTRAS.items():
        missing = [name for name, version in installed_versions(dict.fromkeys(names, "")).items() if version is None]
        if missing:
            remedy = f'For it, run `pip install "{_PROJECT}[{extra}]"`.'
            checks.append(Check(f"extra {extra}", "note", f"not installed ({', '.join(missing)})", remedy))
        else:
            checks.append(Check(f"extra {extra}", "ok", "installed"))
    return checks


def machine_checks(machine: Machine) -> list[Check]:
    """Processor, memory and accelerators."""
    threads = f"{machine.processor}, {machine.cores} cores, {machine.threads} threads"
    checks = [Check("processor", "ok", threads)]
    if machine.threads < machine.cores:
        checks[0] = Check("processor", "note", threads, "OMP_NUM_THREADS leaves cores idle; unset it for full speed.")
    device = machine.device
    if machine.computes_in(device) == "bfloat16":
        checks.append(Check("bfloat16", "ok", f"yes ({device})"))
    else:
        checks.append(Check("bfloat16", "note", f"no ({device})", "Training runs in float32, about a third as fast."))
    memory = f"{format_bytes(machine.available_bytes)} free of {format_bytes(machine.memory_bytes)}"
    if machine.available_bytes < _SMALLEST_MEMORY_BYTES:
        remedy = f"The default model needs {format_bytes(_SMALLEST_MEMORY_BYTES)}: close other programs."
        checks.append(Check("memory", "fail", memory, remedy))
    else:
        checks.append(Check("memory", "ok", memory))
    for gpu in machine.accelerators:
        room = f"{format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.memory_bytes)}"
        checks.append(Check("accelerator", "ok", f"{gpu.name}, {room}"))
    if not machine.accelerators:
        checks.append(Check("accelerator", "note", "none seen by nvidia-smi", "Training runs on the processor."))
    return checks


def cache_check(folder: Path) -> Check:
    """Whether models and data can be kept: the cache folder can be written and has room."""
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".foretune-doctor."):
            free = shutil.disk_usage(parent).free
    except OSError as error:
        remedy = "Set FORETUNE_CACHE to a folder you can write."
        return Check("cache folder", "fail", f"{folder}: {error.strerror or error}", remedy)
    found = f"{folder}, {format_bytes(free)} free"
    if free < _SMALLEST_DISK_BYTES:
        remedy = f"Free {format_bytes(_SMALLEST_DISK_BYTES)}, or set FORETUNE_CACHE to another disk."
        return Check("cache folder", "fail", found, remedy)
    return Check("cache folder", "ok", found)


def store_check(path: Path) -> Check:
    """Whether the experience store, if there is one, is a database that can be read."""
    if not path.exists():
        return Check("experience store", "ok", f"{path}: not there yet; the first run makes it")
    if not os.access(path, os.R_OK):
        return Check("experience store", "fail", f"{path}: cannot be read", f"Run `chmod u+rw {path}`.")
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_SQLITE_MAGIC))
    except OSError as error:
        return Check("experience store", "fail", f"{path}: {error.strerror}", "Move it away; a new one is made.")
    if head and head != _SQLITE_MAGIC:
        return Check("experience store", "fail", f"{path}: not a database", "Move it away; a new one is made.")
    return Check("experience store", "ok", f"{path}, {format_bytes(path.stat().st_size)}")
