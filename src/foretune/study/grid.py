"""A study as it is written down: models × tasks × arms × sizes × seeds, one horizon, one outcome.

`load_grid` reads the YAML, refuses unknown keys with line and nearest key, and completes every arm to a whole trial
configuration. An arm is the base configuration with a few settings of its own; everything else is equal between
arms, so that cells of one pair (model, task, size, seed) share their rows, their order and their initial noise.
What depends on data or model (how many rows there are, how many steps that makes) is decided by `study.design`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from foretune.catalogue.methods import applicable, config_space, resolve
from foretune.catalogue.models import DEFAULT_MODEL
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.config.load import load_tree, nearest
from foretune.config.spec import Count, DataSettings, ModelSettings, Section, flat_settings
from foretune.errors import Place, UsageError
from foretune.files import fingerprint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}")
"""Names of studies, arms, tasks and models: they become folders, columns and entries of the experience."""
PRESETS = Path(__file__).parent / "presets"
GOVERNED = {
    "epochs": "`horizon` says how long every arm trains",
    "learning_rate": "`learning_rate` at the top of the grid is for all arms; one arm's own goes into the arm",
}
LIKELIHOODS = ("loss", "loss_per_byte")
ALL = "all"


def _size(value: Any) -> Any:
    if value == ALL or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{value!r} is no size: a number of training rows, or all")


Size = Annotated[Any, BeforeValidator(_size)]
"""A number of training rows, or ``all``."""


def _names(kind: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else [value]:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of {kind}: at most 32 letters, digits and . _ + -")
        return value

    return BeforeValidator(check)


def _named(key: str) -> BeforeValidator:
    """``facts: facts`` stands for ``facts: {path: facts}``."""

    def complete(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {key: item} if isinstance(item, str) else item for name, item in value.items()}

    return BeforeValidator(complete)


def _models(value: Any) -> Any:
    """One model or several, by name or with settings, as a mapping of names to settings."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    if not all(isinstance(item, str) for item in value):
        raise ValueError("a list of models is a list of names, folders or hub ids")
    return {re.sub(r"[^A-Za-z0-9._+-]", "-", Path(item).name).strip("-.+_")[:32]: item for item in value}


def _seeds(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class TaskSettings(DataSettings):
    """One task: rows as `foretune fit` reads them."""

    path: str
    """A file, a folder, a data set of the catalogue or of the hub."""
    train_rows: Annotated[Count, Field(ge=1)] | None = None
    """Draw training subsets from this many rows (chosen once for all) instead of all of them."""


class HorizonSettings(Section):
    """How long every run trains: the same for all arms."""

    steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimiser steps."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the run's training rows."""
    tokens: Annotated[Count, Field(ge=1)] | None = None
    """Never more than about this many tokens a run, whatever steps or epochs say."""

    @model_validator(mode="after")
    def _one(self) -> HorizonSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say either steps or epochs")
        return self


class EvaluationSettings(Section):
    """What is measured: validation rows at the rungs of a run, test rows once at its end."""

    validation_rows: Annotated[Count, Field(ge=2)] = 64
    """Validation rows scored at every rung, the same for all runs of a task."""
    test_rows: Annotated[Count, Field(ge=2)] = 200
    """Test rows, the same for all runs of a task."""
    checkpoint: Literal["best", "last"] = "best"
    """Test the checkpoint of lowest validation loss, or the last."""
    generation: bool | None = None
    """Write answers to the test rows; when not said, only where the outcome needs them."""
    max_answer_tokens: Annotated[Count, Field(ge=1)] = 64
    """Longest generated answer."""


class RateSettings(Section):
    """Where learning rates come from: one rate for all, a sweep for every arm, or (nothing said) the rule."""

    shared: Annotated[float, Field(gt=0, le=1)] | None = None
    """One rate for every arm that has none of its own."""
    sweep: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Rates tried for every arm on the pilot task; the best by validation loss is used on all tasks."""
    pilot: str | None = None
    """The task of the sweep; the first when not said."""
    size: Size = ALL
    """Training rows of the sweep."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds)] = (0,)
    """Seeds of the sweep (a count or a list); losses are averaged over them."""

    @model_validator(mode="after")
    def _consistent(self) -> RateSettings:
        if self.shared is not None and self.sweep is not None:
            raise ValueError("shared and sweep are both given")
        if self.sweep is not None and (len(set(self.sweep)) != len(self.sweep) or len(self.sweep) < 2):
            raise ValueError("a sweep is a list of at least two different rates")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds are different numbers, at least one")
        if self.sweep is None and self.pilot is not None:
            raise ValueError("a pilot task without sweep: [...] does nothing")
        return self


def _rates(value: Any) -> Any:
    if value == "rule":
        return {}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"shared": value}
    return {"sweep": value} if isinstance(value, list) else value


