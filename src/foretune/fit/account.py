"""The run as a `RunRecord`: everything measured, gathered once at the end for report, card and terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foretune import __version__
from foretune.evaluation.base import SHARE, MetricResult
from foretune.evaluation.compare import Comparison as Compared
from foretune.evaluation.compare import compare
from foretune.evaluation.metrics import METRICS, loss_unit
from foretune.evaluation.metrics.labels import calibration, reading_note
from foretune.execution.types import SPLITS
from foretune.fit.finals import System, differences, loss_elsewhere, metric_names, results
from foretune.fit.hindsight import Seen, forecast_rows
from foretune.fit.method_choice import trainable_parameters
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared
from foretune.fit.regularized import regularizer_notes
from foretune.fit.selected import selection_info
from foretune.models.fetch import folder_of
from foretune.report import record as r
from foretune.report.metric_words import WRITTEN
from foretune.search.ranking import Finalist
from foretune.search.runs import Run
from foretune.search.types import Score

VERSIONED = ("torch", "transformers", "peft", "accelerate", "numpy")
EXAMPLE_PAIRS = 200
"""Answer pairs kept in the record; the report chooses a few of them."""
RIGHT = 1.0


@dataclass(frozen=True)
class Outcome:
    """What the phases of a fit produced."""

    plan: Plan
    refined: Plan
    """The plan with its forecast made again from what the probe measured"""
    prepared: Prepared
    probe: Mapping[str, Any]
    runs: Sequence[Run]
    candidates: Sequence[Mapping[str, Any]]
    systems: Sequence[System]
    default: Finalist | None
    """The default LoRA at the step at which it answered"""
    base_validation: Mapping[str, Any]
    exported: Sequence[r.ExportInfo]
    phases: Mapping[str, float]
    used_s: float
    notes: Sequence[str]
    warnings: Sequence[str]
    started: str
    generation: bool
    command: str
    run_id: str
    selected: Mapping[str, Any]
    """What the selection kept; empty where all rows are trained on"""

    @property
    def winner(self) -> Run:
        """The run that was chosen."""
        return next(run for run in self.runs if run.id == self.candidates[0]["run"])

    @property
    def seen(self) -> Seen:
        """What is compared with the forecasts."""
        return Seen(self.plan, self.refined, self.probe, self.runs, self.used_s)


def record(outcome: Outcome) -> r.RunRecord:
    """The `RunRecord` of a finished fit."""
    plan, prepared = outcome.plan, outcome.prepared
    winner = outcome.candidates[0]
    names = metric_names(prepared.task.metric, prepared.task.model.kind, prepared.task.task)
    scored = results(outcome.systems, names)
    return r.RunRecord(
        id=outcome.run_id,
        foretune_version=__version__,
        started=outcome.started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        command=outcome.command,
        model=_model(plan, prepared, outcome.probe),
        data=_data(prepared, outcome.probe),
        budget=_budget(outcome),
        forecast=forecast_rows(outcome.seen),
        trials=tuple(_trial(run, outcome, winner) for run in outcome.runs),
        candidates=tuple(
            r.Candidate(c["run"], r.Measure(*c["loss"]), chosen=c is winner, loss=r.Measure(*c["loss"]))
            for c in outcome.candidates
        ),
        comparison=_comparison(outcome, names, scored),
        forgetting=_forgetting("general text", {system.role: system.general for system in outcome.systems}),
        forgetting_previous=_forgetting("earlier rows", {system.role: system.previous for system in outcome.systems}),
        examples=_examples(outcome, scored),
        settings=_settings(plan, outcome.runs, winner["run"]),
        exports=tuple(outcome.exported),
        notes=(
            *outcome.notes,
            *regularizer_notes(outcome.runs, winner, outcome.plan.placement.layout.device),
            *dict.fromkeys(
                f"What was lost of the earlier rows was not measured: {system.previous_refused}"
                for system in outcome.systems
                if system.previous_refused
            ),
        ),
        warnings=tuple(outcome.warnings),
        seeds={"search": prepared.task.seed},
        environment=environment(plan),
        base_validation=r.CurvePoint(0, 0, 0.0, r.Measure(*outcome.base_validation["loss"])),
        selection=selection_info(outcome.plan, prepared.rows["train"], outcome.selected, outcome.winner.config),
    )


def tested(outcome: Outcome) -> tuple[dict[str, Score], list[tuple[str, int, dict[str, Score]]]]:
    """(the base's test scores, [(run, step, test scores)] of the runs that answered the test rows)."""
    names = metric_names(outcome.prepared.task.metric, outcome.prepared.task.model.kind, outcome.prepared.task.task)
    scored = {
        role: {name: Score(m.value, m.standard_error, len(m.per_row)) for name, m in measures.items()}
        for role, measures in results(outcome.systems, names).items()
    }
    winner = outcome.candidates[0]
    found = [(str(winner["run"]), int(winner["step"]), scored["winner"])]
    if outcome.default is not None and "default" in scored:
        found.append((outcome.default.run.id, outcome.default.step, scored["default"]))
    return scored["base"], found


def _model(plan: Plan, prepared: Prepared, probe: Mapping[str, Any]) -> r.ModelInfo:
    from foretune.catalogue.models import known_model

    known = known_model(plan.model.source)
    layout, reference = plan.placement.layout, prepared.task.model
    return r.ModelInfo(
        source=plan.model.source,
        kind=plan.model.shapes.kind,
        parameters=plan.model.shapes.parameters,
        dtype=layout.dtype,
        weights_sha256=probe["weights_hash"],
        license=known.license if known is not None else None,
        folder=str(folder_of(reference.source, reference.revision)),
        context_tokens=prepared.task.context_tokens,
        quantize=reference.quantize,
    )


def _data(prepared: Prepared, probe: Mapping[str, Any]) -> r.DataInfo:
    facts = prepared.facts
    return r.DataInfo(
        name=facts["name"],
        sha256=facts["sha256"],
        fingerprint=facts["profile"]["fingerprint"],
        format=facts["format"],
        task=facts["task"],
        rows={name: prepared.rows[name] for name in SPLITS},
        labels=prepared.task.labels,
        translation="-".join(prepared.task.model.languages or ()),
        reasoning=facts.get("reasoning", 0.0),
        answer_tokens=prepared.task.max_answer_tokens,
        instruction=facts["instruction"],
        read=facts["read"],
        quarantined=facts["quarantined"],
        problems=tuple(facts["problems"]),
        split_report=(*facts["notes"], *facts["split"]),
        encoding=tuple(probe.get("encoding", ())),
        template=(*_instructed(facts["instruction"]), *probe.get("template", ())),
        profile=facts["profile"],
        languages=tuple(language for language in facts["profile"]["languages"] if language != "unknown"),
    )


def _instructed(instruction: str) -> tuple[str, ...]:
    written = json.dumps(instruction, ensure_ascii=False)
    return (f"Before every question or text stands {written}.",) if instruction else ()


def _budget(outcome: Outcome) -> r.BudgetInfo:
    budget = outcome.plan.budget
    price = outcome.plan.resolution.spec.budget.price_per_hour
    phases = tuple(r.Phase(name, seconds) for name, seconds in outcome.phases.items())
    used = {
        "time": outcome.used_s,
        "trials": float(len(outcome.runs)),
        "steps": float(sum(run.step for run in outcome.runs)),
    }
    return r.BudgetInfo(budget.kind, budget.total, used[budget.kind], phases, price_per_hour=price)


def _trial(run: Run, outcome: Outcome, winner: Mapping[str, Any]) -> r.Trial:
    metric = outcome.prepared.task.metric
    tokens_a_step = run.tokens / run.step if run.step else 0.0
    seconds_a_step = run.train_s / run.step if run.step else 0.0
    curve = []
    for step, scores in sorted(run.curve.items()):
        loss, other = scores.get("loss"), scores.get(metric) if metric != "loss" else None
        curve.append(
            r.CurvePoint(
                step,
                round(tokens_a_step * step),
                seconds_a_step * step,
                None if loss is None else r.Measure(loss.value, loss.standard_error, loss.n),
                None if other is None else r.Measure(other.value, other.standard_error, other.n),
                0 if loss is None else loss.n,
            )
        )
    is_winner = run.id == winner["run"]
    return r.Trial(
        run=run.id,
        config=dict(run.config),
        why=run.why,
        status=_status(run),
        horizon=run.horizon,
        curve=tuple(curve),
        best_step=winner["step"] if is_winner else None,
        trainable_parameters=trainable_parameters(outcome.plan.model.shapes, run.config)[0],
        is_default=run.is_default,
        is_winner=is_winner,
        detail=run.detail,
    )


def _status(run: Run) -> Any:
    return {"finished": "ok", "idle": "paused", "running": "paused"}.get(run.status, run.status)


def _comparison(
    outcome: Outcome, names: Sequence[str], scored: Mapping[str, Mapping[str, MetricResult]]
) -> r.Comparison:
    found = differences(scored, names)
    systems = []
    for system in outcome.systems:
        measures = {
            name: r.Measure(result.value, result.standard_error, len(system.answers))
            for name, result in scored[system.role].items()
        }
        own = tuple(
            _difference(name, against, compared)
            for role, against, name, compared in found
            if role == system.role and compared.low is not None
        )
        systems.append(
            r.SystemResult(
                system.role,  # type: ignore[arg-type]
                system.name,
                measures,
                own,
                _calibration(outcome, system),
                about=reading_note(scored[system.role][outcome.prepared.task.metric]),
            )
        )
    info = tuple(
        r.MetricInfo(
            name, WRITTEN.get(name, name), METRICS[name].direction, METRICS[name].unit == SHARE, _unit(outcome, name)
        )
        for name in names
    )
    primary = outcome.prepared.task.metric
    return r.Comparison(
        split="test",
        rows=len(outcome.systems[0].answers),
        metric=primary,
        metrics=info,
        systems=tuple(systems),
        transitions=_transitions(scored["base"][primary], scored["winner"][primary]),
    )


def _unit(outcome: Outcome, name: str) -> str:
    if name == "loss":
        return loss_unit(outcome.prepared.task.model.kind, outcome.prepared.task.task)
    if METRICS[name].needs_generation and name in WRITTEN:
        return ""
    return METRICS[name].unit


def _difference(name: str, against: str, compared: Compared) -> r.Difference:
    verdict = compared.verdict if compared.verdict in ("better", "worse") else "no evidence"
    return r.Difference(
        name,
        against,  # type: ignore[arg-type]
        compared.difference,
        float(compared.low or 0.0),
        float(compared.high or 0.0),
        verdict,
        compared.p_value,
        compared.method,
    )


def _calibration(outcome: Outcome, system: System) -> r.Calibration | None:
    if outcome.prepared.task.task != "classification" or any(a.probability is None for a in system.answers):
        return None
    measured = calibration(system.answers)
    bins = tuple(r.Bin(b.confidence, b.accuracy, b.rows) for b in measured.bins)
    return r.Calibration(measured.expected_error, bins)


def _transitions(before: MetricResult, after: MetricResult) -> r.Transitions | None:
    pairs = list(zip(before.per_row, after.per_row, strict=True))
    if any(value not in (0.0, RIGHT) for pair in pairs for value in pair):
        return None
    count = {kind: pairs.count(kind) for kind in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0))}
    return r.Transitions(count[0.0, 1.0], count[1.0, 0.0], count[1.0, 1.0], count[0.0, 0.0])


