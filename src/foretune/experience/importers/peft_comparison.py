"""Results of peft's method comparison: one JSON file a run (``method_comparison/*/results`` of huggingface/peft).

Each file is one peft method on one model: its configuration, training loss and validation accuracy along the run, test
accuracy at the end, time and memory. Fields differ between methods and versions, and failed runs lack most of them:
everything but the step count is optional here. A loss that is not finite ends the curve, and the run has diverged.

Validation there uses 50 items and the test all of GSM8K; other counts are taken from the file where it has them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.experience.importers.base import UNKNOWN_ERROR, ImportedRun, Subject, ended, finite, slug, subject
from foretune.experience.records import RunRecord, Seen
from foretune.files import fingerprint

STUDY = "peft-method-comparison"
VALIDATION_ITEMS = 50
TEST_ITEMS = 1319
PSEUDO_ITEMS = 4
"""Agresti and Coull 1998: an accuracy of n items is judged as if two more were right and two more wrong."""
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|\boom\b", re.IGNORECASE)
_SKIPPED = frozenset({"peft_type", "task_type", "peft_version", "base_model_name_or_path", "auto_mapping", "revision"})
"""Fields of a peft configuration that are no setting of the method."""
_RENAMED = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}


def read(path: Path) -> Iterator[ImportedRun]:
    """The run in a file. Raises `StoreError` when it is none of peft's results."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        run_info, train_info = content["run_info"], content["train_info"]
        train_config = run_info["train_config"]
        horizon = int(train_config["max_steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"this is no result of peft's method comparison ({error!r}).", place=Place(path)) from error
    meta = content.get("meta_info") or {}
    name = slug(run_info.get("experiment_name") or path.stem, slash=True)
    identity = fingerprint([name, run_info.get("created_at"), train_config, run_info.get("peft_config")])
    seen, diverged = _seen(train_info.get("metrics") or [], train_info)
    status = _status(train_info, run_info, diverged)
    task = subject("task", _task(train_config, meta))
    facts = _model(train_config, train_info)
    model = Subject(fingerprint(["model", facts["name"], facts["dtype"]]), facts)
    hardware = subject("hardware", {"accelerator": slug((meta.get("system_info") or {}).get("accelerator", "unknown"))})
    yield ImportedRun(
        record=RunRecord(
            id=f"{STUDY}.{identity}", task=task.key, model=model.key, hardware=hardware.key, config="",
            seed=int(finite(train_config.get("seed")) or 0), horizon=max(1, horizon), arm=name, study=STUDY,
            versions=_versions(meta.get("package_info") or {}),
        ),
        task=task,
        model=model,
        hardware=hardware,
        config=_config(train_config, run_info.get("peft_config")),
        seen=seen,
        status=status,
        peak_bytes=int(finite(train_info.get("accelerator_memory_max")) or 0),
    )  # fmt: skip


def _status(train_info: Mapping[str, Any], run_info: Mapping[str, Any], diverged: bool) -> str:
    said = str(train_info.get("status", "")).lower()
    if said != "success" and _OUT_OF_MEMORY.search(f"{run_info.get('error_msg', '')} {said}"):
        return "oom"
    status = "finished" if said == "success" else ended(said)
    return "diverged" if diverged and status == "finished" else status


def _seen(metrics: Sequence[Mapping[str, Any]], train_info: Mapping[str, Any]) -> tuple[tuple[Seen, ...], bool]:
    """The points of a run, and whether its loss stopped being a number."""
    found: list[Seen] = []
    before = 0
    for entry in metrics:
        step = finite(entry.get("step"))
        if step is None:
            continue
        if "train loss" in entry and finite(entry["train loss"]) is None:
            return tuple(found), True
        train_s, eval_s = finite(entry.get("train time")) or 0.0, finite(entry.get("eval time")) or 0.0
        tokens = round((finite(entry.get("tokens / sec")) or 0.0) * train_s)
        samples = int(finite(entry.get("train samples")) or 0)
        if (loss := finite(entry.get("train loss"))) is not None and "valid accuracy" in entry:
            scores = {"loss": (loss, UNKNOWN_ERROR, max(0, samples - before))}
            found.append(Seen(int(step), "train", scores))  # what it took stands beside the validation
        before = samples
        for key, split, items in (("valid accuracy", "validation", VALIDATION_ITEMS),
                                  ("test accuracy", "test", TEST_ITEMS)):  # fmt: skip
            if (share := finite(entry.get(key))) is not None:
                scores = {"accuracy": (share, _share_error(share, items), items)}
                if split == "test" and (forgot := finite(entry.get("forgetting"))) is not None:
                    scores["forgetting"] = (forgot, UNKNOWN_ERROR, 0)
                seconds = (train_s, eval_s) if split == "validation" else (0.0, 0.0)
                found.append(Seen(int(step), split, scores, *seconds, tokens if split == "validation" else 0))
    return tuple(found), False


def _share_error(share: float, items: int) -> float:
    counted = items + PSEUDO_ITEMS
    adjusted = (share * items + PSEUDO_ITEMS / 2) / counted
    return math.sqrt(max(adjusted * (1 - adjusted), 0.0) / counted)


def _task(train_config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    names = sorted(meta.get("dataset_info") or {}) or ["metamath", "gsm8k"]
    return {
        "name": slug("-".join(names)),
        "task": "generation",
        "metric": "accuracy",
        "context_tokens": finite(train_config.get("max_seq_length")),
        "template": fingerprint(train_config.get("query_template")),
    }


def _model(train_config: Mapping[str, Any], train_info: Mapping[str, Any]) -> dict[str, Any]:
    total, trained = (finite(train_info.get(key)) for key in ("num_total_params", "num_trainable_params"))
    base = None if not total else total - (trained or 0.0)
    found = {
        "name": slug(train_config.get("model_id", "unknown"), slash=True),
        "kind": "causal",
        "dtype": slug(train_config.get("dtype", "unknown")),
        "parameters": None if base is None else float(f"{base:.2g}"),  # methods count shared weights differently
    }
    return {key: value for key, value in found.items() if value is not None}


def _config(train_config: Mapping[str, Any], peft_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The flat configuration: our names where we have them, the method's own fields under its name."""
    method = slug((peft_config or {}).get("peft_type", "full")).lower()
    optimizer = train_config.get("optimizer_kwargs") or {}
    config: dict[str, Any] = {
        "method": method,
        "learning_rate": finite(optimizer.get("lr")),
        "weight_decay": finite(optimizer.get("weight_decay")) or 0.0,
        "rows_per_update": finite(train_config.get("batch_size")),
        "schedule": train_config.get("lr_scheduler") or "constant",
        "max_gradient_norm": finite(train_config.get("grad_norm_clip")),
        "optimizer": train_config.get("optimizer_type"),
    }
    for key, value in (peft_config or {}).items():
        if key not in _SKIPPED and (plain := _plain(value)) is not None:
            config[f"{method}.{_RENAMED.get(key, slug(key))}"] = plain
    return {key: value for key, value in config.items() if value is not None}


def _plain(value: Any) -> Any:
    """A setting's value as the store takes it; None for what it cannot say (mappings, nothing)."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "+".join(sorted(slug(item) for item in value))
    if isinstance(value, bool | str):
        return value if value != "" else None
    return finite(value)


def _versions(packages: Mapping[str, Any]) -> dict[str, str]:
    return {
        key.removesuffix("-version"): slug(value)
        for key, value in packages.items()
        if key.endswith("-version") and value
    }
