"""Hidden states below the lowest adapted layer: computed once for a row, kept, and used in every later pass over it.

When only upper layers are adapted (``layers=last:8``), what the blocks below make of a row never changes, in no epoch
and no trial. `FrozenPrefix` runs them once for each row and starts the model at the first adapted block from there on.

Exactness. The states of a row are those of the row alone, not of the batch it came in, so they depend on the model
and the row's tokens only: whether they were kept or are computed again cannot be seen in a result, and a resumed run
repeats itself bit for bit. Against the ordinary pass they differ by rounding (sums over another batch layout).
It is used for causal models, where the blocks below hold nothing that is trained, inserted, hooked or noisy, which is
looked at before each pass; and only where a trial run gives the ordinary pass's hidden states, because architectures
differ in how they call their blocks.

Kept states are found by content: model, block, layout and the row's tokens (a hash). `PrefixStore` holds at most its
budget in bytes; when that is full, states of other models and blocks make room, and otherwise what is kept stays,
because a pass over all rows that throws out the oldest would find nothing again.

It does not cover encoders and encoder-decoders, and writes nothing to disk.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from foretune.data.update import PADDING, Layout, MicroBatch
from foretune.models.kinds import DROPOUT_NAMES
from foretune.models.modules import backbone_of
from foretune.training.attention import PackedPlan

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
"""What backbones call the norm behind their last block: the one thing outside the blocks that may be trained."""
NOISE_NAMES = (*DROPOUT_NAMES, "layerdrop")
"""What configurations call noise that no dropout module shows."""
KEY_BYTES = 16
"""Of a row's hash: two of 2**32 rows share one with a chance of 2**-65."""


@dataclass
class PrefixStore:
    """Hidden states by group (model and block) and row, within a budget in bytes."""

    budget_bytes: int
    used_bytes: int = 0
    found: int = 0
    """Rows whose states were there"""
    computed: int = 0
    _groups: OrderedDict[str, dict[bytes, torch.Tensor]] = field(default_factory=OrderedDict)
    verdicts: dict[str, bool] = field(default_factory=dict)
    """Group -> whether the trial run agreed with the ordinary pass"""

    def get(self, group: str, row: bytes) -> torch.Tensor | None:
        """The (time, width) states of a row, or None."""
        states = self._groups.get(group, {}).get(row)
        if states is None:
            self.computed += 1
        else:
            self.found += 1
        return states

    def put(self, group: str, row: bytes, states: torch.Tensor) -> None:
        """Keep the states of a row where they fit; other groups make room, the longest unused first."""
        size = states.numel() * states.element_size()
        own = self._groups.setdefault(group, {})
        self._groups.move_to_end(group)
        while self.used_bytes + size > self.budget_bytes and len(self._groups) > 1:
            self._drop(next(iter(self._groups)))
        if row not in own and self.used_bytes + size <= self.budget_bytes:
            own[row] = states
            self.used_bytes += size

    def _drop(self, group: str) -> None:
        gone = self._groups.pop(group)
        self.used_bytes -= sum(states.numel() * states.element_size() for states in gone.values())


class _Handed(nn.Module):
    """Stands where a frozen block was: hands on what it is given, or the states it holds."""

    def __init__(self, states: torch.Tensor | None = None) -> None:
        super().__init__()
        self.states = states
        self.seen: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *unused: Any, **unused_too: Any) -> torch.Tensor:
        """hidden_states: (batch, time, width), and the same out."""
        self.seen = hidden_states
        return hidden_states if self.states is None else self.states


