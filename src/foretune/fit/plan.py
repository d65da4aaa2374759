"""`plan`: what a fit will take and what is recommended, in seconds and without torch.

Rows, model and machine are looked at, the first configuration comes from the priors, the layout from what fits, the
times from the best source there is (a probe, earlier runs here, a calibration, a table). A plan changes nothing: it
reads, except that a data set of the catalogue is fetched when it is not there. Splits are counted by their shares;
that duplicates are removed first is not foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foretune.catalogue.methods.measured import step_factor
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.regularizers import NONE, SETTING, check_kind
from foretune.catalogue.rules import Advice
from foretune.catalogue.selection import kept_rows
from foretune.config.resolve import Recommended, Resolution, resolve
from foretune.config.spec import FitSpec
from foretune.cost.correction import Outcome, correction
from foretune.cost.forecast import SEARCH_PHASES, Forecast, forecast
from foretune.cost.machine import Machine
from foretune.cost.memory import Layout
from foretune.cost.operations import row_operations, scoring_operations
from foretune.cost.phases import score_copies, train_copies
from foretune.cost.placement import Placement, place
from foretune.cost.rates import Throughput
from foretune.cost.request import Budget, DataSize, ForecastRequest, Measured, RunSettings
from foretune.cost.shapes import ModelShapes
from foretune.data.formats import LABEL_SETS
from foretune.errors import UsageError
from foretune.experience.past import PastRun
from foretune.fit.advice import advice_for, advised_configuration
from foretune.fit.find_model import ModelFacts, find_model
from foretune.fit.folder import finished_runs
from foretune.fit.keeping import Offer, ranked
from foretune.fit.layout import device_of, freedom, layout_of, rates_of
from foretune.fit.method_choice import (
    check_method,
    trainable_parameters,
    with_trainable_share,
)
from foretune.fit.outlook import (
    affordable_evaluation,
    evaluation_settings,
    offered_in,
    with_horizon,
    with_room_to_reason,
)
from foretune.fit.planned_rows import PlannedRows, planned_rows
from foretune.fit.selected import check_selection, selection_work
from foretune.fit.strategy import Outlook, check_search, planned_proposals
from foretune.search.zero_shot import DEFAULT_METHODS
from foretune.units import format_bytes, format_duration, format_share

DEFAULT_TIME_S = 1800.0
_DEFAULT_CONTEXT_TOKENS = 2048

Probe = Callable[["Draft"], Measured]


@dataclass(frozen=True)
class Draft:
    """What a probe needs to know: everything but the times."""

    resolution: Resolution
    model: ModelFacts
    rows: PlannedRows
    layout: Layout
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The answer of `plan`."""

    resolution: Resolution
    """Every setting with its origin; recommended values carry their evidence"""
    config: Mapping[str, Any]
    """The first configuration after the default LoRA, flat"""
    why: str
    model: ModelFacts
    rows: PlannedRows
    machine: Machine
    placement: Placement
    forecast: Forecast
    budget: Budget
    trainable: int
    request: ForecastRequest
    """What the forecast was made from"""
    advice: Advice
    """What published and measured rules say here; the configuration starts from it"""
    notes: tuple[str, ...] = ()
    outlook: Outlook = field(default_factory=Outlook)
    """What a search would try first by earlier runs"""
    keeping: tuple[Offer, ...] = ()
    """Selections that the search compares with all rows, for ``--keep auto``"""

    @property
    def fits(self) -> bool:
        """Whether a step fits into the memory that is free."""
        return self.placement.fits

    def to_json(self) -> dict[str, Any]:
        """A JSON form of everything a person or a program may ask of a plan."""
        shapes, layout, peak = self.model.shapes, self.placement.layout, self.placement.peak
        return {
            "fits": self.fits,
            "model": {
                "source": self.model.source,
                "architecture": shapes.architecture,
                "kind": shapes.kind,
                "parameters": shapes.parameters,
                "fetched": self.model.fetch_bytes == 0,
            },
            "data": self.rows.to_json(),
            "machine": self.machine.to_json(),
            "layout": {
                "device": layout.device,
                "dtype": layout.dtype,
                "quantize": layout.quantize,
                "micro_batch_tokens": layout.micro_batch_tokens,
                "gradient_checkpointing": layout.gradient_checkpointing,
                "changes": list(self.placement.changes),
            },
            "memory": {
                "room_bytes": self.placement.room_bytes,
                "weights": peak.weights,
                "trained": peak.trained,
                "activations": peak.activations,
                "logits": peak.logits,
                "framework": peak.framework,
            },
            "recommended": {"config": dict(self.config), "why": self.why, "trainable_parameters": self.trainable,
                            "trainable_share": self.trainable / shapes.parameters},
            "rules": [{"id": rule.id, "rule": rule.citation, "advice": dict(rule.advice), "avoid": list(rule.avoid)}
                      for rule in self.advice.cited],
            "forecast": self.forecast.to_json(),
            "settings": {
                key: {"value": item.value, "origin": item.origin, "evidence": item.evidence}
                for key, item in self.resolution.values.items()
            },
            "search": self.outlook.search,
            "experience": self.outlook.experience,
            "proposals": [proposed.to_json() for proposed in self.outlook.proposals],
            "notes": list(self.notes),
        }  # fmt: skip


