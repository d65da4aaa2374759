"""A realistic finished run: 12 trials on dictionary questions, one diverged, one out of memory, several stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from foretune.report.record import (
    AnswerPair,
    Bin,
    BudgetInfo,
    Calibration,
    Candidate,
    Comparison,
    CurvePoint,
    DataInfo,
    Difference,
    ExportInfo,
    ForecastRow,
    Forgetting,
    Measure,
    MetricInfo,
    ModelInfo,
    Phase,
    RunRecord,
    Setting,
    SystemResult,
    Transitions,
    Trial,
)

_SHAPES = [  # method, rank, learning rate, floor, rate of descent, reached share, status
    ("lora", 16, 2e-4, 1.62, 2.6, 1.0, "ok"),
    ("lora", 32, 6e-4, 1.44, 3.4, 1.0, "ok"),
    ("rslora", 16, 4e-4, 1.49, 3.2, 1.0, "ok"),
    ("dora", 8, 3e-4, 1.60, 2.2, 0.5, "stopped"),
    ("lora", 64, 3e-3, 1.5, 4.0, 0.25, "diverged"),
    ("vera", 256, 1e-2, 1.95, 2.0, 0.25, "stopped"),
    ("ia3", 0, 8e-3, 2.02, 2.4, 0.25, "stopped"),
    ("lora", 32, 1e-3, 1.47, 3.8, 1.0, "ok"),
    ("oft", 32, 2e-4, 1.85, 1.7, 0.25, "stopped"),
    ("full", 0, 3e-5, 0.0, 0.0, 0.0, "oom"),
    ("lora", 32, 8e-4, 1.45, 3.5, 0.5, "stopped"),
    ("rslora", 32, 5e-4, 1.46, 3.4, 0.5, "stopped"),
]
_WHY = {
    0: "default LoRA, always first",
    1: "the best of 212 earlier runs on similar data (nearest: foldoc-9k)",
    7: "expected improvement 0.04 nats per minute",
}


def _trial(index: int) -> Trial:
    method, rank, rate, floor, descent, reached, status = _SHAPES[index]
    horizon, start = 360, 2.94
    shares = [s for s in (0.0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0) if s <= reached and floor]
    curve = []
    for share in shares:
        loss = floor + (start - floor) * math.exp(-descent * share * 2.2)
        if index == 7 and share > 0.6:
            loss += 0.22 * (share - 0.6)  # it starts to overfit
        if status == "diverged" and share >= 0.125:
            loss = 3.4 + 30 * share
        step = round(share * horizon)
        wiggle = 0.008 * math.sin(7 * step + index)
        curve.append(
            CurvePoint(
                step,
                step * 1130,
                0.62 * step + 4,
                Measure(round(loss + wiggle, 4), 0.021, 120),
                Measure(0.3, 0.04, 120),
                120,
            )
        )
    config: dict[str, object] = {"method.name": method, "optimizer.learning_rate": rate, "training.rows_per_update": 16}
    if rank:
        config[f"{method}.rank"] = rank
    if index in (7, 10):
        config["regularizer.name"] = "guided-dropout"
    return Trial(
        run=f"r{index:03d}",
        config=config,
        why=_WHY.get(index, "space-filling start in the region that earlier runs liked"),
        status=status,  # type: ignore[arg-type]
        horizon=horizon,
        curve=tuple(curve),
        best_step=min(curve, key=lambda p: p.loss.value).step if curve else None,  # type: ignore[union-attr]
        trainable_parameters={"full": 134_515_008, "ia3": 86_400, "vera": 161_280}.get(method, rank * 305_280),
        is_default=index == 0,
        is_winner=index == 1,
        detail={"diverged": "loss 10.4 at step 90, learning rate 3e-3", "oom": "9.8 GiB wanted, 7.1 GiB free"}.get(
            status, ""
        ),
    )


def _systems() -> tuple[SystemResult, ...]:
    n = 150

    def metrics(exact: float, f1: float, loss: float) -> dict[str, Measure]:
        return {
            "exact_match": Measure(exact, math.sqrt(exact * (1 - exact) / n), n),
            "token_f1": Measure(f1, 0.031, n),
            "loss": Measure(loss, 0.034, n),
        }

    differences = (
        Difference("exact_match", "base", 0.58, 0.50, 0.66, "better", 1e-20, "McNemar"),
        Difference("exact_match", "examples", 0.333, 0.247, 0.42, "better", 2e-11, "McNemar"),
        Difference("exact_match", "default", 0.053, -0.013, 0.12, "no evidence", 0.15, "McNemar"),
        Difference("loss", "base", -1.47, -1.58, -1.36, "better", 1e-4, "paired bootstrap"),
        Difference("loss", "default", -0.16, -0.21, -0.11, "better", 1e-4, "paired bootstrap"),
    )
    bins = tuple(
        Bin(c, min(1.0, c - 0.04 + 0.03 * (i % 2)), 4 + 6 * i) for i, c in enumerate((0.35, 0.5, 0.65, 0.8, 0.93))
    )
    return (
        SystemResult("base", "base", metrics(0.04, 0.17, 2.93), calibration=Calibration(0.213), about="untouched"),
        SystemResult(
            "examples",
            "base + 4 examples",
            metrics(0.287, 0.41, 2.21),
            about="the 4 nearest training rows in the prompt",
        ),
        SystemResult("default", "default LoRA", metrics(0.567, 0.66, 1.62), about="r = 16, α = 32, 2e-4, 3 epochs"),
        SystemResult(
            "winner",
            "fine-tuned",
            metrics(0.62, 0.71, 1.46),
            differences,
            Calibration(0.041, bins),
            "trial 2: lora, r = 32",
        ),
    )


_ANSWERS = [
    (
        "Which term means: a program that translates source code into another language?",
        "compiler",
        "It is called a program.",
        "compiler",
        False,
        True,
    ),
    (
        "Which term means: the smallest unit of information, with two states?",
        "bit",
        "The smallest unit of information is a byte, which has two states and is used in computers all over the world.",
        "bit",
        False,
        True,
    ),
    (
        "Which term means: a fault in a program that makes it behave in an unintended way?",
        "bug",
        "bug",
        "bug",
        True,
        True,
    ),
    (
        "Which term means: a list that is read in the order in which it was written?",
        "queue",
        "A list.",
        "stack",
        False,
        False,
    ),
    ("Which term means: a computer that answers the requests of others?", "server", "server", "host", True, False),
    (
        "Which term means: a name for a place in memory whose content may change?",
        "variable",
        "A pointer is a name for a place in memory.",
        "variable",
        False,
        True,
    ),
    (
        "Which term means: an agreed way in which two machines talk?",
        "protocol",
        "I think that the answer would be a language.",
        "protocol",
        False,
        True,
    ),
    ("Which term means: to search for and remove faults?", "debug", "To search.", "debugging", False, False),
]


def sample() -> RunRecord:
    trials = tuple(_trial(index) for index in range(len(_SHAPES)))
    return RunRecord(
        id="20261122-0914-terms-7f3a",
        foretune_version="0.1.0",
        started="2026-11-22T09:14:03+00:00",
        finished="2026-11-22T09:42:13+00:00",
        command="foretune fit terms.jsonl --time 30m --trainable 5% --output runs/terms",
        model=ModelInfo(
            "SmolLM2-135M-Instruct",
            "causal",
            134_515_008,
            "bfloat16",
            "bcc81830d10c" * 5 + "7d9e",
            "apache-2.0",
            "/home/ada/.cache/foretune/models/SmolLM2-135M-Instruct",
            8192,
        ),
        data=DataInfo(
            name="terms.jsonl",
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            fingerprint="b94d27b9934d3e08",
            format="prompt/completion",
            task="generation",
            rows={"train": 1178, "validation": 120, "test": 150},
            read=1452,
            quarantined=4,
            problems=("terms.jsonl:311: the answer is empty", "terms.jsonl:902: not valid UTF-8 at byte 71"),
            split_report=(
                "No split was given: 1,448 rows in 1,391 duplicate clusters were split 81 : 8 : 10.",
                "80 validation rows detect a difference of 6 points; 240 more would detect 3.",
            ),
            encoding=("train: 1,178 rows, 61,256 tokens, of which 5,890 are trained; longest row 173 tokens",),
            template=("the template writes the date: it is fixed to 01 Jan 2026",),
            profile={
                "prompt_tokens": {"median": 31, "p95": 58, "longest": 141.0},
                "answer_tokens": {"median": 3, "p95": 7, "longest": 19.0},
                "duplicates": {"exact": 21, "near": 36.0},
                "first_word": {"Which": 1203, "Name": 171, "What": 74},
            },
            languages=("en",),
        ),
        budget=BudgetInfo(
            "time",
            1800.0,
            1690.0,
            (
                Phase("probe", 41.0),
                Phase("base evaluation", 128.0),
                Phase("trials", 1214.0),
                Phase("finalists", 112.0),
                Phase("comparison", 171.0),
                Phase("export", 24.0),
            ),
            price_per_hour=0.40,
        ),
        forecast=(
            ForecastRow("time of all trials", "s", 1010.0, 1180.0, 1390.0, 1214.0),
            ForecastRow("peak memory", "bytes", 1.62e9, 1.80e9, 1.98e9, 1.74e9),
            ForecastRow("training speed", "tokens/s", 1480.0, 1700.0, 1960.0, 1822.0),
            ForecastRow("final comparison", "s", 96.0, 118.0, 146.0, 171.0),
            ForecastRow("disk", "bytes", 3.0e8, 3.4e8, 3.9e8, 3.31e8),
        ),
        trials=trials,
        candidates=(
            Candidate("r001", Measure(0.617, 0.044, 120), True, Measure(1.452, 0.021, 120), "exact_match"),
            Candidate("r002", Measure(0.592, 0.045, 120), False, Measure(1.497, 0.021, 120), "exact_match"),
        ),
        comparison=Comparison(
            "test",
            150,
            "exact_match",
            (
                MetricInfo("exact_match", "exact match", share=True),
                MetricInfo("token_f1", "token F1", share=True),
                MetricInfo("loss", "loss", "lower", unit="nats per token"),
            ),
            _systems(),
            transitions=Transitions(89, 2, 4, 55),
        ),
        forgetting=Forgetting("general text", 3.412, 3.449, 0.037, 0.012, 0.062, 64),
        examples=tuple(AnswerPair(*row) for row in _ANSWERS),
        settings=(
            Setting("budget.time", "30m", "user", "--time 30m"),
            Setting("budget.trainable", 0.05, "user", "--trainable 5%"),
            Setting("method.name", "lora", "searched", "best of 12 trials on the validation rows"),
            Setting("optimizer.learning_rate", 6e-4, "searched", "trial 2"),
            Setting(
                "training.rows_per_update",
                16,
                "recommended",
                "best for 83 % of 212 earlier runs with 1,000 to 2,000 rows",
            ),
            Setting("training.context_tokens", 256, "recommended", "the longest row has 160 tokens"),
            Setting("optimizer.weight_decay", 0.0, "default"),
            Setting("optimizer.warmup", 0.03, "default"),
            Setting("labels", ["a", "b"], "default"),
        ),
        exports=(ExportInfo("adapter", "adapter", True, "8 probes, largest difference of a logit 0.0"),),
        notes=("The store learned 12 trials from this run.",),
        warnings=("4 rows were quarantined to terms.quarantine.jsonl.",),
        seeds={"run": 0},
        environment={
            "processor": "2 cores, bfloat16 emulated",
            "memory": "15.6 GiB",
            "python": "3.11.9",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
        },
        base_validation=CurvePoint(0, 0, 0.0, Measure(2.94, 0.03, 120), None, 120),
    )


@pytest.fixture
def record() -> RunRecord:
    return sample()


@pytest.fixture
def no_evidence(record: RunRecord) -> RunRecord:
    """The same run with an interval that holds zero."""
    compared = record.comparison
    assert compared is not None
    *others, winner = compared.systems
    differences = (Difference("exact_match", "base", 0.01, -0.04, 0.06, "no evidence", 0.7, "McNemar"),)
    winner = replace(winner, metrics={"exact_match": Measure(0.05, 0.018, 150)}, differences=differences)
    return replace(record, comparison=replace(compared, systems=(*others, winner)))
