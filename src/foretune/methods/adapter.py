"""`AdapterMethod`: everything an adapter method needs but its peft configuration, which is one function.

A method's file holds its tuner and ends in one line, ``METHOD = AdapterMethod("name", build)``. Space, traits, count
and knob come from its declaration in `foretune.catalogue.methods`; targets and ``layers`` are resolved here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, TaskType
from torch import nn

from foretune.catalogue.methods import Declaration, declaration
from foretune.catalogue.methods.base import Target, knob_values
from foretune.catalogue.space import Space
from foretune.catalogue.traits import Traits
from foretune.cost.architectures import BUILDERS
from foretune.cost.shapes import ModelShapes
from foretune.errors import ModelError, UsageError
from foretune.methods import trainable as solver
from foretune.methods.attachment import PeftAttachment
from foretune.methods.base import Infeasible, KnobChoice
from foretune.methods.targets import model_targets


@dataclass(frozen=True)
class Request:
    """What a method's ``build`` sees."""

    method: str
    model: Any
    own: Mapping[str, Any]
    """The method's settings without their prefix"""
    targets: tuple[Target, ...]
    """The linear layers that the settings and ``layers`` choose, in model order"""
    layers: str
    """The key ``layers``: ``all`` or an expression"""
    task_type: TaskType
    seed: int
    knob: str
    calibration: Iterable[Any] | None = None

    def from_rows(self, look: Callable[[Iterable[Any]], dict[str, torch.Tensor]]) -> Mapping[str, torch.Tensor] | None:
        """What ``look`` makes of the calibration rows; where the run began before, what it made then.

        None without rows. For what is not trained, and so in no weights: a run that goes on must not look again, as
        other rows, or another machine's rounding, would make it another adapter.
        """
        taken: dict[str, torch.Tensor] = getattr(self.calibration, "taken", {})
        if not taken and self.calibration is not None:
            taken.update(look(self.calibration))
        return taken or None

    @property
    def names(self) -> list[str]:
        """Names of the targets."""
        return [target.name for target in self.targets]

    @property
    def pattern(self) -> dict[str, int]:
        """Knobs that differ from the common one, by target name."""
        if not self.knob or self.knob not in self.own:
            return {}
        values = knob_values(self.targets, self.own, self.knob)
        common = int(self.own[self.knob])
        return {target.name: value for target, value in zip(self.targets, values, strict=True) if value != common}

    def settings(self, *names: str) -> dict[str, Any]:
        """The usual fields of an `AdapterConfig`, and the own settings called ``names``."""
        usual = {
            "target_modules": self.names,
            "task_type": self.task_type,
            "knob_pattern": self.pattern,
            "seed": self.seed % 2**31,
        }
        return usual | {name: self.own[name] for name in names}


Build = Callable[[Request], PeftConfig]
Start = Callable[[PeftAttachment, Request], None]
"""What a recipe does to a fresh adapter: another start, other learning rates, tensors held still"""


class AdapterMethod:
    """A method whose adapter is a peft tuner, peft's own or ours."""

    def __init__(self, name: str, build: Build, start: Start | None = None) -> None:
        """``build`` makes the peft configuration; ``name`` must be declared in the catalogue."""
        self.name = name
        self.build = build
        self.start = start

    @property
    def declaration(self) -> Declaration:
        """What the catalogue says of it."""
        return declaration(self.name)

    @property
    def traits(self) -> Traits:
        """What it promises."""
        return self.declaration.traits

    def space(self) -> Space:
        """Its settings."""
        return self.declaration.space

    def count(self, shapes: ModelShapes, fields: Mapping[str, Any]) -> int:
        """Trainable parameters in closed form; a classifier's new head is not counted."""
        return solver.count(shapes, {**fields, "method": self.name})

    def knob_for(self, shapes: ModelShapes, trainable: float, fields: Mapping[str, Any]) -> KnobChoice | Infeasible:
        """The settings whose count is nearest to the share ``trainable`` of all parameters."""
        return solver.knob_for(self.declaration, shapes, trainable, fields)

    def attach(
        self,
        model: nn.Module,
        fields: Mapping[str, Any],
        *,
        generator: torch.Generator,
        calibration: Iterable[Any] | None = None,
    ) -> PeftAttachment:
        """Inject fresh weights drawn from ``generator``'s seed; a classifier's new head is trained along.

        Raises `UsageError` for settings that this model cannot take. Where peft itself fails midway, its layers stay
        in ``model``, which is then not to be used again.
        """
        request = self.request(model, fields, generator.initial_seed(), calibration)
        try:
            with ExitStack() as undo:
                attachment = PeftAttachment(model, self.build(request), self.traits, seed=request.seed)
                undo.callback(attachment.detach)
                self.settle(attachment)
                if self.start is not None:
                    self.start(attachment, request)
                self._assert_count(attachment, request)
                undo.pop_all()
            return attachment
        except (ValueError, TypeError, NotImplementedError, KeyError) as error:
            raise UsageError(
                f"{self.name} cannot be attached to {type(model).__name__} with these settings: {error}",
                remedy="Change its settings, or choose another method; `foretune methods` lists them.",
            ) from error

    def settle(self, attachment: PeftAttachment) -> None:
        """What a method does to its fresh adapter before it is counted and trained; nothing as a rule."""

    def _assert_count(self, attachment: PeftAttachment, request: Request) -> None:
        """Hold the closed form to what was built: a plan and a share promise it."""
        declared, config = self.declaration, request.model.config
        if not solver.countable(declared) or getattr(config, "model_type", None) not in BUILDERS:
            return
        own = {f"{self.name}.{key}": value for key, value in request.own.items()}
        shapes = ModelShapes.from_config(config.to_dict())
        said = solver.count(shapes, {"method": self.name, "layers": request.layers, **own})
        built = attachment.adapter_parameters
        if built != said:
            raise ModelError(
                f"{self.name} was to train {said:,} parameters and trains {built:,}: a defect of Foretune."
            )

    def request(
        self, model: nn.Module, fields: Mapping[str, Any], seed: int, calibration: Iterable[Any] | None = None
    ) -> Request:
        """Settings, targets and task of an attachment. Raises `UsageError`."""
        own, layers = self.declaration.own(fields), str(fields.get("layers", "all"))
        which = str(own.get("targets", "all-linear"))
        targets = () if self.declaration.expression else tuple(model_targets(model, which, layers))
        knob = self.declaration.knob
        return Request(self.name, model, own, targets, layers, task_type_of(model), seed, knob, calibration)


def task_type_of(model: Any) -> TaskType:
    """What peft calls the task of a transformers model."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