def blocks_of(model: Any) -> nn.ModuleList | None:
    """The list of a backbone's blocks: the one list as long as the configuration says; None where that is unclear."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in backbone_of(model).modules() if isinstance(module, nn.ModuleList)]
    fitting = [found for found in lists if len(found) == count]
    return fitting[0] if len(fitting) == 1 else None


def lowest_adapted_block(model: Any) -> int:
    """The number of the lowest block that holds anything trained or inserted; 0 where something outside does.

    ``model``: a transformers model with its adapter injected. The norm behind the last block and an untied head do
    not count: they come after all blocks.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    blocks = blocks_of(model)
    if blocks is None:
        return 0
    adapted = [i for i, block in enumerate(blocks) if _adapted(block, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    inside = {id(module) for block in blocks for module in block.modules()}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if id(module) in inside or module is head or name.rpartition(".")[2] in FINAL_NORMS:
            continue
        inserted = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if inserted or any(weight.requires_grad for weight in module.parameters(recurse=False)):
            return 0
    return min(adapted, default=len(blocks))


def _adapted(block: nn.Module, inserted: tuple[type, ...]) -> bool:
    return any(weight.requires_grad for weight in block.parameters()) or any(
        isinstance(module, inserted) for module in block.modules()
    )


class FrozenPrefix:
    """The frozen lower part of one model with one adapter."""

    def __init__(self, model: Any, identity: str, store: PrefixStore) -> None:
        """``identity`` names the base's weights and number type; equal names mean bitwise equal weights."""
        self.model = model
        self.store = store
        self.blocks: Any = blocks_of(model)
        self.block = lowest_adapted_block(model)
        """The first block that is run on kept states; 0: there is nothing to keep"""
        if self.blocks is not None and self.block == len(self.blocks):
            self.block = 0  # nothing above would be left to run
        self.identity = f"{identity}/{type(model).__name__}/{self.block}"
        self._as_made = self._look()

    def _below(self) -> list[nn.Module]:
        """Every module that takes part in the states: the frozen blocks, and what stands before them."""
        inside = {id(module) for block in self.blocks for module in block.modules()}
        outside = [
            module
            for name, module in backbone_of(self.model).named_modules()
            if id(module) not in inside and name.rpartition(".")[2] not in FINAL_NORMS
        ]
        return outside + [module for block in self.blocks[: self.block] for module in block.modules()]

    def _look(self) -> tuple[tuple[int, ...], ...]:
        """Which modules and weights stand below, and how often each weight was written to."""
        if self.block == 0:
            return ()
        modules = self._below()
        weights = [weight for module in modules for weight in module.parameters(recurse=False)]
        return (
            tuple(map(id, modules)),
            tuple(map(id, weights)),
            tuple(-1 if weight.is_inference() else weight._version for weight in weights),
        )

    def usable(self) -> bool:
        """Whether nothing below is trained, hooked, replaced, rewritten or noisy at this moment."""
        if self.block == 0 or self._look() != self._as_made:
            return False
        model = self.model
        config = model.config.get_text_config()
        noisy = model.training and any(getattr(config, name, 0.0) for name in NOISE_NAMES)
        return not noisy and not any(_disturbed(module) for module in self._below())

    def states(self, batch: MicroBatch) -> torch.Tensor:
        """(batch, time, width): what goes into the first adapted block; zeros at padding."""
        rows = _rows_of(batch)
        kept = [self._row(ids, packed=batch.layout is not None) for ids in rows]
        device = batch.ids.device
        if batch.layout is not None:
            head = batch.layout.head
            parts = [kept[0][:head], *(states[head:] for states in kept)]
            return torch.cat(parts).to(device)[None]
        width = batch.ids.shape[1]
        padded = [nn.functional.pad(states, (0, 0, 0, width - len(states))) for states in kept]
        return torch.stack(padded).to(device)

    @contextlib.contextmanager
    def starting_from(self, states: torch.Tensor) -> Iterator[None]:
        """Inside, the model's frozen blocks hand on ``states`` (batch, time, width) instead of computing."""
        with self._replaced(range(self.block - 1), _Handed()), self._replaced([self.block - 1], _Handed(states)):
            yield

    @contextlib.contextmanager
    def _replaced(self, numbers: Any, other: nn.Module) -> Iterator[None]:
        before = {number: self.blocks[number] for number in numbers}
        for number in before:
            self.blocks[number] = other
        try:
            yield
        finally:
            for number, block in before.items():
                self.blocks[number] = block

    @torch.no_grad()
    def _row(self, ids: torch.Tensor, *, packed: bool) -> torch.Tensor:
        """(time, width) states of one row: kept, or computed on the row alone and kept. ids: (time,) int64."""
        group = f"{self.identity}/{'packed' if packed else 'plain'}"
        key = hashlib.blake2b(ids.cpu().numpy().tobytes(), digest_size=KEY_BYTES).digest()
        if (states := self.store.get(group, key)) is not None:
            return states
        positions = torch.arange(len(ids), device=ids.device)[None]
        extra: dict[str, Any] = {}
        if packed:
            extra["packed_plan"] = PackedPlan.of(Layout(0, ((0, len(ids)),)), ids.device)
        end = _Handed()
        with self._replaced(range(self.block, len(self.blocks)), end):
            mask = None if packed else torch.ones_like(positions)
            backbone_of(self.model)(
                input_ids=ids[None], attention_mask=mask, position_ids=positions, use_cache=False, **extra
            )
        assert end.seen is not None
        states = end.seen[0].detach().cpu().clone()
        self.store.put(group, key, states)
        return states


def _disturbed(module: nn.Module) -> bool:
    """Whether a module's output may differ from pass to pass, or somebody looks at or changes it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    noisy = isinstance(module, _DropoutNd) and module.training and module.p > 0
    return noisy or any(hooks) or any(weight.requires_grad for weight in module.parameters(recurse=False))


def _rows_of(batch: MicroBatch) -> list[torch.Tensor]:
    """The (time,) token ids of every row of a micro-batch, the shared head included."""
    if batch.layout is None:
        return [ids[segments != PADDING] for ids, segments in zip(batch.ids, batch.segments, strict=True)]
    stream = batch.ids[0]
    head = stream[: batch.layout.head]
    return [torch.cat([head, stream[start:end]]) for start, end in batch.layout.bounds]
