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
from foretune.training.prefix import FrozenPrefix, blocks_of

if TYPE_CHECKING:
    from foretune.regularization.base import Runner
    from foretune.training.forward import Network

PROBE_TOKENS = 12
"""Length of the rows that are tried."""
RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest root-mean-square difference of logits, relative to their spread, that counts as equal: accumulated rounding
of each precision. A leak between documents shows as 0.2 and more."""
FAILURES = (ValueError, TypeError, RuntimeError, KeyError, AttributeError, IndexError)
"""What a model raises that is called or wired in a way of its own."""


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
            together = _before_head(network.model, lambda: network.scores(stream))
    except FAILURES:
        return False
    with network.mode(packing=False, training=False), network.answering_for(None):
        apart = _before_head(network.model, lambda: network.scores(separate))
    return _close(together, apart)


@torch.no_grad()
def of_attention(model: Any, runner: Runner, implementation: str) -> bool:
    """Whether a model computes padded rows alike with an attention function of transformers' table and with its own."""
    ids = _ids(model, 1).view(2, PROBE_TOKENS // 2)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    before = runner.training_attention
    try:
        with runner.mode(packing=False, training=False):
            own = _before_head(model, lambda: model(**inputs).logits)
            model.set_attn_implementation(implementation)
            other = _before_head(model, lambda: model(**inputs).logits)
    except FAILURES:
        return False
    finally:
        runner.training_attention = before
    seen = mask.bool() if own.ndim == 3 and own.shape[:2] == mask.shape else ...
    return _close(other[seen], own[seen])


def _before_head(model: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a pass of ``model`` is compared by: what ``run`` returns, or for a classifier its last linear layer's input.

    The scores of a fresh head lie close together, all the more where there is one a text: rounding would look like a
    difference, and a difference like rounding.
    """
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if not linear or linear[-1].out_features != getattr(model.config, "num_labels", None):
        return run()
    read: list[torch.Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        returned = run()
    finally:
        hook.remove()
    return read[-1] if read else returned


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
    return _close(kept[real], ordinary[real])


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
        return _close(logits(network.hidden(batch)), model(input_ids=ids, use_cache=False, **given).logits)


def _ids(model: Any, rows: int) -> torch.Tensor:
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(rows * PROBE_TOKENS).reshape(rows, PROBE_TOKENS) * 7 + 11
    device: torch.device = model.device
    return (ids % vocabulary).to(device)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two passes differ by accumulated rounding only."""
    tolerance = RELATIVE_TOLERANCE.get(one.dtype, RELATIVE_TOLERANCE[torch.float32])
    difference = (one.float() - other.float()).pow(2).mean().sqrt()
    return bool(difference <= tolerance * other.float().std())
