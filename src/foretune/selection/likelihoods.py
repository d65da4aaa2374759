"""Statistics of the true answer's tokens under a model: losses, distances, entropies; row by row, block by block.

For a row with T scored tokens y_t and the model's distributions p_t over the vocabulary:

    nll       Σ_t −log p_t(y_t)                          summed loss
    squared   Σ_t (1 − p_t(y_t))²                        for the distance d = √(squared / T) of DELIFT (2411.04425)
    entropy   Σ_t −Σ_v p_t(v) log p_t(v)                 for active learning by uncertainty
    margin    Σ_t p_t(best) − p_t(second)                 likewise; small margins are uncertain

The softmax is in float32, sums in float64. Token caches are `data.token_cache`'s; what is computed here is kept by
`kept_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.template import prompt_with_examples
from foretune.data.update import chunks
from foretune.selection.base import Request, Workbench
from foretune.selection.kept_blocks import in_blocks
from foretune.training.forward import HEAD_CHUNK_TARGETS, Network, Scored, on_device

NAMES = ("nll", "squared", "entropy", "margin")


@dataclass(frozen=True)
class Likelihoods:
    """Statistics of rows; every array is (rows,) float64."""

    tokens: NDArray[np.float64]
    nll: NDArray[np.float64]
    squared: NDArray[np.float64]
    entropy: NDArray[np.float64]
    margin: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """Mean loss per scored token; NaN for a row without one."""
        return _divided(self.nll, self.tokens)

    @property
    def distance(self) -> NDArray[np.float64]:
        """D = √(mean (1 − p)²) in [0, 1]; NaN for a row without a scored token."""
        return np.sqrt(_divided(self.squared, self.tokens))


def _divided(values: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(values, by, out=np.full(len(values), np.nan), where=by > 0)
    return result


def likelihoods(
    request: Request, rows: Sequence[EncodedRow], what: str, *, bench: Workbench | None = None, network: Any = None
) -> Likelihoods:
    """The statistics of encoded rows under ``bench`` (the request's own when None), kept in the request's folder.

    With ``network`` (an adapter under training) nothing is kept, because its weights have no name.
    """
    chosen = bench or request.model
    keys = [row_key(row) for row in rows]
    made_of = [chosen.weights_hash, str(chosen.network.model.dtype)]
    kept = request if network is None else without_folder(request)

    def compute(block: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        return statistics(chosen, [rows[i] for i in block], network or chosen.network)

    arrays = in_blocks(kept, what, keys, made_of, compute)
    if not arrays:
        arrays = {name: np.zeros(0) for name in ("tokens", *NAMES)}
    return Likelihoods(**arrays)


def without_folder(request: Request) -> Request:
    """The request with nothing kept."""
    from dataclasses import replace

    return replace(request, folder=None)


def row_key(row: EncodedRow) -> str:
    """A hash of what a row's statistics depend on beside the model."""
    import hashlib

    digest = hashlib.sha256(row.ids.tobytes() + b"|" + np.packbits(row.target_mask).tobytes())
    if row.decoder_ids is not None:
        digest.update(row.decoder_ids.tobytes())
    digest.update(repr(row.label).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def statistics(bench: Workbench, rows: Sequence[EncodedRow], network: Network) -> dict[str, NDArray[np.float64]]:
    """The arrays of `Likelihoods` for a few rows."""
    sums = {name: np.zeros(len(rows)) for name in ("tokens", *NAMES)}
    packing = network.packs
    with network.mode(packing=packing, training=False):
        update = lay_out(
            rows,
            range(len(rows)),
            kind=network.kind,
            limit_tokens=bench.task.micro_batch_tokens,
            packing=packing,
            pad_id=bench.pad_id,
            decoder_start_id=bench.decoder_start_id,
        )
        for batch in update.micro_batches:
            scored = network.run(on_device(batch, network.model))
            owner = scored.row.cpu().numpy()
            np.add.at(sums["tokens"], owner, 1.0)
            for part in chunks(len(owner), HEAD_CHUNK_TARGETS):
                for name, values in _of_tokens(scored, part).items():
                    np.add.at(sums[name], owner[part], values)
    return sums


def _of_tokens(scored: Scored, part: slice) -> dict[str, NDArray[np.float64]]:
    """The four terms of each scored token in ``part``: (part,) float64 each."""
    if scored.labels.is_floating_point():
        zero = np.zeros(len(scored.labels[part]))
        return {"nll": scored.nll()[part].double().cpu().numpy(), "squared": zero, "entropy": zero, "margin": zero}
    log_probs = scored.log_probs(part)
    true = log_probs.gather(-1, scored.labels[part, None]).squeeze(-1).double()
    probs = log_probs.exp()
    entropy = -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
    best = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    margin = best[:, 0] - best[:, -1]
    terms = {"nll": -true, "squared": (1 - true.exp()) ** 2, "entropy": entropy, "margin": margin}
    return {name: value.double().cpu().numpy() for name, value in terms.items()}


def answers_alone(rows: Sequence[EncodedRow], start_id: int) -> list[EncodedRow]:
    """The rows with everything before and between the scored tokens taken away: ``[start | scored tokens]``.

    The same tokens are scored as in the rows themselves, so that the two losses differ by what the question gives.
    """
    alone = []
    for row in rows:
        if row.decoder_ids is not None:
            ids = np.asarray([start_id], dtype=np.int32)
            alone.append(EncodedRow(ids, np.zeros(1, np.bool_), 1, row.answer_bytes, decoder_ids=row.decoder_ids))
            continue
        scored = row.ids[row.target_mask]
        ids = np.concatenate([np.asarray([start_id], dtype=np.int32), scored]).astype(np.int32)
        mask = np.arange(len(ids)) > 0
        alone.append(EncodedRow(ids, mask, 1, row.answer_bytes))
    return alone


def start_token(bench: Workbench) -> int:
    """What a text begins with for this tokenizer: bos, else the end of text, else padding."""
    tokenizer = bench.tokenizer
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return bench.pad_id


def with_shot(bench: Workbench, examples: Sequence[Any], shots: Sequence[Any]) -> list[EncodedRow]:
    """The rows with one solved example each before the question, as an earlier turn of the conversation."""
    return bench.encode([prompt_with_examples(row, (shot,)) for row, shot in zip(examples, shots, strict=True)])
