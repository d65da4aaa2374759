"""``plan --probe``: a few rows are prepared as a task, and a worker loads the model and is measured on them.

This is the one part of a plan that takes longer than seconds. The worker is the one that a fit starts, so what it
measures is what a fit will do; torch is imported there, not here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.catalogue.models import ModelReference
from foretune.cost.request import Measured
from foretune.errors import TrainingError, UsageError
from foretune.execution.local import LocalExecutor
from foretune.execution.types import SPLITS, Job, TaskSpec
from foretune.files import canonical_json, write_text
from foretune.fit.plan import context_tokens

if TYPE_CHECKING:
    from foretune.fit.plan import Draft

_PROBE_ROWS = 64  # a few updates and a few scored rows
_POLL_S = 1.0


def measure(draft: Draft) -> Measured:
    """Load the model of ``draft`` and time training and scoring on some of its rows.

    Raises `TrainingError` when the worker failed or measured nothing.
    """
    with tempfile.TemporaryDirectory(prefix="foretune-probe-") as folder:
        root = Path(folder)
        task = task_spec(draft, root / "task")
        payload = {
            "config": dict(draft.config),
            "rows": _PROBE_ROWS,
            "generation": draft.rows.task == "generation" and draft.resolution.spec.evaluation.generation,
        }
        with LocalExecutor(root / "logs") as executor:
            executor.submit(Job("probe", "probe", task, payload))
            return measured(_result(executor))


def _result(executor: LocalExecutor) -> Mapping[str, Any]:
    """The payload of the probe's result event. Raises `TrainingError` when it failed."""
    while True:
        for event in executor.poll(_POLL_S):
            if event.kind == "result":
                return event.payload
            if event.kind == "failed":
                why = str(event.payload.get("detail")).rstrip(".")
                raise TrainingError(
                    f"the probe failed ({event.payload.get('status')}): {why}.",
                    remedy="Plan without --probe; `foretune doctor` checks the machine.",
                )


def task_spec(draft: Draft, folder: Path) -> TaskSpec:
    """Prepare ``folder`` with the first rows as every split, and describe the task."""
    if draft.rows.result is None:
        raise UsageError("a probe needs the rows of the data.", remedy="Plan from a file.")
    examples = draft.rows.result.examples[:_PROBE_ROWS]
    text = "".join(canonical_json(example.to_json()) + "\n" for example in examples)
    for split in SPLITS:
        write_text(folder / f"{split}.jsonl", text)
    spec, layout = draft.resolution.spec, draft.layout
    labels = sorted({str(row.label) for row in draft.rows.result.examples if row.label is not None})
    shapes = draft.model.shapes
    return TaskSpec(
        folder=str(folder),
        task=draft.rows.task,
        model=ModelReference(
            source=draft.model.source,
            kind=shapes.kind,
            dtype="float32" if layout.dtype == "float32" else "bfloat16",
            quantize="4bit" if layout.quantize == "4bit" else "none",
            trust_remote_code=spec.model.trust_remote_code,
            revision=spec.model.revision,
        ),
        metric=spec.data.metric or "loss",
        labels=tuple(labels) if draft.rows.task == "classification" else (),
        context_tokens=context_tokens(spec, shapes),
        seed=spec.search.seed,
        device="cuda" if layout.device == "cuda" else "cpu",
        micro_batch_tokens=layout.micro_batch_tokens,
        gradient_checkpointing=layout.gradient_checkpointing,
        max_answer_tokens=spec.evaluation.max_answer_tokens,
        plain_template=spec.model.plain_template,
    )


def measured(result: Any) -> Measured:
    """What a probe reported, as an object or a mapping. Raises `TrainingError` where a speed is missing."""
    train, score = _number(result, "train_tokens_per_s"), _number(result, "score_tokens_per_s")
    if train <= 0 or score <= 0:
        raise TrainingError(
            "the probe could not measure a speed.", remedy="Plan without --probe, or look at the worker's log."
        )
    peak, load, answer = (_number(result, name) for name in ("peak_bytes", "load_s", "answer_s"))
    return Measured(train, score, int(peak), load, answer)


def _number(result: Any, name: str) -> float:
    value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
    number = float(value) if isinstance(value, int | float) else 0.0
    return number if math.isfinite(number) else 0.0