def _forgetting(sample: str, losses: Mapping[str, Sequence[tuple[float, float]]]) -> r.Forgetting | None:
    before, after = (loss_elsewhere(losses.get(role, ())) for role in ("base", "winner"))
    if before is None or after is None or len(before.per_row) != len(after.per_row):
        return None
    compared = compare(after, before, direction="lower")
    return r.Forgetting(
        sample,
        before.value,
        after.value,
        compared.difference,
        compared.low if compared.low is not None else compared.difference,
        compared.high if compared.high is not None else compared.difference,
        len(after.per_row),
    )


def _examples(outcome: Outcome, scored: Mapping[str, Mapping[str, MetricResult]]) -> tuple[r.AnswerPair, ...]:
    systems = {system.role: system for system in outcome.systems}
    metric = outcome.prepared.task.metric
    before, after = scored["base"][metric], scored["winner"][metric]
    binary = set(before.per_row) | set(after.per_row) <= {0.0, RIGHT}
    pairs = []
    for number, (old, new) in enumerate(zip(systems["base"].answers, systems["winner"].answers, strict=True)):
        if old.prediction is None or new.prediction is None or number >= EXAMPLE_PAIRS:
            continue
        was, now = before.per_row[number], after.per_row[number]
        pairs.append(
            r.AnswerPair(
                old.prompt,
                old.reference,
                old.prediction,
                new.prediction,
                was == RIGHT if binary else None,
                now == RIGHT if binary else None,
                None if binary else was,
                None if binary else now,
            )
        )
    return tuple(pairs)


def _settings(plan: Plan, runs: Sequence[Run], winner: str) -> tuple[r.Setting, ...]:
    settings = [
        r.Setting(key, item.value, item.origin, item.evidence)
        for key, item in plan.resolution.values.items()
        if not key.startswith("training.")
    ]
    chosen = next(run for run in runs if run.id == winner)
    fixed = plan.resolution.fixed_training()
    for key, value in chosen.config.items():
        origin = "option" if key in fixed else "search"
        settings.append(r.Setting(f"training.{key}", value, origin, "" if key in fixed else f"{winner}: {chosen.why}"))
    return tuple(settings)


def versions() -> dict[str, str]:
    """The versions of Foretune and of the libraries that decide results."""
    found = {"foretune": __version__}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(plan: Plan) -> dict[str, Any]:
    """Versions and hardware."""
    found: dict[str, Any] = {"python": sys.version.split()[0], **versions()}
    machine = plan.machine
    found["processor"] = machine.processor
    found["cores"] = machine.cores
    if machine.accelerators:
        found["accelerator"] = machine.accelerators[0].name
    return found
