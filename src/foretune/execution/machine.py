"""What this machine is, found out without torch: /proc, /sys and ``nvidia-smi``.

A container's limits count, not the host's: cores are the smallest of affinity and quota (cgroup v1 and v2), memory
the smallest limit on the way up the cgroup tree. `detect` takes the root folder and the command runner, so every
case can be tested from a folder of text files. Not found out: clock rates, caches, the speed of the disk.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from foretune.cost.machine import Accelerator, Machine

_KIB = 1024
_MIB = 1024 * 1024
_SMI_QUERY = "name,memory.total,memory.free,compute_cap,index,uuid"
_SMI_CELLS = len(_SMI_QUERY.split(","))
_SMI_SECONDS = 4.0  # a driver that has fallen asleep answers within this, or counts as absent
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_BF16_CAPABILITY = 8.0  # NVIDIA compute capability from which bfloat16 is native (Ampere)
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"

Runner = Callable[[Sequence[str]], str]


def run_command(command: Sequence[str]) -> str:
    """The standard output of ``command``; empty when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def detect(root: Path = Path("/"), run: Runner = run_command) -> Machine:
    """This machine. ``root`` holds ``proc`` and ``sys``; ``run`` answers ``nvidia-smi``."""
    cpu_info = _text(root / "proc/cpuinfo")
    cores = _cores(root)
    total, available = _memory(root)
    return Machine(
        processor=_processor_name(cpu_info),
        cores=cores,
        threads=_threads(cores),
        memory_bytes=total,
        available_bytes=available,
        bf16=bool(_BF16_FLAGS & set(_field(cpu_info, "flags").split() + _field(cpu_info, "Features").split())),
        accelerators=_accelerators(run),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _processor_name(cpu_info: str) -> str:
    return _field(cpu_info, "model name") or _field(cpu_info, "Hardware") or platform.processor() or platform.machine()


def _threads(cores: int) -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The cgroup folders of this process for ``controller``, innermost first, versions 2 and 1."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        inner = base / path.strip().lstrip("/")
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(base))]
    base = root / "sys/fs/cgroup"
    return list(dict.fromkeys([*folders, base, base / controller]))


def _cores(root: Path) -> int:
    counts = [float(len(os.sched_getaffinity(0)))] if hasattr(os, "sched_getaffinity") else [float(os.cpu_count() or 1)]
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            counts.append(int(quota) / int(period))
        quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            counts.append(int(quota) / int(period))
    return max(1, math.floor(min(counts)))


def _memory(root: Path) -> tuple[int, int]:
    """(most bytes this process may use, bytes of it that are free)."""
    info = _text(root / "proc/meminfo")
    total, available = (_kibibytes(_field(info, name)) for name in ("MemTotal", "MemAvailable"))
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name in (("memory.max", "memory.current"),
                                      ("memory.limit_in_bytes", "memory.usage_in_bytes")):  # fmt: skip
            limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
            if not limit.isdigit() or int(limit) >= _NO_LIMIT:
                continue
            total = min(total, int(limit)) if total else int(limit)
            cache = _reclaimable_bytes(_text(folder / "memory.stat"))
            free = int(limit) - (int(used) if used.isdigit() else 0) + cache
            available = min(available, max(0, free)) if available else max(0, free)
    return total, min(total, available)


def _kibibytes(value: str) -> int:
    number = value.removesuffix("kB").strip()
    return int(number) * _KIB if number.isdigit() else 0


def _reclaimable_bytes(stat: str) -> int:
    """Bytes of file cache charged to a cgroup that the kernel gives back when memory is short."""
    for line in stat.splitlines():
        name, _, number = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and number.strip().isdigit():
            return int(number)
    return 0


def _accelerators(run: Runner) -> tuple[Accelerator, ...]:
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in run(["nvidia-smi", f"--query-gpu={_SMI_QUERY}", "--format=csv,noheader,nounits"]).splitlines()
        if line.strip()
    ]
    rows = [row for row in rows if len(row) == _SMI_CELLS and row[1].isdigit() and row[2].isdigit()]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        wanted = [name.strip() for name in chosen.split(",") if name.strip()]
        rows = [row for name in wanted for row in rows if name == row[4] or (name != "" and row[5].startswith(name))]
    return tuple(
        Accelerator(row[0], int(row[1]) * _MIB, int(row[2]) * _MIB, _capability(row[3]) >= _BF16_CAPABILITY)
        for row in rows
    )


def _capability(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
