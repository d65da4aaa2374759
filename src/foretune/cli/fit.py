"""``foretune fit DATA``: the main job, with a live display, plain lines or JSON events.

Its options that set settings are listed in `setting_options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.cli.options import Plugins
from foretune.cli.setting_options import EVERY, takes
from foretune.errors import UsageError


@takes(*EVERY)
def fit(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, a hub id, or the name of a data set.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; DATA-fit when not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run begun in this folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as YAML, or the resolved.yaml of a run.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="One setting, like training.lora.rank=32.")] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Fine-tune a model on DATA inside a budget and compare it honestly with the base.

    Leaves an adapter, a report, a model card and every resolved setting in the output folder. Ctrl-C leaves a run
    that --resume finishes. Exit codes: see the documentation; 130 means interrupted.
    """
    from foretune import fit as job
    from foretune.cli.display import display
    from foretune.fit.request import FREE_TO_CHANGE, FitRequest, saved_request

    given = settings if data is None else {"data.path": data, **settings}
    if resume is not None:
        changed = sorted(set(given) - set(FREE_TO_CHANGE))
        if changed or sets or config is not None:
            raise UsageError(
                f"a resumed run keeps its settings; {(changed or ['--set or --config'])[0]} cannot be changed.",
                remedy="Only --time, --workers and --price-per-hour may differ. Start a new run for anything else.",
            )
        request, folder = saved_request(resume, given), resume
    else:
        if data is None and config is None:
            raise UsageError("there is no data.", remedy="Say `foretune fit DATA`, or `foretune fit --resume FOLDER`.")
        plugins = tuple(str(path) for path in plugin or ())
        request = FitRequest(given, tuple(sets or ()), None if config is None else str(config), plugins)
        folder = job.output_of(request, output)
    with display(as_json=as_json) as shown:
        result = job.start(request, folder, command=_command_line(), on_event=shown.event)
        shown.finish(result)


def _command_line() -> str:
    """The command as typed, for the report."""
    import shlex
    import sys

    return shlex.join(["foretune", *sys.argv[1:]])
