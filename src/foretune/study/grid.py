"""A study as it is written down: models × tasks × arms × sizes × seeds, one horizon, one outcome.

`grid_file.load_grid` reads the YAML and tells mistakes with line and nearest key; every arm is completed to a whole
trial configuration. An arm is the base configuration with a few settings of its own; everything else is equal between
arms, so that cells of one pair (model, task, size, seed) share their rows, their order and their initial noise.
What depends on data or model (how many rows there are, how many steps that makes) is decided by `study.design`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from foretune.catalogue.methods import applicable, resolve
from foretune.catalogue.models import DEFAULT_MODEL
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.rules import TRAINABLE
from foretune.config.spec import Count, DataSettings, ModelSettings, Section
from foretune.errors import UsageError
from foretune.files import fingerprint
from foretune.study.arms import ABOUT_ARMS, CONTROL, TASKS, checked_settings, multiplied, nearest_key
from foretune.study.before import BeforeSettings
from foretune.study.pools import PoolSettings
from foretune.study.test_sets import FurtherTest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}")
"""Names of studies, tasks and models: they become folders, columns and entries of the experience."""
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,47}")
"""Names of arms: columns and entries of the experience."""
LIKELIHOODS = ("loss", "loss_per_byte")
ALL = "all"


def _size(value: Any) -> Any:
    if value == ALL or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{value!r} is no size: a number of training rows, or all")


Size = Annotated[Any, BeforeValidator(_size)]
"""A number of training rows, or ``all``."""


def _names(kind: str, form: re.Pattern[str] = NAME) -> BeforeValidator:
    def check(value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else [value]:
            if not isinstance(name, str) or not form.fullmatch(name):
                most = 48 if form is ARM_NAME else 32
                raise ValueError(f"{name!r} is no name of {kind}: at most {most} letters, digits and . _ + -")
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
    named: dict[str, str] = {}
    for item in value:
        name = short_name(Path(item).name)
        if name in named:
            raise ValueError(f"two models are both called {name!r}; write model: {{NAME: {{source: {item}}}, …}}")
        named[name] = item
    return named


def short_name(text: str) -> str:
    """A name of a task or model (`NAME`) from that of a file or folder."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", text).strip("-.+_")[:32]


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
    target_rows: Annotated[Count, Field(ge=1)] | None = None
    """Rows of the target that selectors see (chosen once for all) instead of all of them."""
    tests: Annotated[dict[str, FurtherTest], _names("a test set"), _named("path")] = Field(default_factory=dict)
    """Test sets by name beside the task's own test rows: trained once, compared on each."""
    pool: PoolSettings = PoolSettings()
    """What is done to the training rows before anything is selected."""
    covariates: dict[str, float] = Field(default_factory=dict)
    """What is known of the task for fitted rules; the distance of its languages is found when not given."""

    @model_validator(mode="after")
    def _target_is_named(self) -> TaskSettings:
        if self.target_rows is not None and self.target is None:
            raise ValueError("target_rows: no target is named")
        return self


