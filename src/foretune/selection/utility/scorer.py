"""Distances of answers behind a shared head: the head goes through the model once, all tails behind it.

Three ways, from fast to plain, chosen by trial on the loaded model:

``packed``    keys and values of the head are cached once; tails lie one after another in a stream, each attends to the
              head and to itself (`foretune.training.attention`)
``expanded``  the same cache, copied for each row of a right-padded batch, for models with attention of their own
``joint``     every row whole, for models whose state cannot be shared

The vocabulary head runs on answer positions only, in chunks, with its softmax in float32. For a row with T answer
tokens of probability p_t the distance is d = sqrt(Σ (1 − p_t)² / T), in [0, 1] (DELIFT, Agarwal et al. 2024), and
l = Σ log p_t / T its mean log-probability; the two order pairs differently, so both are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.update import Layout, MicroBatch
from foretune.errors import UsageError
from foretune.models.cache import cached
from foretune.models.modules import backbone_of
from foretune.models.passes import RELATIVE_TOLERANCE
from foretune.selection.utility.prompts import Ids, joined
from foretune.training.attention import PackedPlan
from foretune.training.forward import Network, Scored

Way = Literal["packed", "expanded", "joint"]
PACK_TOKENS = 1024
"""Tokens of a forward pass: matrix products are long enough to be fast, and the working memory (some 60 MiB with
SmolLM2, most of it the logits of a chunk) does not depend on how many pairs there are."""
_WAYS: WeakKeyDictionary[Network, Way] = WeakKeyDictionary()
"""What the trial found for each network that is alive."""
_PROBE_HEAD = 9
_PROBE_TAILS = (7, 11, 5)
"""Tokens of the trial's head and tails: uneven, so that padding and packing would show."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Distances:
    """Of rows behind one head."""

    d: Floats
    """(rows,) root mean square of 1 − p over answer tokens"""
    l: Floats  # noqa: E741
    """(rows,) mean log-probability of an answer token"""