def plan(
    data: str | Path | None = None,
    *,
    model: str | None = None,
    time: str | float | None = None,
    price_per_hour: str | float | None = None,
    config: Path | None = None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    probe: Probe | None = None,
    machine: Machine | None = None,
    matmul: Callable[[Machine], float] | None = None,
    history: Sequence[Throughput] = (),
    outcomes: Sequence[Outcome] = (),
    runs: Sequence[PastRun] = (),
) -> Plan:
    """The forecast and the recommended configuration of ``fit`` with the same settings.

    ``options`` are further settings by dotted key. ``probe`` measures with the weights loaded. ``history``,
    ``outcomes`` and ``runs`` (what to try first) come from the experience; ``machine`` and ``matmul`` replace what is
    found out here. Raises `UsageError`, `DataError`, `ModelError`, and `BudgetError` for a budget below one step.
    """
    given = {"data.path": None if data is None else str(data), "model.source": model, "budget.time": time,
             "budget.price_per_hour": price_per_hour, **(options or {})}  # fmt: skip
    machine = machine or _detected()
    resolution, facts, rows, share_said = _understood(resolve(file=config, sets=list(sets), options=given))
    train_rows = kept_rows(resolution.fixed_training(), rows.train)
    device = device_of(resolution.spec, machine)
    rules = advice_for(resolution.spec, facts.shapes, task=rows.task, format=rows.format, rows=train_rows)
    advised, why = advised_configuration(resolution, facts.shapes, train_rows, rules)
    trainable, full = trainable_parameters(facts.shapes, advised)
    layout = layout_of(resolution, machine, device, advised, facts, rows)
    room = resolution.spec.memory.limit or machine.room_bytes(device)
    heaviest = facts.shapes.parameters if _tries_full(resolution, facts.shapes) else trainable
    placement = place(
        facts.shapes, layout, room, trainable=heaviest, full=full or heaviest > trainable, freedom=freedom(resolution)
    )
    measured = None
    if probe is not None:
        measured = probe(Draft(resolution, facts, rows, placement.layout, advised))
    rates = rates_of(machine, placement.layout, facts.shapes, history, matmul)
    budget, budget_advice = _budget(resolution.spec)
    request = ForecastRequest(
        shapes=facts.shapes, machine=machine, rates=rates,
        data=DataSize(train_rows, rows.validation, rows.test, rows.count.row), layout=placement.layout,
        run=RunSettings(
            trainable, full, int(advised["rows_per_update"]), float(advised["epochs"]),
            step_factor(str(advised["method"]), accelerated=device == "cuda"),
        ),
        budget=budget,
        baseline=_baseline(facts.shapes, advised),
        selection=selection_work(resolution.fixed_training(), rows, facts.shapes.width),
        evaluation=evaluation_settings(resolution.spec, facts.shapes.kind, rows.task, rows.validation),
        workers=resolution.spec.search.workers,
        price_per_hour=resolution.spec.budget.price_per_hour, deploy=resolution.spec.output.deploy,
        fetch_bytes=facts.fetch_bytes, measured=measured, correction=correction(outcomes),
    )  # fmt: skip
    request, evaluation_advice = affordable_evaluation(request, resolution)
    if keeping := offered_in(request, resolution.spec, rows):
        request = replace(request, selection=ranked(keeping))
    request = with_horizon(request, resolution, keeping)
    answer = forecast(request, placement)
    advice = {**_advice(advised, why, placement, rows), **budget_advice, **evaluation_advice}
    notes = (share_said, _untold(resolution.spec, facts, rows), *(offer.sentence() for offer in keeping))
    return Plan(
        resolution.recommend(advice), advised, why, facts, rows, machine, placement, answer, budget, trainable,
        request, rules, (*filter(None, notes), *_notes(facts, rows, placement, answer, request)),
        planned_proposals(
            resolution, facts.shapes, rows, answer.steps_per_run, runs, rules,
            accelerated=placement.layout.device == "cuda",
        ),
        keeping,
    )  # fmt: skip


