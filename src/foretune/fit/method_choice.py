"""What a plan has to say about the method: the trainable share as settings, and what cannot be served is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods import declaration
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.config.resolve import Resolution, Resolved
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.execution.types import PREFIX_CACHE_BYTES
from foretune.methods.kept import kept_beside_lora
from foretune.methods.share import settings_for
from foretune.methods.targets import config_targets
from foretune.methods.trainable import count, countable
from foretune.units import format_share


def with_trainable_share(resolution: Resolution, shapes: ModelShapes) -> tuple[Resolution, str]:
    """The resolution with the settings that ``trainable`` means, as if chosen, and a sentence about them.

    Unchanged, with no words, where no share is asked for. Raises `UsageError` when no settings meet it.
    """
    wanted = resolution.spec.trainable
    if wanted is None:
        return resolution, ""
    fixed = resolution.fixed_training()
    sized = settings_for(shapes, wanted, fixed)
    said = f"--trainable {format_share(wanted)}"
    values = dict(resolution.values)
    for name, value in sized.settings.items():
        if name not in fixed:
            values[f"training.{name}"] = Resolved(value, "option", said)
    training = {
        key.removeprefix("training."): item.value for key, item in values.items() if key.startswith("training.")
    }
    spec = resolution.spec.model_copy(update={"training": training})
    sentence = (
        f"{sized.method} trains {sized.parameters:,} of {shapes.parameters:,} parameters "
        f"({format_share(sized.share)}; {format_share(sized.parameters / shapes.non_embedding_parameters)} of those "
        "outside the embeddings)"
    )
    changed = f"; {sized.changed}" if sized.changed else ""
    return replace(resolution, spec=spec, values=values), f"{sentence}{changed}."


def check_method(resolution: Resolution, shapes: ModelShapes) -> None:
    """Refuse a fixed method that is not for this kind of model, or that the deployment cannot serve."""
    fixed = resolution.fixed_training()
    if "method" not in fixed:
        return
    declared = declaration(str(fixed["method"]))
    if shapes.kind not in declared.kinds:
        raise UsageError(
            f"{declared.name} is not for {shapes.kind} models.", remedy="`foretune methods` lists what each is for."
        )
    if declared.expression:
        count(shapes, fixed)
    elif declared.count is not None:  # words about layers that this model has not are refused before it is loaded
        config_targets(shapes, declared.own(fixed), str(fixed.get("layers", "all")))
    deploy = resolution.spec.output.deploy
    if deploy != "adapter" and not declared.merges_exactly(fixed):
        settings = "" if declared.traits.merge == "no" else " with these settings"
        raise UsageError(
            f"{declared.name} cannot be merged{settings}, and deploy is {deploy}.",
            remedy="Use --deploy adapter, or another method.",
        )


def trainable_parameters(shapes: ModelShapes, config: Mapping[str, Any]) -> tuple[int, bool]:
    """(trainable parameters of a flat configuration, whether the whole model is trained).

    A method without a closed form is taken to train as much as the default LoRA.
    """
    declared = declaration(str(config["method"]))
    if declared.family == "whole":
        return shapes.parameters, True
    return count(shapes, config if countable(declared) else DEFAULT_LORA), False


BELOW_IS_FROZEN = ("delta", "edit", "sublayer")
"""Families that leave everything below their lowest layer as it is"""


def adapter_layout(config: Mapping[str, Any], shapes: ModelShapes, dtype: str) -> dict[str, Any]:
    """What the memory of a configuration's adapter depends on: fields of `cost.memory.Layout`.

    Loads torch for a method whose memory no formula tells (`methods.kept`).
    """
    method = str(config["method"])
    own = declaration(method).own(config)
    rank = int(config.get(f"{method}.rank", DEFAULT_LORA["lora.rank"]))
    beside = kept_beside_lora(shapes, config, rank=rank, dtype=dtype)
    return {
        "adapter_rank": rank,
        "extra_outputs": beside.outputs if beside else 0.0,
        "weight_copies": beside.weights if beside else 0.0,
        "adapter_dropout": float(config.get(f"{method}.dropout", 0.0)) > 0,
        "keeps_outputs": method == "loratrf" and own["trf_rank"] != 0 and own["trf_site"] == "module",
    }


def prefix_states_bytes(
    shapes: ModelShapes, config: Mapping[str, Any], budget: int | None, number_bytes: float
) -> float:
    """Bytes of the hidden states that are kept below the lowest adapted layer of a causal model; 0 where none are.

    ``number_bytes``: of one number for every token of all rows; ``budget``: as set, in bytes.
    """
    declared = declaration(str(config["method"]))
    if shapes.kind != "causal" or str(config.get("layers", "all")) == "all" or declared.family not in BELOW_IS_FROZEN:
        return 0.0
    adapted = config_targets(shapes, declared.own(config), str(config["layers"]))
    lowest = min((target.layer or 0 for target in adapted), default=0)
    most = float(PREFIX_CACHE_BYTES if budget is None else budget)
    return min(most, number_bytes * shapes.width) if lowest > 0 else 0.0


def method_notes(config: Mapping[str, Any], statistics: Mapping[str, float]) -> list[str]:
    """What the report says of the winner's method: that it is a reconstruction, its cautions, its gates."""
    declared = declaration(str(config["method"]))
    notes = []
    if declared.evidence == "reconstruction":
        notes.append(f"{declared.name} is a reconstruction ({declared.source}).")
    if "gate_mean" in statistics:
        notes.append(
            f"Gates of {declared.name} on validation rows: mean {statistics['gate_mean']:.3g}, open for "
            f"{100 * statistics['gate_open_share']:.0f} % of tokens and layers; mean by layer from "
            f"{statistics['gate_lowest_layer']:.3g} to {statistics['gate_highest_layer']:.3g}."
        )
    return notes
