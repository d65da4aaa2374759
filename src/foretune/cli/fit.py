"""``foretune fit DATA``: the main job, with a live display, plain lines or JSON events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.errors import UsageError


def fit(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, a hub id, or the name of a data set.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, a .gguf file, a hub id or a name of the catalogue.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time budget for everything, like 10m or 2h.")] = None,
    trials: Annotated[int | None, typer.Option(help="Budget in trials instead of time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimiser steps, instead of time.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run [default: DATA-fit].")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run begun in this folder.")] = None,
    method: Annotated[str | None, typer.Option(help="How the model is adapted; `foretune methods` lists all.")] = None,
    trainable: Annotated[str | None, typer.Option(help="Share of the parameters to train, like 0.5%.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers adapted: all, last:8, or an expression.")] = None,
    deploy: Annotated[str | None, typer.Option(help="How it will be served: adapter, merged or gguf.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as YAML, or the resolved.yaml of a run.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="One setting, like training.lora.rank=32.")] = None,
    format: Annotated[str | None, typer.Option(help="How rows are written; found when not given.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the question or instruction.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answer that is trained on.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the class name or number.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of plain text, or of the text to classify.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Column whose equal values stay in one split.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that says train, validation or test.")] = None,
    task: Annotated[str | None, typer.Option(help="What is learnt; found from the rows when not given.")] = None,
    metric: Annotated[str | None, typer.Option(help="The primary metric; found from the task when not given.")] = None,
    validation: Annotated[str | None, typer.Option(help="A file of validation rows.")] = None,
    test: Annotated[str | None, typer.Option(help="A file of test rows.")] = None,
    select: Annotated[str | None, typer.Option(help="Which rows to train on, like ifd or ifd:60%+k-centre.")] = None,
    keep: Annotated[str | None, typer.Option(help="Share of the training rows that --select keeps, like 30%.")] = None,
    target: Annotated[str | None, typer.Option(help="Rows like those to be good at; or: validation.")] = None,
    previous: Annotated[str | None, typer.Option(help="Rows that the model was trained on before.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="error, or quarantine: write bad rows aside.")] = None,
    quantize: Annotated[str | None, typer.Option(help="4bit: keep the frozen base in 4 bits.")] = None,
    regularize: Annotated[
        str | None, typer.Option(help="Regularizers in order, like guided-dropout,kl-to-base:0.1.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Trials that run at the same time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    price_per_hour: Annotated[str | None, typer.Option(help="Price of this machine for an hour, like $2.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    plugin: Annotated[list[Path] | None, typer.Option(help="A Python file to load in every worker.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Fine-tune a model on DATA inside a budget and compare it honestly with the base.

    Leaves an adapter, a report, a model card and every resolved setting in the output folder. Ctrl-C leaves a run
    that --resume finishes. Exit codes: see the documentation; 130 means interrupted.
    """
    from foretune import fit as job
    from foretune.cli.display import display
    from foretune.fit.request import FitRequest, saved_request

    options: dict[str, Any] = {
        "data.path": data,
        "model.source": model,
        "budget.time": time,
        "budget.trials": trials,
        "budget.steps": steps,
        "training.method": method,
        "trainable": trainable,
        "training.layers": layers,
        "output.deploy": deploy,
        "data.format": format,
        "data.columns.prompt": prompt_column,
        "data.columns.answer": answer_column,
        "data.columns.label": label_column,
        "data.columns.text": text_column,
        "data.columns.group": group_column,
        "data.columns.split": split_column,
        "data.task": task,
        "data.metric": metric,
        "data.validation": validation,
        "data.test": test,
        **selection_options(select, keep, target, previous),
        "data.on_bad_row": on_bad_row,
        "model.quantize": quantize,
        "training.regularizer": regularize,
        "search.workers": workers,
        "search.seed": seed,
        "budget.price_per_hour": price_per_hour,
        "model.trust_remote_code": trust_remote_code or None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if resume is not None:
        changed = sorted(set(given) - {"budget.time", "budget.price_per_hour", "search.workers"})
        if changed or sets or config is not None:
            raise UsageError(
                f"a resumed run keeps its settings; {(changed or ['--set or --config'])[0]} cannot be changed.",
                remedy="Only --time, --workers and --price-per-hour may differ. Start a new run for anything else.",
            )
        request, folder = saved_request(resume, given), resume
    else:
        if data is None and config is None:
            raise UsageError("there is no data.", remedy="Say `foretune fit DATA`, or `foretune fit --resume FOLDER`.")
        request = FitRequest(
            given,
            tuple(sets or ()),
            None if config is None else str(config),
            tuple(str(path) for path in plugin or ()),
        )
        folder = job.output_of(request, output)
    with display(as_json=as_json) as shown:
        result = job.start(request, folder, command=_command_line(), on_event=shown.event)
        shown.finish(result)


def selection_options(
    select: str | None, keep: str | None, target: str | None = None, previous: str | None = None
) -> dict[str, Any]:
    """``--select``, ``--keep`` and their data as settings. Raises `UsageError` where one is missing or no share."""
    from foretune.catalogue.selection import NONE, parse, parse_keep

    if select is None or select == NONE:
        for option, value in (("keep", keep), ("target", target), ("previous", previous)):
            if value is not None:
                raise UsageError(
                    f"--{option} is for a selection, and there is none.", remedy="Add --select, if only random."
                )
        return {"training.selection": select}
    parse(select)
    if keep is None:
        raise UsageError("--select does not say how much to keep.", remedy="Add --keep, like --keep 30%.")
    share = parse_keep(keep)
    if share.kind != "share":
        raise UsageError(
            f"--keep {keep} is not a share: a fit keeps a share of its training rows.",
            remedy="Write it like 30%. foretune select takes rows and tokens as well.",
        )
    return {
        "training.selection": select,
        "training.keep": share.amount,
        "data.target": target,
        "data.previous": previous,
    }


def _command_line() -> str:
    """The command as typed, for the report."""
    import shlex
    import sys

    return shlex.join(["foretune", *sys.argv[1:]])