def _understood(resolution: Resolution) -> tuple[Resolution, ModelFacts, PlannedRows, str]:
    """The settings as model and rows complete them, the model and the rows, and what was said of the trainable share.

    Whatever does not go together is refused here.
    """
    facts = find_model(resolution.spec.model.source, revision=resolution.spec.model.revision)
    _check_kind(resolution.spec, facts)
    resolution, share_said = with_trainable_share(resolution, facts.shapes)
    check_method(resolution, facts.shapes)
    rows = planned_rows(resolution.spec, facts, context_tokens(resolution.spec, facts.shapes))
    _check_task(facts, rows)
    _check_instruction(resolution.spec, rows)
    check_search(resolution, facts.shapes)
    if (earlier := resolution.spec.search.warm_start) is not None:
        finished_runs(Path(earlier))
    _check_regularizers(resolution, facts, rows)
    check_selection(resolution.spec, facts.shapes.kind)
    return with_room_to_reason(resolution, rows), facts, rows, share_said


def _detected() -> Machine:
    from foretune.execution.machine import detect

    return detect()


def _check_kind(spec: FitSpec, facts: ModelFacts) -> None:
    if spec.model.kind not in ("auto", facts.shapes.kind):
        raise UsageError(
            f"model.kind is {spec.model.kind}, but {facts.source} is a {facts.shapes.kind} model.",
            remedy="Leave it out, or choose another --model.",
        )


def _check_task(facts: ModelFacts, rows: PlannedRows) -> None:
    if facts.shapes.kind == "encoder" and rows.task not in ("classification", "regression"):
        several = rows.format == LABEL_SETS
        raise UsageError(
            f"{facts.source} is an encoder, which writes no text, and the task is {rows.task}.",
            remedy="Choose a causal --model, which names the labels of a row, or say --task classification: every "
            "combination of labels is a class then."
            if several
            else "Choose a causal --model, or name the label column (data.columns.label).",
        )


def _check_instruction(spec: FitSpec, rows: PlannedRows) -> None:
    if spec.data.instruction is not None and rows.task == "language-modelling":
        raise UsageError(
            "plain text has no questions for an instruction to stand before.",
            remedy="Leave data.instruction out, or name a column of answers or labels.",
        )


def _untold(spec: FitSpec, facts: ModelFacts, rows: PlannedRows) -> str:
    """What a base model that writes its labels is not told, where nobody tells it."""
    labelled = rows.task == "classification" or rows.format == LABEL_SETS
    if not labelled or facts.shapes.kind == "encoder" or spec.data.instruction:
        return ""
    return "every text is asked alone, so the base model does not know the labels; --instruction says them before it"


def _check_regularizers(resolution: Resolution, facts: ModelFacts, rows: PlannedRows) -> None:
    fixed, kind = resolution.fixed_training(), facts.shapes.kind
    check_kind(
        str(fixed.get(SETTING, NONE)),
        kind,
        regression=kind == "encoder" and rows.task == "regression",
        quantized=resolution.spec.model.quantize == "4bit",
    )