class HorizonSettings(Section):
    """How long every run trains: the same for all arms."""

    steps: Annotated[Count, Field(ge=1)] | None = None
    """Optimiser steps."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the run's training rows."""
    least_steps: Annotated[Count, Field(ge=1)] = 1
    """Never fewer steps than this, however few an epoch of a small size has."""
    tokens: Annotated[Count, Field(ge=1)] | None = None
    """Never more than about this many tokens a run, whatever steps or epochs say."""
    match: Literal["steps", "answer-tokens"] = "steps"
    """What the arms of a pair have in common where selections keep longer or shorter rows."""

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
    factors: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Like sweep, as multiples of the rate that the rule of each arm's method gives."""
    per: Literal["arm", "arm-on-task", "method", "task"] = "arm"
    """Sweep for every arm, on the pilot or on every task; once for every method (on its middle arm), for all its arms;
    or on every task (on the arms in `of`), for all arms of the task: right where arms differ in their rows, not in what
    is trained."""
    of: tuple[str, ...] = ()
    """With ``per: task`` the arms that are swept, whose mean loss decides; the control when not said."""
    widen: Annotated[int, Field(ge=0, le=4)] = 1
    """How often an arm whose best rate lies at an end is tried one step beyond it."""

    @property
    def swept(self) -> tuple[float, ...]:
        """Rates or factors to try; empty without a sweep."""
        return self.sweep or self.factors or ()

    @property
    def on_every_task(self) -> bool:
        """Whether every task has a sweep of its own."""
        return self.per in ("task", "arm-on-task")

    @model_validator(mode="after")
    def _consistent(self) -> RateSettings:
        given = [name for name in ("shared", "sweep", "factors") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given")
        if (self.sweep or self.factors) and (len(set(self.swept)) != len(self.swept) or len(self.swept) < 2):
            raise ValueError("a sweep is a list of at least two different rates")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds are different numbers, at least one")
        if not self.swept and self.pilot is not None:
            raise ValueError("a pilot task without sweep: [...] does nothing")
        if self.on_every_task and self.pilot is not None:
            raise ValueError(f"every task is a pilot with per: {self.per}; leave pilot out")
        if self.of and self.per != "task":
            raise ValueError("of: arms are named for a sweep with per: task only")
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

    kind: Literal["arms"] = "arms"
    """What kind of study; files of other kinds are read by the modules in `study.kinds`."""
    name: Annotated[str, _names("a study")]
    """Its name in the experience store."""
    about: str = ""
    """What is asked, in a sentence."""
    model: Annotated[dict[str, ModelSettings], _names("a model"), _named("source"), BeforeValidator(_models)] = Field(
        default_factory=lambda: {DEFAULT_MODEL: ModelSettings()}, min_length=1
    )
    """The base model or several of them."""
    before: BeforeSettings | None = None
    """What every model is trained on first: the old version of the data."""
    tasks: Annotated[dict[str, TaskSettings], _names("a task"), _named("path")] = Field(min_length=1)
    """Tasks by name."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial configuration that all arms share; the default LoRA where nothing is said."""
    arms: Annotated[dict[str, dict[str, Any]], _names("an arm", ARM_NAME)] = Field(min_length=2)
    """What is compared: by name, the settings in which an arm differs from the base; `trainable` (a share), `tasks`
    (a list, where it is not for all) and `control` (where it is compared with another arm than all others)."""
    product: tuple[str, ...] = ()
    """Arms that came out of `factors`: these may be left out where a method cannot reach a share."""
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
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """An arm is as good as the control when it loses at most this share of the control's gain over the base."""
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
        base = checked_settings("base", value.get("base") or {})
        arms, factors = value.get("arms"), value.get("factors")
        if arms is not None and not isinstance(arms, Mapping):
            return {**value, "base": base}
        written = dict(arms or {})
        made = multiplied(factors) if factors is not None else {}
        if twice := set(written) & set(made):
            raise ValueError(f"arms.{min(twice)}: `factors` make an arm of this name too")
        checked = {name: checked_settings(f"arms.{name}", item or {}) for name, item in {**written, **made}.items()}
        rest = {key: item for key, item in value.items() if key != "factors"}
        if "product" not in rest and made:
            rest["product"] = list(made)
        return {**rest, "base": base, **({"arms": checked} if arms is not None or made else {})}

    @model_validator(mode="after")
    def _consistent(self) -> GridSpec:
        if self.control not in self.arms:
            hint = nearest_key(self.control, list(self.arms))
            raise ValueError(f"control: there is no arm {self.control!r}. {hint}")
        for key, values in (("seeds", self.seeds), ("sizes", self.sizes)):
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"{key}: the same value is given twice" if values else f"{key}: none is given")
        for name, arm in self.arms.items():
            for task in arm.get(TASKS, ()):
                if task not in self.tasks:
                    hint = nearest_key(task, list(self.tasks))
                    raise ValueError(f"arms.{name}.tasks: there is no task {task!r}. {hint}")
            other = arm.get(CONTROL, self.control)
            if other not in self.arms:
                hint = nearest_key(other, list(self.arms))
                raise ValueError(f"arms.{name}.control: there is no arm {other!r}. {hint}")
            if CONTROL in arm and name in (other, self.control):
                raise ValueError(f"arms.{name}.control: this arm is what others are compared with; leave it out")
        everywhere = [self.control, *(arm[CONTROL] for arm in self.arms.values() if CONTROL in arm)]
        everywhere += self.learning_rate.of
        for name in everywhere:
            if name not in self.arms:
                hint = nearest_key(name, list(self.arms))
                raise ValueError(f"learning_rate.of: there is no arm {name!r}. {hint}")
            if TASKS in self.arms[name]:
                raise ValueError(f"arms.{name}.tasks: every task is compared with this arm; leave tasks out")
        rates = self.learning_rate
        if rates.pilot is not None and rates.pilot not in self.tasks:
            hint = nearest_key(rates.pilot, list(self.tasks))
            raise ValueError(f"learning_rate.pilot: there is no task {rates.pilot!r}. {hint}")
        if rates.swept and not rates.on_every_task:
            for name in set(self.arms) - set(self.arms_on(rates.pilot or next(iter(self.tasks)))):
                raise ValueError(f"arms.{name}.tasks: rates are swept on a task that it is not for; say per: task")
        own = [name for name, settings in self.arms.items() if "learning_rate" in settings]
        if rates.swept and own:
            raise ValueError(f"arms.{own[0]}.learning_rate: rates are swept; leave it out or leave the sweep out")
        seen: dict[str, str] = {}
        for name in self.arms:
            key = fingerprint([self.config(name), self.share(name), self.arms[name].get(TASKS)])
            if key in seen:
                raise ValueError(f"arms.{name}: it is the same as {seen[key]}, so they cannot differ")
            seen[key] = name
        return self

    def config(self, arm: str) -> dict[str, Any]:
        """The whole configuration of an arm on any model; learning rate, epochs and a knob for its share are open."""
        own = {name: value for name, value in self.arms[arm].items() if name not in ABOUT_ARMS}
        settings = {**self.base, **own}
        method = str(settings.get("method", DEFAULT_LORA["method"]))
        general = {k: v for k, v in DEFAULT_LORA.items() if "." not in k or k.startswith(f"{method}.")}
        try:
            return resolve({**general, **applicable({**settings, "method": method}), **own})
        except UsageError as error:
            raise ValueError(f"arms.{arm}: {error.paragraph()}") from error

    def share(self, arm: str) -> float | None:
        """The share of the parameters that an arm is to train, where it says one."""
        return self.arms[arm].get(TRAINABLE)

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """By control, itself and the arms that are compared with it; the study's own control first."""
        against = {name: arm.get(CONTROL, self.control) for name, arm in self.arms.items()}
        return {
            control: (control, *(name for name in self.arms if against[name] == control and name != control))
            for control in dict.fromkeys((self.control, *against.values()))
        }

    def arms_on(self, task: str) -> tuple[str, ...]:
        """The arms that are compared on a task: all but those that are for other tasks only."""
        return tuple(name for name, arm in self.arms.items() if task in arm.get(TASKS, (task,)))

    @property
    def identity(self) -> str:
        """A hash of what decides the results: a folder holds one study. Where on a disk files lie does not count."""
        value = self.model_dump(mode="json", exclude={"about", "pilot", "margin"})
        value["arms"] = {name: {k: v for k, v in arm.items() if k != CONTROL} for name, arm in value["arms"].items()}
        groups = [*value["tasks"].values(), *value["model"].values()]
        for group in groups:
            group |= {key: _elsewhere(item) for key, item in group.items()}
        return fingerprint(value)


def _elsewhere(value: Any) -> Any:
    """The name of a file or folder that is given with its whole path; anything else as it is."""
    if isinstance(value, dict):
        return {key: _elsewhere(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