class Scorer:
    """A causal model that measures answers."""

    def __init__(self, network: Network, *, pad_id: int = 0, pack_tokens: int = PACK_TOKENS) -> None:
        """Raises `UsageError` for a model that writes no continuation."""
        if network.kind != "causal":
            raise UsageError(
                "an example before a question needs a causal language model.",
                remedy="Choose one, or a selector by embeddings such as delift-se.",
            )
        self.network = network
        self.pad_id = pad_id
        self.pack_tokens = pack_tokens

    @property
    def way(self) -> Way:
        """The fastest of the three whose hidden states are those of whole rows, on a few made-up tokens."""
        if self.network not in _WAYS:
            fast: tuple[Way, ...] = ("packed", "expanded") if self.network.packs else ("expanded",)
            _WAYS[self.network] = next((way for way in fast if self._agrees(way)), "joint")
        return _WAYS[self.network]

    @torch.no_grad()
    def score(self, head: Ids, tails: Sequence[EncodedRow], *, way: Way | None = None) -> Distances:
        """Distances of every tail behind ``head``; an empty head stands for nothing before."""
        way = way or self.way
        if not len(head) and way == "expanded":
            way = "joint"
        rows = list(tails) if way != "joint" else [joined(head, tail) for tail in tails]
        sums = np.zeros((3, len(rows)))
        for scored in self._passes(head, rows, way):
            losses = scored.nll().double().cpu().numpy()
            owner = scored.row.cpu().numpy()
            miss = -np.expm1(-losses)  # 1 − p
            for part, values in zip(sums, (miss**2, -losses, np.ones(len(losses))), strict=True):
                part += np.bincount(owner, weights=values, minlength=len(rows))
        counts = np.maximum(sums[2], 1.0)
        return Distances(np.sqrt(sums[0] / counts).astype(np.float32), (sums[1] / counts).astype(np.float32))

    def _passes(self, head: Ids, rows: Sequence[EncodedRow], way: Way) -> Iterator[Scored]:
        packing = way == "packed" or (way == "joint" and self.network.packs)
        update = lay_out(
            rows, range(len(rows)), kind="causal", limit_tokens=self.pack_tokens, packing=packing, share_head=False,
            pad_id=self.pad_id,
        )  # fmt: skip
        device = self.network.model.device
        with self.network.mode(packing=packing, training=False):
            cache = self._head_cache(head, way) if len(head) and way != "joint" else None
            for batch in update.micro_batches:
                batch = replace(batch, positions=batch.positions + (0 if cache is None else len(head))).to(device)
                if cache is None:
                    yield self.network.run(batch)
                else:
                    yield self.network.run_behind(batch, self._behind(cache, batch, len(head)))

    def _head_cache(self, head: Ids, way: Way) -> Any:
        """The keys and values of ``head``; packed ones in full, others as the model's own cache keeps them."""
        from transformers import DynamicCache

        base = backbone_of(self.network.model)
        cache = DynamicCache() if way == "packed" else DynamicCache(config=base.config)
        ids = torch.as_tensor(head, dtype=torch.int64, device=self.network.model.device)[None]
        extra: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        if way == "packed":
            extra = {"packed_plan": PackedPlan.of(Layout(0, ((0, len(head)),)), ids.device)}
        positions = torch.arange(len(head), device=ids.device)[None]
        base(input_ids=ids, position_ids=positions, **cached(base, cache), **extra)
        return cache

    def _behind(self, cache: Any, batch: MicroBatch, length: int) -> dict[str, Any]:
        """What tells the backbone of the head before a batch; the cache is not changed by it."""
        base = backbone_of(self.network.model)
        if batch.layout is not None:
            return cached(base, _Before(cache, length))
        rows = batch.ids.shape[0]
        expanded = copy.deepcopy(cache)
        expanded.batch_repeat_interleave(rows)
        seen = torch.ones(rows, length, dtype=torch.int64, device=batch.ids.device)
        return {**cached(base, expanded), "attention_mask": torch.cat([seen, batch.attention_mask], dim=1)}

    @torch.no_grad()
    def _agrees(self, way: Way) -> bool:
        vocabulary = int(self.network.model.get_input_embeddings().weight.shape[0])
        made_up = (np.arange(_PROBE_HEAD + sum(_PROBE_TAILS), dtype=np.int32) * 7 + 11) % vocabulary
        head, rest = made_up[:_PROBE_HEAD], made_up[_PROBE_HEAD:]
        ends = np.cumsum(_PROBE_TAILS)
        tails = [EncodedRow(ids, np.arange(len(ids)) > 1, 2, 0) for ids in np.split(rest, ends[:-1].tolist())]
        try:
            found = self._logits(head, tails, way)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, NotImplementedError, IndexError):
            return False
        whole = self._logits(head, tails, "joint")
        tolerance = RELATIVE_TOLERANCE.get(self.network.model.dtype, RELATIVE_TOLERANCE[torch.float32])
        return bool((found - whole).pow(2).mean().sqrt() <= tolerance * whole.std())

    def _logits(self, head: Ids, tails: Sequence[EncodedRow], way: Way) -> torch.Tensor:
        """(answer tokens, vocabulary), by row."""
        rows = [joined(head, tail) for tail in tails] if way == "joint" else list(tails)
        passes: list[Scored] = list(self._passes(head, rows, way))
        order = torch.cat([scored.row for scored in passes]).argsort(stable=True)
        return torch.cat([self.network.logits(scored.hidden).float() for scored in passes])[order]


class _Before:
    """A read-only cache: every layer gets the head's keys and values before its own, and nothing is added."""

    is_compileable = False

    def __init__(self, cache: Any, length: int) -> None:
        self.layers = cache.layers
        self._length = length

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, key heads, head + stream, width) keys and values of a layer."""
        kept = self.layers[layer]
        return torch.cat([kept.keys, key], dim=-2), torch.cat([kept.values, value], dim=-2)

    def get_seq_length(self, *_: Any) -> int:
        """Tokens of the head."""
        return self._length

    def get_mask_sizes(self, queries: int, *_: Any) -> tuple[int, int]:
        """(keys, offset) as the model's masks ask for them."""
        return self._length + queries, 0
