"""The whole specification of a fit as typed settings; every field's description is its help text.

A value that is not given stays None and is recommended or found later (`resolve`). ``training`` holds settings of
the trial configuration (``catalogue.methods.config_space``): a value given there is fixed and leaves the search.
Quantities are written as people write them ("30m", "0.5%", "12GiB") and hold seconds, shares and bytes after reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from foretune.catalogue import regularizers
from foretune.catalogue.languages import parse_pair
from foretune.catalogue.methods import config_space
from foretune.catalogue.models import DEFAULT_MODEL
from foretune.errors import UsageError
from foretune.units import parse_bytes, parse_count, parse_duration, parse_money, parse_share


def _read(parser: Any) -> BeforeValidator:
    def parse(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bool):
            raise ValueError("true and false are no quantity here")
        try:
            return parser(value)
        except UsageError as error:  # pydantic collects ValueErrors and adds the key
            raise ValueError(error.paragraph()) from error

    return BeforeValidator(parse)


def _pair(value: Any) -> str:
    return "-".join(parse_pair(str(value)))


Seconds = Annotated[float, _read(parse_duration), Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, _read(parse_bytes), Field(ge=1)]
Share = Annotated[float, _read(parse_share), Field(ge=0, le=1)]
Money = Annotated[float, _read(parse_money), Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, _read(parse_count), Field(ge=0)]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are checked, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class ColumnNames(Section):
    """Which columns hold what; each is found when it is not named."""

    prompt: str | None = None
    """Column of the question or instruction."""
    answer: str | None = None
    """Column of the answer that is trained on."""
    label: str | None = None
    """Column of the class name or number."""
    text: str | None = None
    """Column of plain text that is trained on whole, or of the text to classify."""
    pair: str | None = None
    """Column of the second text, where a label is about two (premise and hypothesis)."""
    task: str | None = None
    """Column that names the task of a row, where several are mixed."""
    group: str | None = None
    """Column whose equal values stay in one split."""
    split: str | None = None
    """Column that assigns rows to train, validation and test."""
    system: str | None = None
    """Column of the system message."""


class DataSettings(Section):
    """The rows: where they are, what they hold, how they are split."""

    path: str | None = None
    """A file, a folder, a data set of the catalogue or of the hub."""
    format: str | None = None
    """How rows are written (messages, alpaca, prompt-completion, ...); found when not given."""
    columns: ColumnNames = ColumnNames()
    """Names of columns."""
    task: Literal["generation", "classification", "regression", "language-modelling"] | None = None
    """What is learnt; found from the rows when not given."""
    validation: str | None = None
    """A file of rows that choose between configurations."""
    test: str | None = None
    """A file of rows for the final comparison, never trained on."""
    validation_share: Share = 0.1
    """Share of the rows set aside for validation when no file or column says so."""
    test_share: Share = 0.1
    """Share of the rows set aside for the final comparison."""
    target: str | None = None
    """A file of rows like those to be good at, for selectors that need one; validation stands for the task's own."""
    previous: str | None = None
    """A file of rows that the model was trained on before: what is lost of them is told, selectors seek what is new."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """Stop at rows that cannot be read, or write them aside and go on."""
    metric: str | None = None
    """The primary metric; found from the task when not given."""
    context_tokens: Annotated[Count, Field(ge=8)] | None = None
    """Longest row in tokens: longer prompts are cut, answers never."""
    languages: Annotated[str, _read(_pair)] | None = None
    """Source and target of translation rows, like en-de: the model is told, in the way that it understands."""
    instruction: Annotated[str, Field(pattern=r"\S")] | None = None
    """What stands before every question or text, then an empty line (none after white space); no part of the rows."""

    @model_validator(mode="after")
    def _shares_leave_rows(self) -> DataSettings:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share together leave no rows to train on")
        return self


class ModelSettings(Section):
    """The base model and how it is loaded."""

    source: str = DEFAULT_MODEL
    """A folder, a hub id, a GGUF file, or a name of the catalogue."""
    kind: Literal["auto", "causal", "seq2seq", "encoder"] = "auto"
    """What kind of model it is; read from its configuration."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and arithmetic; auto is bfloat16 where the hardware computes in it."""
    quantize: Literal["auto", "none", "4bit"] = "auto"
    """Load the frozen base in 4 bits; auto does so only when it does not fit otherwise."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you trust its authors."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    plain_template: bool = False
    """Write rows without a chat template (for base models that have none)."""


class BudgetSettings(Section):
    """What ends the search: time, trials or steps (one of them)."""

    time: Seconds | None = None
    """Time for everything between loading and export, like 30m or 2h."""
    trials: Count | None = None
    """Number of configurations to try, the default LoRA included."""
    steps: Count | None = None
    """Optimiser steps in all, over every configuration that is tried."""
    cost: Money | None = None
    """Most that the run may cost, with price_per_hour; another way to say time."""
    price_per_hour: Money | None = None
    """Price of this machine for an hour, in your currency."""

    @model_validator(mode="after")
    def _one_budget(self) -> BudgetSettings:
        given = [name for name in ("time", "trials", "steps", "cost") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; a run has one budget")
        if self.cost is not None and not self.price_per_hour:
            raise ValueError("cost needs price_per_hour, so that it can be turned into time")
        return self


class SearchSettings(Section):
    """How configurations are chosen."""

    strategy: Literal[
        "auto", "transfer", "on-task", "zero-shot", "quick-tune", "random", "asha", "hyperband", "optuna-tpe"
    ] = "auto"
    """transfer: what earlier runs say, corrected by what is seen; on-task: the rule's learning rates, then what is
    seen; auto: transfer where enough earlier runs of this kind of model are known, else on-task. zero-shot: the rule's
    learning rates, then halving. The others are what they are compared with."""
    refit: Literal["none", "full"] = "none"
    """quick-tune: whether its models are trained on with what is seen on the task."""
    experience: Literal["known", "none"] = "known"
    """Earlier runs to learn from: those that ship with Foretune and those of this machine, or none."""
    warm_start: str | None = None
    """The folder of an earlier fit, or a folder of such folders: one run begins at the best weights there, where they
    answer validation rows better than the base."""
    methods: tuple[str, ...] | None = None
    """Methods to choose among; a curated list when not given."""
    keep: Literal["auto"] | None = None
    """auto: the search compares training on all rows with shares of a selection; else training.keep says the share."""
    menu: dict[str, Any] = Field(default_factory=dict)
    """What may be drawn for a setting of a trial: a list of values, or a range like 1e-4..1e-3."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Trials that run at the same time."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes on this machine that train one trial together, sharing out every update (data parallel)."""
    ray: str | None = None
    """Train on a Ray cluster: its address (auto, ray://host:10001), or local; in local processes when not given."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Same seed, data, store and budget in trials: same trials."""
    max_trials: Annotated[Count, Field(ge=1)] | None = None
    """Never more trials than this, whatever the time budget pays for."""
    priors: str | None = None
    """A file of rules that a study measured (priors.yaml), or none; the one beside the store when not given."""

    @model_validator(mode="after")
    def _one_way_of_spreading(self) -> SearchSettings:
        if self.processes > 1 and self.ray is not None:
            raise ValueError("processes of one trial share a machine; with ray leave search.processes out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _flatten_menu(cls, value: Any) -> Any:
        """``menu: {lora: {rank: [8, 16]}}`` becomes ``{"lora.rank": [8, 16]}``."""
        if not isinstance(value, Mapping) or not isinstance(value.get("menu"), Mapping):
            return value
        return {**value, "menu": flat_settings(value["menu"])}


class EvaluationSettings(Section):
    """How models are scored."""

    max_rows: Annotated[Count, Field(ge=1)] = 200
    """Most rows of a split that are scored at a time."""
    retrieved_examples: Annotated[Count, Field(le=64)] = 3
    """Examples put in the prompt of the untouched base for comparison; 0 leaves that comparison out."""
    generation: bool = True
    """Generate answers for tasks that are scored by them."""
    max_answer_tokens: Annotated[Count, Field(ge=1)] = 128
    """Longest generated answer; more where rows reason before they answer."""


class OutputSettings(Section):
    """What is handed over, and where."""

    folder: str | None = None
    """Folder of the run; named after the data when not given."""
    deploy: Literal["adapter", "merged", "gguf"] = "adapter"
    """How the result will be served; restricts the search to what that can serve."""


class MemorySettings(Section):
    """How a step is laid out; found so that it fits when not given."""

    limit: Bytes | None = None
    """Most memory a worker may take, like 12GiB; what is free when not given."""
    micro_batch_tokens: Annotated[Count, Field(ge=16)] | None = None
    """Tokens laid out in one forward pass."""
    gradient_checkpointing: bool | None = None
    """Keep only layer inputs for the backward pass: less memory, a third more arithmetic."""
    prefix_cache: Annotated[int, _read(parse_bytes), Field(ge=0)] | None = None
    """Most memory for hidden states kept below the lowest adapted layer; 512MiB when not given, 0 keeps none."""


def flat_settings(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys: ``{"lora": {"rank": 8}}`` becomes ``{"lora.rank": 8}``."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat.update(flat_settings(item, f"{name}.") if isinstance(item, Mapping) else {name: item})
    return flat


class FitSpec(Section):
    """Everything ``foretune fit`` can be told."""

    data: DataSettings = DataSettings()
    """The rows."""
    model: ModelSettings = ModelSettings()
    """The base model."""
    budget: BudgetSettings = BudgetSettings()
    """What ends the search."""
    trainable: Annotated[Share, Field(gt=0)] | None = None
    """Share of the model's parameters to train, like 0.5%: decides the method's knob (its rank, width, length)."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trial configuration; a value given here is fixed and leaves the search."""
    search: SearchSettings = SearchSettings()
    """How configurations are chosen."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How models are scored."""
    output: OutputSettings = OutputSettings()
    """What is handed over."""
    memory: MemorySettings = MemorySettings()
    """How a step is laid out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""

    @model_validator(mode="before")
    @classmethod
    def _flatten_training(cls, value: Any) -> Any:
        """``training: {lora: {rank: 8}}`` becomes ``{"lora.rank": 8}``, checked against the declared settings."""
        if not isinstance(value, Mapping) or not isinstance(value.get("training"), Mapping):
            return value
        flat = {name: item for name, item in flat_settings(value["training"]).items() if item is not None}
        space = config_space()
        checked = {}
        for name, item in flat.items():
            if name not in space.names():
                raise ValueError(f"training.{name} is not a setting")
            try:
                checked[name] = space[name].check(item)
            except UsageError as error:
                raise ValueError(f"training.{error.paragraph()}") from error
        try:
            regularizers.named(str(checked.get(regularizers.SETTING, regularizers.NONE)))
        except UsageError as error:
            raise ValueError(f"training.{regularizers.SETTING}: {error.paragraph()}") from error
        return {**value, "training": checked}


def known_keys(section: type[Section] = FitSpec, prefix: str = "") -> dict[str, str]:
    """Every dotted key with its description, in the order of declaration; ``training.*`` from the catalogue."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys.update(known_keys(field.annotation, f"{prefix}{name}."))
        elif section is FitSpec and name == "training":
            keys.update({f"training.{item.name}": item.about for item in config_space().parameters})
        elif section is SearchSettings and name == "menu":
            about = f"{field.description} ({prefix}{name}.SETTING)"
            keys.update({f"{prefix}{name}.{item.name}": about for item in config_space().parameters})
        else:
            keys[f"{prefix}{name}"] = field.description or ""
    return keys
