"""What is sent to a worker and what comes back, as values that survive JSON (nothing is pickled).

A *task* is a prepared folder with its splits; every job of one worker is about one task and one base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from foretune.catalogue.models import ModelReference

SPLITS = ("train", "validation", "test")
PREFIX_CACHE_BYTES = 2**29
"""Hidden states kept when nothing else is said: in bfloat16, 466,000 tokens of a model of width 576."""


@dataclass(frozen=True)
class TaskSpec:
    """A prepared task: what all runs on it share."""

    folder: str
    """Holds ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``: one `Example` in JSON a line."""
    task: str
    """generation, classification, regression or language-modelling"""
    model: ModelReference
    metric: str
    """The primary metric (its name in `evaluation.metrics`); ``loss`` is always measured as well."""
    labels: tuple[str, ...] = ()
    """Class names in their fixed order; empty unless classification."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks that rows are labelled with, in the order of their numbers; empty where there are none."""
    context_tokens: int = 2048
    """Longest row in tokens; longer prompts are cut on the left, answers never."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    micro_batch_tokens: int = 512
    """Tokens laid out in one forward pass."""
    gradient_checkpointing: bool = False
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES
    """Most memory for hidden states below the lowest adapted layer; 0 keeps none"""
    max_answer_tokens: int = 128
    """Longest generated answer."""
    plain_template: bool = False
    """Write rows without the chat template (base models without one)."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {**asdict(self), "labels": list(self.labels), "tasks": list(self.tasks)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskSpec:
        """The inverse of `to_json`."""
        names = {name: tuple(value.get(name, ())) for name in ("labels", "tasks")}
        fields = {**value, "model": ModelReference(**value["model"]), **names}
        return cls(**fields)


@dataclass(frozen=True)
class Job:
    """One order to a worker. ``kind`` picks the handler; ``payload`` is JSON.

    ``train``: a lease. ``probe``: base loss and step time. ``evaluate``: score a model (base, adapter or base with
    retrieved examples) on rows of a split. ``select``: rank the training rows. ``block``: a block
    of a selection's work. ``export``: write an adapter folder.
    """

    id: str
    kind: Literal["train", "probe", "select", "block", "evaluate", "export"]
    task: TaskSpec
    payload: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float | None = None
    """Seconds after which the worker stops at the next step or evaluation chunk; None for no limit."""


@dataclass(frozen=True)
class Event:
    """What a worker (or its overseer) reports about a job."""

    job: str
    kind: Literal["started", "beat", "rung", "step", "result", "failed"]
    payload: Mapping[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Runs jobs somewhere. It never decides, retries or scores."""

    def capacity(self) -> int:
        """How many jobs may run at once."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job."""
        ...

    def poll(self, timeout_s: float) -> list[Event]:
        """Events since the last call, waiting at most ``timeout_s`` for the first."""
        ...

    def stop(self, job_id: str) -> None:
        """Ask a job to stop at its next step; it still reports."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
