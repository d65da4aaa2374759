"""What a fit leaves in the experience: its runs as they happen, how they ended, the forecast beside the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune.execution.drive import OnEvent
from foretune.fit.account import VERSIONED, Outcome, environment, tested
from foretune.fit.hindsight import learnt_rows
from foretune.fit.history import Recorder, model_features
from foretune.fit.opening import Opening
from foretune.fit.session import Session
from foretune.search.ask_tell import AskTell
from foretune.search.types import Lease, Observation
from foretune.search.warm_start import ARM


def recorder(session: Session, opening: Opening) -> Recorder:
    """The recorder of a fit."""
    plan = session.plan
    return Recorder(
        prefix=session.run_id,
        task=opening.prepared.facts["profile"]["fingerprint"],
        task_features=opening.task_features,
        model=str(opening.probe["weights_hash"])[:16],
        model_features={"name": Path(plan.model.source).name, **model_features(plan.model.shapes)},
        machine=plan.machine,
        versions={name: str(value) for name, value in environment(plan).items() if name in VERSIONED},
    )


def recorded(into: Recorder, core: AskTell, opening: Opening, on_event: OnEvent) -> OnEvent:
    """An observer that passes events on and adds runs and observations to the experience, beside the base's scores.

    A run that began at an earlier fit's weights is left out: its scores do not follow from its settings.
    """
    schedule, base = opening.common.schedule, opening.base_answers

    def see(kind: str, payload: Mapping[str, Any]) -> None:
        warm = "lease" in payload and core.run(payload["lease"]["run"]).arm == ARM
        if kind == "lease" and not warm:
            lease = Lease.from_json(payload["lease"])
            run = core.run(lease.run)
            into.run(lease.run, lease.config, seed=lease.seed, horizon=lease.horizon, arm=run.arm)
        elif kind == "observation" and not warm:
            seen, horizon = Observation.from_json(payload["observation"]), int(payload["lease"]["horizon"])
            beside = base.at(schedule, horizon, seen.step) if seen.metrics else None
            into.observation(payload["lease"]["run"], seen, base=beside)
        on_event(kind, payload)

    return see


def remember(into: Recorder, outcome: Outcome) -> None:
    """How the runs ended, the test scores of the winner, and the forecast beside the truth."""
    into.forecast(outcome.runs[0].id, learnt_rows(outcome.seen))
    base, runs = tested(outcome)
    known = {run.id for run in outcome.runs if run.arm != ARM}
    for run, step, scores in runs:
        if run in known:
            into.observation(run, Observation(step, scores), split="test", base=base)
    into.finished([run for run in outcome.runs if run.id in known])
    into.close()
