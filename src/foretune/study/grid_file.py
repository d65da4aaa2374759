"""A study's YAML file: found by path or preset name, read, and every mistake told with its line and the nearest key.

What the settings mean is in `study.grid`; a file of another ``kind`` goes to the module that `study.kinds` names, which
reads it with `load_spec` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from foretune.config.load import load_tree
from foretune.config.spec import Section
from foretune.errors import Place, UsageError
from foretune.study.arms import nearest_key
from foretune.study.grid import GridSpec, TaskSettings, short_name

PRESETS = Path(__file__).parent / "presets"
Spec = TypeVar("Spec", bound=Section)


def load_grid(source: str | Path) -> GridSpec:
    """The study in a YAML file, or the shipped one of that name. Raises `UsageError` with file and line."""
    path = find_grid(source)
    spec = load_spec(GridSpec, path)
    tasks = {name: beside(task, path.parent) for name, task in spec.tasks.items()}
    return spec.model_copy(update={"tasks": tasks})


def load_spec(model: type[Spec], path: Path, what: str = "a study") -> Spec:
    """The ``model`` in a YAML file, which holds ``what``. Raises `UsageError` with file, line and the nearest key."""
    values, places = load_tree(path)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explained(error, model, path, places, what) from error


def beside(task: TaskSettings, folder: Path) -> TaskSettings:
    """Files that lie beside the grid's own are meant by names that are relative to it."""
    found = {
        key: str((folder / value).resolve())
        for key in ("path", "validation", "test", "target", "previous")
        if (value := getattr(task, key)) is not None and Path(value).suffix and (folder / value).exists()
    }
    tests = {
        name: test.model_copy(update={"path": str((folder / test.path).resolve())})
        if Path(test.path).suffix and (folder / test.path).exists()
        else test
        for name, test in task.tests.items()
    }
    return task.model_copy(update={**found, "tests": tests})


def replaced(grid: GridSpec, data: Sequence[str], models: Sequence[str]) -> GridSpec:
    """A grid on other data (``FILE`` or ``NAME=FILE``) or other models. Raises `UsageError`.

    The pilot of a sweep becomes the first of the new tasks.
    """
    values = grid.model_dump(mode="json")
    if data:
        tasks: dict[str, dict[str, str]] = {}
        for item in data:
            given, _, path = item.rpartition("=")
            name = given or short_name(Path(path).stem)
            if name in tasks:
                raise UsageError(f"two tasks are both called {name!r}.", remedy="Name each: --data NAME=FILE.")
            tasks[name] = {"path": path}
        values["tasks"] = tasks
        if values["learning_rate"].get("pilot") is not None:
            values["learning_rate"]["pilot"] = next(iter(tasks))
    if models:
        values["model"] = list(models)
    try:
        return GridSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"the changed grid does not hold: {first['msg'].removeprefix('Value error, ')}.") from error


def find_grid(source: str | Path) -> Path:
    """The file of a grid: a path, or the name of a preset (``smoke``, ``translation:smoke``). Raises `UsageError`."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    known = presets()
    if str(source) in known:
        return known[str(source)]
    raise UsageError(
        f"there is no study {str(source)!r}: no such file, and not among those shipped.",
        remedy=f"{nearest_key(str(source), list(known))} Or give the path of a YAML file.",
    )


def presets() -> dict[str, Path]:
    """The shipped studies by name; a folder's files are ``folder:name``."""
    files = sorted(PRESETS.rglob("*.yaml"))
    return {":".join(path.relative_to(PRESETS).with_suffix("").parts): path for path in files}


def _explained(
    error: ValidationError, model: type[Section], path: Path, places: Mapping[tuple[str, ...], Place], what: str
) -> UsageError:
    """Our error for the first complaint of pydantic: key, line and what would be right."""
    complaints = error.errors(include_url=False)
    # a misspelt key is also a missing one: say what is there and wrong before what is not there
    first = next((one for one in complaints if one["type"] == "extra_forbidden"), complaints[0])
    at = tuple(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if not at and (said := re.match(r"([\w.+-]+)(?:: | = )", message)):  # from a check of the whole file
        at = _known_path(said.group(1), places)
        message = message.removeprefix(said.group(1)).removeprefix(": ")
    place = next((places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in places), Place(path))
    key = ".".join(at)
    if first["type"] == "extra_forbidden":
        known = [".".join((*at[:-1], name)) for name in _keys_at(model, at[:-1])]
        return UsageError(f"{key} is not a setting of {what}.", place=place, remedy=nearest_key(at[-1], known))
    said_what = message if message.endswith((".", "?")) else f"{message}."
    said_where = key if said_what.startswith(" = ") or not key else f"{key}: "
    return UsageError(f"{said_where}{said_what}", place=place)


def _known_path(dotted: str, places: Mapping[tuple[str, ...], Place]) -> tuple[str, ...]:
    """The path of the file that a dotted key means, though names may hold dots themselves."""
    matching = [path for path in places if dotted == ".".join(path) or dotted.startswith(".".join(path) + ".")]
    return max(matching, key=len, default=tuple(dotted.split(".")))


def _keys_at(model: type[Section], at: tuple[str, ...]) -> list[str]:
    """The settings that there are in a group of ``model``."""
    section = model
    for part in at:
        field = section.model_fields.get(part)
        if field is not None:
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            section = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), section)
    return list(section.model_fields)
