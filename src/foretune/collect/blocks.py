"""The blocks of the shared design: a literal list, which grows with the menu.

A block's place in a task list's ``design`` decides when it is trained; a later block never changes an earlier one.
"""

from __future__ import annotations

from foretune.catalogue.space import Choice, Condition, Number, Space
from foretune.collect.design import RATE, ROWS, Block

_LORA = Condition("method", ("lora",))
_RATE = Number(RATE, 0.1, 20.0, 1.0, log=True)
"""Down to where nothing is learnt within a short run, up to where some runs diverge."""
_ROWS = Choice(ROWS, (0.5, 1.0, 2.0), 1.0)

CORE = Block(
    name="core",
    about="LoRA and full fine-tuning: learning rate, rank, scale, targets, schedule, batch",
    changes=(
        ("lora", {}),
        ("lora", {RATE: 3.0}),
        ("lora", {RATE: 1 / 3}),
        ("full", {}),
        ("lora", {"lora.rank": 4}),
        ("lora", {"lora.rank": 64}),
        ("lora", {"lora.targets": "attention"}),
        ("lora", {ROWS: 0.5}),
        ("lora", {RATE: 10.0}),
        ("full", {RATE: 3.0}),
        ("lora", {"schedule": "constant"}),
        ("lora", {"lora.targets": "mlp"}),
        ("full", {RATE: 1 / 3}),
        ("lora-3", {"lora.rank": 64}),
        ("lora", {"schedule": "cosine"}),
        ("lora", {"warmup_share": 0.1}),
        ("lora", {"lora.alpha": 64}),
        ("lora", {ROWS: 2.0}),
        ("lora", {"lora.dropout": 0.1}),
        ("lora", {"weight_decay": 0.1}),
        ("lora-3", {"lora.targets": "attention"}),
        ("full", {"schedule": "constant"}),
        ("lora-3", {"lora.rank": 4}),
        ("full", {"weight_decay": 0.1}),
    ),
    space=Space(
        (
            Choice("method", ("lora", "lora", "lora", "full"), "lora"),
            _RATE,
            Choice("lora.rank", (4, 8, 16, 32, 64, 128), 16, condition=_LORA),
            Choice("lora.targets", ("all-linear", "attention", "mlp"), "all-linear", condition=_LORA),
            Choice("lora.alpha", (16, 32, 64), 32, condition=_LORA),
            Choice("lora.dropout", (0.0, 0.05, 0.1), 0.0, condition=_LORA),
            Choice("schedule", ("linear", "cosine", "constant"), "linear"),
            Number("warmup_share", 0.0, 0.15, 0.03),
            Choice("weight_decay", (0.0, 0.01, 0.1), 0.0),
            _ROWS,
        )
    ),
    seeds=(1, 2),
)

_METHODS = ("loraplus", "lorafa", "bottleneck", "loreft", "ssf", "red", "mora", "melora", "eva")
METHODS = Block(
    name="methods",
    about="other methods than LoRA, each at its rule's rate and at drawn ones",
    changes=tuple(("lora", {"method": method}) for method in _METHODS),
    space=Space(
        (
            Choice("method", _METHODS, "loraplus"),
            _RATE,
            Choice("schedule", ("linear", "cosine", "constant"), "linear"),
            Number("warmup_share", 0.0, 0.15, 0.03),
        )
    ),
)

_REGULARIZERS = ("dropout:0.1", "neftune:5", "kl-to-base:0.1", "guided-dropout", "l2-sp:0.01", "flat-lora:0.05")
REGULARIZERS = Block(
    name="regularizers",
    about="what keeps a run from forgetting or over-fitting",
    changes=tuple(("lora", {"regularizer": word}) for word in _REGULARIZERS),
    space=Space(
        (
            Choice("method", ("lora",), "lora"),
            Choice("regularizer", _REGULARIZERS, _REGULARIZERS[0]),
            _RATE,
            Choice("lora.rank", (8, 16, 64), 16),
        )
    ),
)

_SELECTORS = ("random", "longest", "k-centre", "ifd")
SELECTIONS = Block(
    name="selections",
    about="training on a part of the rows, equally long",
    changes=tuple(
        ("lora", {"selection": word, "keep": keep})
        for word, keep in (("random", 0.3), ("longest", 0.3), ("k-centre", 0.3), ("ifd", 0.3), ("random", 0.7))
    ),
    space=Space(
        (
            Choice("method", ("lora",), "lora"),
            Choice("selection", _SELECTORS, "random"),
            Choice("keep", (0.2, 0.3, 0.5, 0.7), 0.3),
            _RATE,
        )
    ),
)

BLOCKS: dict[str, Block] = {block.name: block for block in (CORE, METHODS, REGULARIZERS, SELECTIONS)}
