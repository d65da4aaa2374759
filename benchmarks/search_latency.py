"""How fast the search decides and learns: `transfer` against the deep-kernel pair of Quick-Tune, in one run.

Asking: processor time of one proposal with 500 observations and 1,000 candidates, against one of ``quick-tune`` with
``refit: full`` (fifty steps of refitting before it decides). Meta-training: processor time from 1,800 runs of ten
points to a surrogate (trees and the process's hyper-parameters), against that of the deep-kernel pair on the same runs;
what a surrogate then says of 1,000 candidates is reported beside it. The runs are made by a formula: speed is measured
here, not quality (`foretune study run search:replay` judges that). Imports are not counted, on either side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from common import finish, median, parser, record

from foretune.catalogue.priors import recommended
from foretune.experience.past import PastRun, Point
from foretune.search.budget import Budget
from foretune.search.encoding import Facts, features
from foretune.search.extras import Centre, extra
from foretune.search.fidelity import LEVELS, level_step
from foretune.search.learned import learn
from foretune.search.past_tasks import past_tasks
from foretune.search.quick_tune.strategy import QuickTune
from foretune.search.quick_tune.surrogate import fit as fit_pair
from foretune.search.runs import Run, View
from foretune.search.task_prior import build
from foretune.search.transfer import Transfer
from foretune.search.transfer_mean import fit
from foretune.search.types import Score
from foretune.seeding import generator

HORIZON, POINTS = 200, 10
MODEL = {"kind": "causal", "parameters": 135_000_000, "width": 576, "layers": 30, "vocabulary": 49152}
WHOLE = {"tasks": 18, "configs": 100, "observations": 500, "candidates": 1000, "asks": 100, "their_asks": 5}
QUICK = {"tasks": 4, "configs": 20, "observations": 60, "candidates": 100, "asks": 5, "their_asks": 1}


def configs(count: int, seed: int) -> list[Mapping[str, Any]]:
    """``count`` configurations of LoRA, as the search draws them."""
    base = recommended("lora", width=576, kind="causal", steps=HORIZON).config
    rate = float(base["learning_rate"])
    drawn = (extra(k, {"lora": Centre(base, rate, rate)}, (), seed, ()) for k in range(count))
    return [config for config in drawn if config is not None]


def earlier(tasks: int, listed: list[Mapping[str, Any]], seed: int) -> list[PastRun]:
    """Runs of a formula: a bowl in the log learning rate that is approached like a power of the steps."""
    runs = []
    for task in range(tasks):
        stream = generator(seed, "benchmark", task)
        best, own = 1e-3 * 10 ** float(stream.normal(0, 0.3)), {"log10_rows": 2 + float(stream.random())}
        for number, config in enumerate(listed):
            end = 0.5 - 0.3 * math.log10(float(config["learning_rate"]) / best) ** 2
            steps = [round(HORIZON * (k + 1) / POINTS) for k in range(POINTS)]
            points = tuple(
                Point(step, "validation", {"loss": (2 * math.exp(-end * (step / HORIZON) ** 0.3), 0.02, 64)}, 10.0, 1.0,
                      9000, {"loss": (2.0, 0.02, 64)})
                for step in steps
            )  # fmt: skip
            runs.append(PastRun(f"t{task}-{number}", f"t{task}", own, "m", MODEL, "h", {}, config, HORIZON, 0,
                                "finished", "", "", "", points, 10**9))  # fmt: skip
    return runs


def seen(pool: list[Mapping[str, Any]], observations: int) -> tuple[Run, ...]:
    """Runs with so many observations in all, paused or finished."""
    runs: list[Run] = []
    left = observations
    while left > 0:
        reached = min(LEVELS if len(runs) % 3 == 0 else 3, left)
        run = Run(f"r{len(runs):03d}", pool[len(runs)], 0, HORIZON, "proposed", "")
        for level in range(reached):
            run.step = level_step(HORIZON, level)
            run.curve[run.step] = {"loss": Score(1.5 - 0.1 * level + 0.001 * len(runs), 0.02, 64)}
        run.status, run.train_s = "finished" if reached == LEVELS else "idle", 60.0
        runs.append(run)
        left -= reached
    return tuple(runs)


def cpu_s(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, processor seconds)."""
    began = time.process_time()
    return work(), time.process_time() - began


def main() -> None:
    """Run and print."""
    arguments = parser(__doc__).parse_args()
    import sklearn.ensemble  # noqa: F401
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(arguments.threads)
    threadpool_limits(arguments.threads)  # processor seconds of a second thread that waits would count as work
    size = QUICK if arguments.quick else WHOLE
    listed = configs(size["configs"], arguments.seed)
    tasks = past_tasks(earlier(size["tasks"], listed, arguments.seed))
    pool = configs(min(size["candidates"], 1024), arguments.seed + 1)
    facts = Facts({"log10_rows": 2.5}, MODEL, HORIZON)
    mean, trees_s = cpu_s(lambda: fit(tasks, arguments.seed))
    learned, learned_s = cpu_s(lambda: learn(mean))
    prior, prior_s = cpu_s(lambda: build(tasks, facts, pool, arguments.seed, mean=mean, learned=learned))
    ours_s = trees_s + learned_s
    pair, theirs_s = cpu_s(lambda: fit_pair(tasks, arguments.seed))
    runs = seen(pool, size["observations"])
    losses = (2.0,) * LEVELS
    transfer = Transfer(prior, HORIZON, losses, equal_steps=True)
    published = QuickTune(
        prior, HORIZON, losses, equal_steps=True, surrogate=pair, features=features(facts), refit="full"
    )

    def ask(strategy: Any, number: int) -> float:
        view = View(number, runs, Budget("time", 1e9), 0.0, lambda config, start, stop: float(stop - start))
        return cpu_s(lambda: strategy.propose(view))[1]

    ours = [ask(transfer, number) for number in range(size["asks"])]
    theirs = [ask(published, number) for number in range(size["their_asks"])]
    summary = {
        "ask_p50_ms": 1000 * median(ours),
        "ask_p99_ms": 1000 * float(np.percentile(ours, 99)),
        "ask_speedup": median(theirs) / median(ours),
        "meta_training_s": ours_s,
        "meta_training_speedup": theirs_s / ours_s,
        "prior_s": prior_s,
        **size,
    }
    details = {"asks_s": ours, "their_asks_s": theirs, "their_meta_training_s": theirs_s}
    finish(arguments, "search_latency", summary, record(arguments, **details))


if __name__ == "__main__":
    main()