class PilotSettings(Section):
    """What is known of the spread of paired differences before the study, for its smallest detectable effect."""

    sd: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of one paired difference, in the outcome's unit."""
    results: str | None = None
    """The folder of an earlier study, or its results.jsonl, from which it is computed."""

    @model_validator(mode="after")
    def _one(self) -> PilotSettings:
        if (self.sd is None) == (self.results is None):
            raise ValueError("say either sd or results")
        return self


class GridSpec(Section):
    """A study."""

    name: Annotated[str, _names("a study")]
    """Its name in the experience store."""
    about: str = ""
    """What is asked, in a sentence."""
    model: Annotated[dict[str, ModelSettings], _names("a model"), _named("source"), BeforeValidator(_models)] = Field(
        default_factory=lambda: {DEFAULT_MODEL: ModelSettings()}, min_length=1
    )
    """The base model or several of them."""
    tasks: Annotated[dict[str, TaskSettings], _names("a task"), _named("path")] = Field(min_length=1)
    """Tasks by name."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial configuration that all arms share; the default LoRA where nothing is said."""
    arms: Annotated[dict[str, dict[str, Any]], _names("an arm")] = Field(min_length=2)
    """What is compared: by name, the settings in which an arm differs from the base."""
    control: str
    """The arm that all others are compared with."""
    sizes: Annotated[tuple[Size, ...], BeforeValidator(_listed)] = ("all",)
    """Training rows: numbers, or all."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds)] = Field(min_length=1)
    """Seeds (a count or a list): each draws its own subset, order and noise."""
    horizon: HorizonSettings
    """How long every run trains."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is measured."""
    primary: str = "loss"
    """The outcome: loss, metric (each task's own), or the name of a metric."""
    learning_rate: Annotated[RateSettings, BeforeValidator(_rates)] = RateSettings()
    """A number, ``rule``, a list to sweep, or a group."""
    pilot: PilotSettings | None = None
    """Where the smallest detectable effect comes from; the experience store when not said."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        """Nested settings of base and arms become flat ones, each checked."""
        if not isinstance(value, Mapping):
            return value
        base = _checked("base", value.get("base") or {})
        arms = value.get("arms")
        if isinstance(arms, Mapping):
            arms = {name: _checked(f"arms.{name}", item or {}) for name, item in arms.items()}
        return {**value, "base": base, **({} if arms is None else {"arms": arms})}

    @model_validator(mode="after")
    def _consistent(self) -> GridSpec:
        if self.control not in self.arms:
            hint = _nearest_key(self.control, list(self.arms))
            raise ValueError(f"control: there is no arm {self.control!r}. {hint}")
        for key, values in (("seeds", self.seeds), ("sizes", self.sizes)):
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"{key}: the same value is given twice" if values else f"{key}: none is given")
        rates = self.learning_rate
        if rates.pilot is not None and rates.pilot not in self.tasks:
            hint = _nearest_key(rates.pilot, list(self.tasks))
            raise ValueError(f"learning_rate.pilot: there is no task {rates.pilot!r}. {hint}")
        own = [name for name, settings in self.arms.items() if "learning_rate" in settings]
        if rates.sweep is not None and own:
            raise ValueError(f"arms.{own[0]}.learning_rate: rates are swept; leave it out or leave the sweep out")
        seen: dict[str, str] = {}
        for name in self.arms:
            key = fingerprint(self.config(name))
            if key in seen:
                raise ValueError(f"arms.{name}: it is the same as {seen[key]}, so they cannot differ")
            seen[key] = name
        return self

    def config(self, arm: str) -> dict[str, Any]:
        """The whole configuration of an arm, but for learning rate and epochs, which `study.design` fills in."""
        settings = {**self.base, **self.arms[arm]}
        method = str(settings.get("method", DEFAULT_LORA["method"]))
        general = {k: v for k, v in DEFAULT_LORA.items() if "." not in k or k.startswith(f"{method}.")}
        try:
            return resolve({**general, **applicable({**settings, "method": method}), **self.arms[arm]})
        except UsageError as error:
            raise ValueError(f"arms.{arm}: {error.paragraph()}") from error

    @property
    def identity(self) -> str:
        """A hash of what decides the results: a folder holds one study."""
        return fingerprint(self.model_dump(mode="json", exclude={"about", "pilot"}))


def _checked(key: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key}: settings are a group of key: value lines")
    flat = flat_settings(settings)
    space = config_space()
    for name in flat:
        if name in GOVERNED and (name == "epochs" or key == "base"):
            raise ValueError(f"{key}.{name}: {GOVERNED[name]}")
        if name not in space.names():
            raise ValueError(f"{key}.{name}: it is not a setting of a run. {nearest(name, space.names())}")
    try:
        return space.check(flat)
    except UsageError as error:
        raise ValueError(f"{key}.{error.paragraph()}") from error


def load_grid(source: str | Path) -> GridSpec:
    """The study in a YAML file, or the shipped one of that name. Raises `UsageError` with file and line."""
    path = find_grid(source)
    values, places = load_tree(path)
    try:
        spec = GridSpec.model_validate(values)
    except ValidationError as error:
        raise _explained(error, path, places) from error
    tasks = {name: beside(task, path.parent) for name, task in spec.tasks.items()}
    return spec.model_copy(update={"tasks": tasks})


def beside(task: TaskSettings, folder: Path) -> TaskSettings:
    """Files that lie beside the grid's own are meant by names that are relative to it."""
    found = {
        key: str((folder / value).resolve())
        for key in ("path", "validation", "test")
        if (value := getattr(task, key)) is not None and Path(value).suffix and (folder / value).exists()
    }
    return task.model_copy(update=found)


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
        remedy=f"{_nearest_key(str(source), list(known))} Or give the path of a YAML file.",
    )


