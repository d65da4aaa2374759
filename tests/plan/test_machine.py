"""Hardware facts from folders of text files: containers, limits, processors, accelerators."""

import os

import pytest

from foretune.cost.machine import Accelerator, Machine
from foretune.execution.machine import detect
from foretune.fit.history import machine_features

GIB = 2**30


def _tree(root, **files):
    defaults = {
        "proc/cpuinfo": "processor : 0\nmodel name\t: Test CPU 9\nflags\t\t: fpu avx2 avx512_bf16\n",
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\n",
        "proc/self/cgroup": "0::/a/b\n",
    }
    for name, text in {**defaults, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _nothing(command):
    return ""


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_plain_machine(tmp_path):
    machine = detect(_tree(tmp_path), _nothing)
    assert (machine.processor, machine.cores, machine.threads, machine.bf16) == ("Test CPU 9", 4, 4, True)
    assert (machine.memory_bytes, machine.available_bytes) == (16 * GIB, 12 * GIB)
    assert machine.device == "cpu"
    assert machine.computes_in("cpu") == "bfloat16"


def test_limits_of_version_2_hold_on_every_level(tmp_path):
    root = _tree(
        tmp_path,
        **{
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": str(4 * GIB),
            "sys/fs/cgroup/a/memory.current": str(3 * GIB),
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    machine = detect(root, _nothing)
    assert machine.cores == 2
    assert machine.memory_bytes == 4 * GIB
    assert machine.available_bytes == 2 * GIB  # 4 - 3 in use + 1 of file cache


def test_limits_of_version_1(tmp_path):
    root = _tree(
        tmp_path,
        **{
            "proc/self/cgroup": "4:cpu,cpuacct:/x\n5:memory:/x\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/memory/x/memory.usage_in_bytes": str(GIB),
        },
    )
    machine = detect(root, _nothing)
    assert (machine.cores, machine.memory_bytes, machine.available_bytes) == (1, 2 * GIB, GIB)


def test_no_proc_at_all_is_not_an_error(tmp_path):
    machine = detect(tmp_path, _nothing)
    assert machine.cores == 4
    assert machine.memory_bytes == 0


def test_threads_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert detect(_tree(tmp_path), _nothing).threads == 1


SMI = "Tesla T4, 15360, 15000, 7.5, 0, GPU-aa\nNVIDIA H100, 81559, 80000, 9.0, 1, GPU-bb\nbroken line\n"


def test_accelerators_and_their_selection(tmp_path, monkeypatch):
    both = detect(_tree(tmp_path), lambda command: SMI)
    assert [gpu.name for gpu in both.accelerators] == ["Tesla T4", "NVIDIA H100"]
    assert both.computes_in("cuda") == "float32"  # a worker may land on the T4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    one = detect(tmp_path, lambda command: SMI)
    assert one.accelerators == (Accelerator("NVIDIA H100", 81559 * 2**20, 80000 * 2**20, True),)
    assert one.computes_in("cuda") == "bfloat16"
    assert one.room_bytes("cuda") == 80000 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect(tmp_path, lambda command: SMI).device == "cpu"


def test_json_and_fingerprint():
    machine = Machine("p", 2, 2, 10, 5, True, (Accelerator("g", 2, 1, True),))
    assert Machine.from_json(machine.to_json()) == machine
    busy = Machine("p", 2, 2, 10, 1, True, (Accelerator("g", 2, 0, True),))
    assert busy.fingerprint == machine.fingerprint
    assert Machine("p", 2, 1, 10, 5, True).fingerprint != machine.fingerprint


def test_the_store_is_told_of_accelerators(tmp_path):
    found = machine_features(detect(_tree(tmp_path), lambda command: SMI))
    assert found["processor"] == "Test-CPU-9" and found["accelerators.0.name"] == "Tesla-T4"
    assert found["accelerators.1.memory_bytes"] == 81559 * 2**20 and found["accelerators.1.bf16"] is True
