"""What a fit hands over: the adapter (or whole model), the form it is served in, report, card and record."""

from __future__ import annotations

import shutil
from typing import Any

from foretune.files import write_json
from foretune.fit.finals import checkpoint_of
from foretune.fit.prepare import Prepared
from foretune.fit.session import Session
from foretune.models.fetch import folder_of
from foretune.report.card import write_card
from foretune.report.html import write_report
from foretune.report.record import ExportInfo, RunRecord, write_record
from foretune.search.ask_tell import AskTell
from foretune.search.runs import Run
from foretune.training import checkpoint


def exported(session: Session, prepared: Prepared, winner: Run, step: int) -> tuple[list[ExportInfo], dict[str, Any]]:
    """(what was written and checked, the method's statistics on the way): the adapter, and what ``deploy`` asks for."""
    payload = {
        **checkpoint_of(session.folder, winner, step),
        "output": str(session.folder.adapter.resolve()),
        "base": prepared.task.model.source,  # what adapter_config.json names as its base: a folder here, or the hub id
    }
    done = session.once("export", "export", lambda: session.job("export", prepared.task, payload))
    kind = "full" if winner.config["method"] == "full" else "adapter"
    infos = [ExportInfo(kind, "adapter", done["verified"], done["detail"])]  # type: ignore[arg-type]
    form = session.plan.resolution.spec.output.deploy
    if form != "adapter":
        infos.append(_deployed(session, form, prepared))
    return infos, done["statistics"]


def _deployed(session: Session, form: Any, prepared: Prepared) -> ExportInfo:
    from foretune.export.job import export_run

    root, model = session.folder.root, prepared.task.model

    def export() -> dict[str, Any]:
        shutil.rmtree(root / form, ignore_errors=True)
        base = folder_of(model.source, model.revision)
        path, check = export_run(session.folder.adapter, root / form, form, base=base)
        return {"folder": str(path.relative_to(root)), "detail": check.detail}

    done = session.once(f"export-{form}", "export", export)
    return ExportInfo(form, done["folder"], True, done["detail"])


def hand_over(session: Session, result: RunRecord, core: AskTell) -> RunRecord:
    """Write card and report, then the record, whose presence says that the run is finished."""
    folder = session.folder
    write_card(folder.adapter, result, adapter=result.exports[0].kind == "adapter")
    write_report(folder.root, result)
    write_json(folder.root / "search.json", core.state())
    write_record(folder.root, result)
    winner = result.winner
    for run in core.runs:
        kept = winner.best_step if winner is not None and run.id == winner.run else None
        checkpoint.retain(folder.trial(run.id), () if kept is None else (kept,))
    return result