def presets() -> dict[str, Path]:
    """The shipped studies by name; a folder's files are ``folder:name``."""
    files = sorted(PRESETS.rglob("*.yaml"))
    return {":".join(path.relative_to(PRESETS).with_suffix("").parts): path for path in files}


def _explained(error: ValidationError, path: Path, places: Mapping[tuple[str, ...], Place]) -> UsageError:
    """Our error for the first complaint of pydantic: key, line and what would be right."""
    complaints = error.errors(include_url=False)
    # a misspelt key is also a missing one: say what is there and wrong before what is not there
    first = next((one for one in complaints if one["type"] == "extra_forbidden"), complaints[0])
    at = tuple(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if not at and (said := re.match(r"([\w.+-]+)(?:: | = )", message)):  # from a check of the whole grid
        at = _known_path(said.group(1), places)
        message = message.removeprefix(said.group(1)).removeprefix(": ")
    place = next((places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in places), Place(path))
    key = ".".join(at)
    if first["type"] == "extra_forbidden":
        known = [".".join((*at[:-1], name)) for name in _keys_at(at[:-1])]
        return UsageError(f"{key} is not a setting of a study.", place=place, remedy=_nearest_key(at[-1], known))
    said_what = message if message.endswith((".", "?")) else f"{message}."
    said_where = key if said_what.startswith(" = ") or not key else f"{key}: "
    return UsageError(f"{said_where}{said_what}", place=place)


def _known_path(dotted: str, places: Mapping[tuple[str, ...], Place]) -> tuple[str, ...]:
    """The path of the file that a dotted key means, though names may hold dots themselves."""
    matching = [path for path in places if dotted == ".".join(path) or dotted.startswith(".".join(path) + ".")]
    return max(matching, key=len, default=tuple(dotted.split(".")))


def _keys_at(at: tuple[str, ...]) -> list[str]:
    """The settings that there are in a group of the grid."""
    groups: dict[str, type[Section]] = {"tasks": TaskSettings, "model": ModelSettings}
    section: type[Section] = GridSpec
    for part in at:
        field = section.model_fields.get(part)
        if part in groups and section is GridSpec:
            section = groups[part]
        elif field is not None:
            options = [field.annotation, *getattr(field.annotation, "__args__", ())]
            section = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), section)
    return list(section.model_fields)


def _nearest_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in known], n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(name.rpartition('.')[2] for name in known)}."
