"""Does it fit, and what has to change so that it does: 4-bit weights, gradient checkpointing, a smaller micro-batch.

When the weights alone leave no room for a step, the base is quantised first; otherwise checkpointing and a smaller
micro-batch come first, since they change no weight, and 4-bit is the last resort. Full tuning has no 4-bit form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from foretune.cost.memory import Layout, Peak, peak
from foretune.cost.shapes import ModelShapes
from foretune.errors import BudgetError
from foretune.units import format_bytes

_SMALLEST_MICRO_BATCH = 64  # tokens; below this the peak hardly changes and the time explodes
_SMALLER = "micro-batches hold"
_SAFE_SHARE = 0.92  # of the free memory: other processes breathe


@dataclass(frozen=True)
class Placement:
    """A layout that was chosen for the room there is."""

    layout: Layout
    peak: Peak
    room_bytes: float
    fits: bool
    changes: tuple[str, ...] = ()
    """What was changed to fit, in words, in the order it was tried"""


@dataclass(frozen=True)
class Freedom:
    """What may be changed: a setting that the user fixed may not."""

    quantize: bool = True
    checkpointing: bool = True
    micro_batch: bool = True


def place(
    shapes: ModelShapes,
    layout: Layout,
    room_bytes: float,
    *,
    trainable: int,
    full: bool,
    freedom: Freedom | None = None,
) -> Placement:
    """The first layout that fits into ``room_bytes``; the smallest one tried, marked as not fitting, when none does."""
    freedom = freedom or Freedom()
    room = room_bytes * _SAFE_SHARE
    tried = layout
    changes: list[str] = []
    needed = peak(shapes, tried, trainable=trainable, full=full)
    weights_alone = needed.weights + needed.trained + needed.framework > room
    for candidate, said in _ladder(tried, freedom, full=full, weights_first=weights_alone):
        if needed.total <= room:
            break
        smaller = peak(shapes, candidate, trainable=trainable, full=full)
        if smaller.total < needed.total:
            tried, needed = candidate, smaller
            changes = [change for change in changes if not change.startswith(_SMALLER)] + [said]
    return Placement(tried, needed, room_bytes, needed.total <= room, tuple(changes))


def _ladder(layout: Layout, freedom: Freedom, *, full: bool, weights_first: bool) -> Iterator[tuple[Layout, str]]:
    """Ever smaller layouts, each with what it changes."""
    quantize = freedom.quantize and not full and layout.quantize == "none"
    if quantize and weights_first:
        layout = replace(layout, quantize="4bit")
        yield layout, "the base model is loaded in 4 bits"
    if freedom.checkpointing and not layout.gradient_checkpointing:
        layout = replace(layout, gradient_checkpointing=True)
        yield layout, "gradient checkpointing is on"
    while freedom.micro_batch and layout.micro_batch_tokens > max(_SMALLEST_MICRO_BATCH, layout.longest_row):
        smaller = max(_SMALLEST_MICRO_BATCH, layout.longest_row, layout.micro_batch_tokens // 2)
        layout = replace(layout, micro_batch_tokens=smaller, head_chunk=min(layout.head_chunk, smaller))
        yield layout, f"{_SMALLER} {smaller} tokens"
    if quantize and not weights_first:
        yield replace(layout, quantize="4bit"), "the base model is loaded in 4 bits"


def refuse_if_too_large(placement: Placement) -> None:
    """Raise `BudgetError` when even the smallest layout does not fit, saying what would."""
    if placement.fits:
        return
    need = placement.peak.total / _SAFE_SHARE
    raise BudgetError(
        f"this model needs about {format_bytes(need)} and {format_bytes(placement.room_bytes)} are free"
        + (f", although {' and '.join(placement.changes)}." if placement.changes else "."),
        remedy="Choose a smaller --model, shorter rows, or a machine with more memory.",
    )