def context_tokens(spec: FitSpec, shapes: ModelShapes) -> int:
    """The longest row in tokens: as set, at most what the model's positions allow."""
    wanted = spec.data.context_tokens or _DEFAULT_CONTEXT_TOKENS
    return min(wanted, shapes.context_tokens) if shapes.context_tokens else wanted


def _baseline(shapes: ModelShapes, config: Mapping[str, Any]) -> RunSettings:
    """The default LoRA with the amount of training of ``config``."""
    trainable, _ = trainable_parameters(shapes, DEFAULT_LORA)
    return RunSettings(trainable, False, int(config["rows_per_update"]), float(config["epochs"]))


def _tries_full(resolution: Resolution, shapes: ModelShapes) -> bool:
    """Whether the search tries full tuning beside what is recommended."""
    return "method" not in resolution.fixed_training() and "full" in DEFAULT_METHODS[shapes.kind]


def _budget(spec: FitSpec) -> tuple[Budget, dict[str, Recommended]]:
    chosen = spec.budget
    if chosen.trials is not None:
        return Budget("trials", chosen.trials), {}
    if chosen.steps is not None:
        return Budget("steps", chosen.steps), {}
    if chosen.cost is not None and chosen.price_per_hour:
        return Budget("time", 3600.0 * chosen.cost / chosen.price_per_hour), {}
    if chosen.time is not None:
        return Budget("time", chosen.time), {}
    said = Recommended(DEFAULT_TIME_S, f"no budget was given: {format_duration(DEFAULT_TIME_S)}")
    return Budget("time", DEFAULT_TIME_S), {"budget.time": said}


def _advice(
    config: Mapping[str, Any], why: str, placement: Placement, rows: PlannedRows
) -> dict[str, Recommended]:  # fmt: skip
    layout = placement.layout
    fits = " and ".join(placement.changes) or f"fits into {format_bytes(placement.room_bytes)}"
    advice = {f"training.{name}": Recommended(value, why) for name, value in config.items()}
    advice["data.task"] = Recommended(rows.task, "found from the rows")
    advice["data.format"] = Recommended(rows.format, "found from the rows")
    advice["model.dtype"] = Recommended(layout.dtype, f"what the {layout.device} computes in")
    advice["model.quantize"] = Recommended(layout.quantize, fits)
    advice["memory.micro_batch_tokens"] = Recommended(layout.micro_batch_tokens, fits)
    advice["memory.gradient_checkpointing"] = Recommended(layout.gradient_checkpointing, fits)
    return advice


def _notes(
    facts: ModelFacts, rows: PlannedRows, placement: Placement, answer: Forecast, request: ForecastRequest
) -> tuple[str, ...]:
    notes = [facts.note, *rows.notes, *placement.changes]
    if not placement.fits:
        notes.append(
            f"does not fit: about {format_bytes(placement.peak.total)} are needed and"
            f" {format_bytes(placement.room_bytes)} are free; choose a smaller model or another machine"
        )
    if answer.horizon_share < 1 and request.budget.kind == "time":
        notes.append(
            f"the time budget shortens every run to {format_share(answer.horizon_share)} of its"
            f" {request.run.epochs:g} epochs ({answer.steps_per_run} steps)"
        )
    paid = sum(p.seconds.value for p in answer.phases if p.in_budget and p.name not in SEARCH_PHASES)
    if request.budget.kind == "time" and paid > request.budget.total:
        notes.append(
            f"probe, base model, re-evaluation and comparison alone are forecast at {format_duration(paid)}:"
            " the time budget cuts them short"
        )
    elif request.budget.kind == "time" and answer.trials.value < 2:
        notes.append("the time budget leaves no room for a second trial: one configuration is all that will run")
    return tuple(note for note in notes if note)


def operations_per_token(plan: Plan, work: str) -> float:
    """Operations of training or scoring one real token under ``plan``: turns tokens per second into a rate."""
    request = plan.request
    shapes, row, run = request.shapes, request.data.row, request.first_run
    if work == "score":
        return scoring_operations(shapes, row, copies=score_copies(request)) / row.total
    operations = row_operations(
        shapes, row, trainable=run.trainable, full=run.full, copies=train_copies(request, run),
        checkpointing=request.layout.gradient_checkpointing,
    )  # fmt: skip
    return operations.training / row.total
