"""Earlier runs that look like real ones, from a formula: tasks with their own best rate, curves, noise and failures.

The best learning rate of a task lies a little off the rule's, in a direction that its row count tells; larger ranks
help where answers are long; full tuning is worse and slower. Losses fall like a power of the steps; very large rates
diverge. What is best on one task is therefore mostly good on the next: the situation that transfer is made for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from foretune.catalogue.priors import learning_rate
from foretune.experience.past import PastRun, Point
from foretune.search.encoding import Facts
from foretune.search.extras import Centre, extra
from foretune.search.fidelity import LEVELS, level_step
from foretune.seeding import generator

MODEL = {"kind": "causal", "parameters": 135_000_000, "width": 576, "layers": 30, "vocabulary": 49152}
NEW = 40
"""A task that is in no experience here"""
HORIZON = 200
METHODS = ("lora", "full")


def task_features(number: int) -> dict[str, Any]:
    """Meta-features of task ``number``."""
    stream = generator(number, "features")
    return {
        "log10_rows": 2.0 + 1.5 * float(stream.random()),
        "answer_tokens.mean": 2.0 + 60.0 * float(stream.random()),
        "prompt_tokens.mean": 20.0 + 60.0 * float(stream.random()),
        "base_loss": 1.5 + 2.0 * float(stream.random()),
        "compression_ratio": 2.0 + float(stream.random()),
        "metric": "exact_match",
    }


def facts(number: int) -> Facts:
    """What is known of a task before any run."""
    return Facts(task_features(number), MODEL, HORIZON)


def design(count: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """``count`` configurations, the same for all tasks."""
    centres = {}
    for method in METHODS:
        rate = learning_rate(method, width=576, kind="causal", rows_per_update=16, steps=HORIZON)
        from foretune.catalogue.priors import recommended

        base = recommended(method, width=576, kind="causal", steps=HORIZON).config
        centres[method] = Centre(base, rate, rate)
    return [config for k in range(count) if (config := extra(k, centres, (), seed, ())) is not None]


def final_gain(config: Mapping[str, Any], number: int, sign: float = 1.0) -> float:
    """The gain of a whole run, without noise."""
    features = task_features(number)
    rule = learning_rate(str(config["method"]), width=576, kind="causal", rows_per_update=16, steps=HORIZON)
    best = 0.15 + 0.2 * (features["log10_rows"] - 2.75)
    off = math.log10(float(config["learning_rate"]) / rule) - best
    value = 0.5 - 0.35 * off**2
    if config["method"] == "lora":
        value += 0.02 * math.log2(config["lora.rank"] / 16) * (1 if features["answer_tokens.mean"] > 30 else -0.5)
        value += {"all-linear": 0.06, "mlp": 0.0, "attention": -0.06}[str(config["lora.targets"])]
    else:
        value -= 0.08
    value -= 0.03 * (config["schedule"] == "constant")
    return sign * value * (0.7 + 0.15 * features["base_loss"])


def diverges(config: Mapping[str, Any]) -> bool:
    """Whether a run fails."""
    rule = learning_rate(str(config["method"]), width=576, kind="causal", rows_per_update=16, steps=HORIZON)
    return math.log10(float(config["learning_rate"]) / rule) > (0.4 if config["schedule"] == "constant" else 0.65)


def run(config: Mapping[str, Any], number: int, *, seed: int = 0, sign: float = 1.0, key: str = "") -> PastRun:
    """One run with six points on validation and one on test."""
    features = task_features(number)
    end = final_gain(config, number, sign)
    stream = generator(number, "run", seed, str(sorted(config.items())))
    base, points, before = features["base_loss"], [], 0
    failed = diverges(config)
    speed = (1.0 if config["method"] == "lora" else 2.5) * (1 + 0.1 * float(stream.standard_normal()))
    bend = 0.25 + 0.1 * float(stream.random())
    for level in range(LEVELS if not failed else 2):
        step = level_step(HORIZON, level)
        gain = end - bend * abs(end) * ((step / HORIZON) ** -0.35 - 1) + 0.004 * float(stream.standard_normal())
        loss = base * math.exp(-gain)
        metrics = {"loss": (loss, 0.02, 64)}
        if level >= LEVELS - 2:
            metrics["exact_match"] = (min(1.0, max(0.0, 0.2 + gain)), 0.05, 24)
        points.append(
            Point(step, "validation", metrics, 0.5 * speed * (step - before), 1.0, 700 * (step - before),
                  {"loss": (base, 0.02, 64), "exact_match": (0.1, 0.05, 24)})
        )  # fmt: skip
        before = step
    if not failed:
        tested = base * math.exp(-end + 0.004 * float(stream.standard_normal()))
        test = {"loss": (tested, 0.01, 200)}
        points.append(Point(HORIZON, "test", test, 0.0, 2.0, 0, {"loss": (base, 0.01, 200)}))
    name = key or f"t{number}-{abs(hash(str(sorted(config.items())))) % 10**8}-{seed}"
    return PastRun(
        run=name, task=f"task{number}", task_features=features, model="model", model_features=MODEL,
        hardware="machine", hardware_features={}, config=dict(config), horizon=HORIZON, seed=seed,
        status="diverged" if failed else "finished", arm="", study="synthetic", pair="", points=tuple(points),
        peak_bytes=int(1.4e9 + 1e6 * float(config.get("lora.rank", 500))),
    )  # fmt: skip


def experience(tasks: int = 8, configs: int = 24, *, sign: float = 1.0, first: int = 0) -> list[PastRun]:
    """Runs of one design on several tasks."""
    listed = design(configs)
    return [
        run(config, number, sign=sign, key=f"t{number}-c{k}")
        for number in range(first, first + tasks)
        for k, config in enumerate(listed)
    ]
