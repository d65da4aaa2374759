"""The main job: plan → search → re-evaluate → compare. ``fit``, ``resume`` and ``plan`` are its Python interface."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foretune.fit.plan import Plan, plan

if TYPE_CHECKING:
    from foretune.fit.job import FitResult

__all__ = ["Plan", "fit", "plan", "resume"]

OnEvent = Callable[[str, Mapping[str, Any]], None]


def _silent(kind: str, payload: Mapping[str, Any]) -> None:
    """An observer that looks away."""


def fit(
    data: str | Path,
    *,
    model: str | None = None,
    time: str | float | None = None,
    output: str | Path | None = None,
    config: str | Path | None = None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str | Path] = (),
    on_event: OnEvent = _silent,
) -> FitResult:
    """Fine-tune ``model`` on ``data`` within ``time`` and compare it with the base; what ``foretune fit`` does.

    ``options`` are settings by dotted key (``{"search.seed": 1}``), ``sets`` strings like ``training.lora.rank=8``.
    ``output`` is a new folder, or one in which the same fit was begun: it is then resumed. ``on_event`` sees what
    happens. Raises `ForetuneError` s: bad data, a model that cannot be loaded, a budget below one step, a folder in
    use; `Interrupted` after Ctrl-C.
    """
    from foretune.fit.request import FitRequest

    given = {"data.path": str(data), "model.source": model, "budget.time": time, **(options or {})}
    request = FitRequest(
        {key: value for key, value in given.items() if value is not None},
        tuple(sets),
        None if config is None else str(config),
        tuple(str(plugin) for plugin in plugins),
    )
    return start(request, output_of(request, output), on_event=on_event)


def resume(folder: str | Path, *, time: str | float | None = None, on_event: OnEvent = _silent) -> FitResult:
    """Continue the fit begun in ``folder``, with more ``time`` if given. Raises as `fit` does."""
    from foretune.fit.request import saved_request

    request = saved_request(Path(folder), {"budget.time": time})
    return start(request, Path(folder), on_event=on_event)


def start(request: Any, output: Path, *, command: str = "foretune.fit", on_event: OnEvent = _silent) -> FitResult:
    """Fetch the model if need be, plan ``request`` and carry it out in ``output``."""
    from foretune.fit.folder import RunFolder
    from foretune.fit.job import run_fit
    from foretune.models.load import bring, check_folder

    RunFolder(output).check_free()
    model = request.settings().model
    where = bring(model.source, revision=model.revision, progress=lambda line: on_event("progress", {"line": line}))
    if isinstance(where, Path):
        check_folder(where)
    made = request.plan()
    on_event("plan", {"plan": made})
    return run_fit(made, request, output, on_event=on_event, command=command)


def output_of(request: Any, output: str | Path | None) -> Path:
    """The run folder: as said, as the settings say, or a new one named after the data."""
    if output is not None:
        return Path(output)
    settings = request.settings()
    return Path(settings.output.folder) if settings.output.folder else default_output(str(settings.data.path))


def default_output(data: str) -> Path:
    """A new folder in the working directory named after the data: ``facts-fit``, then ``facts-fit-2`` and so on."""
    stem = Path(data).stem.replace(":", "-") or "data"
    candidates = (Path(f"{stem}-fit" if number == 1 else f"{stem}-fit-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


class _CallableModule(ModuleType):
    """``foretune.fit`` names this package and the function in it; called, the package is the function."""

    def __call__(self, *arguments: Any, **settings: Any) -> FitResult:
        return fit(*arguments, **settings)


sys.modules[__name__].__class__ = _CallableModule
