"""How a run is laid out on a machine before its memory is looked at, and how fast the machine is taken to be.

`plan` asks here for the device, the layout that it wishes for, what of it may change when memory is short
(`cost.placement` decides), and the speeds it reckons with. Torch-free but for a calibration and for methods whose
memory no formula tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods import resolve
from foretune.config.resolve import Resolution
from foretune.config.spec import FitSpec
from foretune.cost.machine import Machine
from foretune.cost.memory import Layout
from foretune.cost.placement import Freedom
from foretune.cost.rates import Rates, Throughput, from_accelerator, from_history, from_matmul
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.fit.find_model import ModelFacts
from foretune.fit.method_choice import adapter_layout, prefix_states_bytes
from foretune.fit.outlook import evaluation_settings
from foretune.fit.planned_rows import PlannedRows

MICRO_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
"""Wished for where nothing is set: a processor gains nothing from more, a GPU idles with less."""


def device_of(spec: FitSpec, machine: Machine) -> str:
    """Where to train. Raises `UsageError` for a GPU that is not there."""
    if spec.device == "cuda" and not machine.accelerators:
        raise UsageError("device is cuda, but nvidia-smi shows no GPU here.", remedy="Use --set device=cpu.")
    return machine.device if spec.device == "auto" else spec.device


def layout_of(
    resolution: Resolution,
    machine: Machine,
    device: str,
    config: Mapping[str, Any],
    facts: ModelFacts,
    rows: PlannedRows,
) -> Layout:
    """The layout as it is wished for; `place` changes of it what does not fit."""
    spec, row = resolution.spec, rows.count.row
    longest = row.longest
    generates = evaluation_settings(spec, facts.shapes.kind, rows.task, rows.validation).generation
    tokens = spec.memory.micro_batch_tokens or MICRO_BATCH_TOKENS[device]
    dtype = machine.computes_in(device) if spec.model.dtype == "auto" else spec.model.dtype
    layout = Layout(
        micro_batch_tokens=max(tokens, longest),
        gradient_checkpointing=bool(spec.memory.gradient_checkpointing),
        dtype=dtype,
        quantize="none" if spec.model.quantize == "auto" else spec.model.quantize,
        device=device,
        **_heaviest(config, spec.search.methods or (), facts.shapes, dtype),
        longest_row=longest,
        row=row,
        rows_per_update=int(config["rows_per_update"]),
        answer_tokens=spec.evaluation.max_answer_tokens if generates else 0,
    )
    passed = (rows.train + rows.validation) * (row.total if row else longest)
    kept = prefix_states_bytes(facts.shapes, config, spec.memory.prefix_cache, passed * layout.width_bytes)
    return replace(layout, prefix_states_bytes=kept)


def _heaviest(config: Mapping[str, Any], methods: Sequence[str], shapes: ModelShapes, dtype: str) -> dict[str, Any]:
    """What the memory of an adapter depends on: of ``config``, or of any of ``methods`` that is larger in it."""
    configs = [config, *(resolve({"method": name}) for name in methods)]
    fields = [adapter_layout(each, shapes, dtype) for each in configs]
    return {name: max(each[name] for each in fields) for name in fields[0]}


def freedom(resolution: Resolution) -> Freedom:
    """What `place` may change: all that the user has not set."""
    memory = resolution.spec.memory
    return Freedom(
        quantize=resolution.spec.model.quantize == "auto",
        checkpointing=memory.gradient_checkpointing is None,
        micro_batch=memory.micro_batch_tokens is None,
    )


def rates_of(
    machine: Machine,
    layout: Layout,
    shapes: ModelShapes,
    history: Sequence[Throughput],
    matmul: Callable[[Machine], float] | None,
) -> Rates:
    """The best source of speeds there is: earlier runs here, a table of accelerators, a calibration."""
    known = from_history(history, machine.fingerprint, layout.device, layout.dtype, shapes.parameters)
    if known is not None:
        return known
    if layout.device == "cuda":
        return from_accelerator(machine.accelerators[0].name, layout.dtype)
    if matmul is None:
        from foretune.execution.calibration import matmul_rate

        matmul = matmul_rate
    return from_matmul(matmul(machine), layout.dtype)
