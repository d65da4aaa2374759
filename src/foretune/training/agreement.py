"""Trials on the loaded model, on a few tokens, whether a shorter way computes what the plain one does.

A shorter way (packed rows, hidden states that were kept, the head at scored positions only) is taken where it gives
the model's own numbers up to rounding, and nowhere else. Which architectures and adapters those are is found out by
trying, so that a new one is right without being known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from foretune.data.batches import probe_layouts
from foretune.data.update import PADDING, MicroBatch
from foretune.models.passes import FAILURES, before_head, close
from foretune.training.prefix import FrozenPrefix, blocks_of

if TYPE_CHECKING:
    from foretune.training.forward import Network

PROBE_TOKENS = 12
"""Length of the rows that are tried."""


@torch.no_grad()
def of_packing(network: Network) -> bool:
    """Whether a packed stream gives the scores of separate rows."""
    if network.kind == "seq2seq" or not getattr(network.model, "_supports_attention_backend", False):
        return False
    if network.kind == "encoder" and (network.reads_tasks or blocks_of(network.model) is None):
        return False  # a stream tells tasks by token, and what stands behind the blocks reads whole documents
    stream, separate = probe_layouts(_ids(network.model, 3), network.kind)
    try:
        with network.mode(packing=True, training=False), network.answering_for(None):
            together = before_head(network.model, lambda: network.scores(stream))
    except FAILURES:
        return False
    with network.mode(packing=False, training=False), network.answering_for(None):
        apart = before_head(network.model, lambda: network.scores(separate))
    return close(together, apart)


@torch.no_grad()
def of_prefix(network: Network, prefix: FrozenPrefix, *, packing: bool) -> bool:
    """Whether kept hidden states of a causal model's frozen lower part stand for computing them again."""
    stream, separate = probe_layouts(_ids(network.model, 3), network.kind)
    batch = stream if packing else separate
    with network.mode(packing=packing, training=False), network.answering_for(None):
        ordinary = network.hidden(batch)
        try:
            with prefix.starting_from(prefix.states(batch)):
                kept = network.hidden(batch)
        except FAILURES:
            return False
    real = batch.segments != PADDING
    return close(kept[real], ordinary[real])


@torch.no_grad()
def of_logits(network: Network, logits: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether ``logits`` makes of a language model's last hidden states what the model itself does."""
    model = network.model
    ids = _ids(model, 1)
    positions = torch.arange(PROBE_TOKENS, device=ids.device)[None]
    decoder = ids if network.kind == "seq2seq" else None
    batch = MicroBatch(ids, positions, torch.ones_like(ids), ids[0], ids[0], ids[0], decoder_ids=decoder)
    with network.mode(packing=False, training=False), network.answering_for(None):
        given = {} if decoder is None else {"decoder_input_ids": decoder}
        return close(logits(network.hidden(batch)), model(input_ids=ids, use_cache=False, **given).logits)


def _ids(model: Any, rows: int) -> torch.Tensor:
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(rows * PROBE_TOKENS).reshape(rows, PROBE_TOKENS) * 7 + 11
    device: torch.device = model.device
    return (ids % vocabulary).to(device)
