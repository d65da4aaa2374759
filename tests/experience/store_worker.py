"""One of several processes that fill a store: claims runs, writes their curves, logs what was acknowledged."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from foretune.experience.records import RunRecord
from foretune.experience.store import Store

RUNS = 32
STEPS = (3, 6, 12, 25)
LEASE_S = 1.5


def value(run: int, step: int) -> float:
    return run + step / 1000


def work(path: Path, log: Path) -> None:
    owner = f"worker-{os.getpid()}"
    with Store(path) as store, log.open("a") as acknowledged:
        task, model = store.record_task("task", {"rows": 10}), store.record_model("model", {"width": 8})
        machine, config = store.record_hardware("machine", {"cores": 2}), store.record_config({"method": "lora"})
        while True:
            open_runs = False
            for run in range(RUNS):
                name = f"run-{run}"
                attempt = store.claim(name, owner, LEASE_S)
                if attempt is None:
                    open_runs |= not store.runs(status="finished") or name not in {
                        row.record.id for row in store.runs(status="finished")
                    }
                    continue
                store.record_run(RunRecord(name, task, model, machine, config, seed=run, horizon=25))
                for step in STEPS:
                    scores = {"loss": (value(run, step), 0.1, 64), "accuracy": (0.5, 0.1, 64)}
                    store.record_observation(name, step, "validation", scores, train_s=1.0, tokens=10)
                    acknowledged.write(f"{name} {step}\n")
                    acknowledged.flush()
                    time.sleep(0.03)
                store.finish_run(name, "finished")
            if not open_runs:
                return
            time.sleep(0.05)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
