"""One process of a trial: run by `test_ranks` alone and as one of two, with the environment that accelerate reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from foretune.execution.bench import Bench
from foretune.execution.orders import TrialOrder
from foretune.execution.trial import Trial
from foretune.execution.types import TaskSpec


def main(order: Path, output: Path) -> None:
    content = json.loads(order.read_text())
    bench = Bench(TaskSpec.from_json(content["task"]))
    said: list[tuple[str, dict]] = []
    stop_after = content["stop_after"]

    def stopped() -> bool:
        return stop_after is not None and sum(kind == "rung" for kind, _ in said) >= stop_after

    trial = Trial(
        bench, TrialOrder.from_json(content["order"]), report=lambda k, p: said.append((k, dict(p))), stopped=stopped
    )
    final = trial.run().to_json()
    rungs = [payload for kind, payload in said if kind == "rung"]
    facts = {"rank": trial.ranks.rank, "count": trial.ranks.count, "rungs": rungs, "final": final, "said": len(said)}
    output.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
