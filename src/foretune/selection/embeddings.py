"""One vector a row, from the last hidden states of a model: the ground of every selector that compares rows.

For hidden states h_1 … h_T of a row's tokens (question, template and answer as in training):

    mean       1/T Σ_t h_t
    weighted   Σ_t t·h_t / Σ_t t      later tokens have seen more (Muennighoff 2022, 2202.08904; used by RDS+)
    last       h_T

Vectors are float32 and, where asked, scaled to length one. A decoder embeds the row as it is trained on; a bare encoder
(all-MiniLM-L6-v2) reads question and answer as one text and is averaged, as such models are meant to be. Rows are
padded, not packed, so that a row's vector does not depend on its neighbours beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.example import Example
from foretune.models.modules import backbone_of
from foretune.selection.base import Request, Workbench
from foretune.selection.kept_blocks import in_blocks
from foretune.selection.likelihoods import row_key, without_folder
from foretune.training.forward import Network, on_device

Pooling = Literal["mean", "weighted", "last"]
Vectors = NDArray[np.float32]


def embedding_bench(request: Request, embedder: str) -> Workbench:
    """The request's own model, or the one called ``embedder``."""
    return request.model if embedder == "self" else request.model.with_model(embedder)


def embed(
    request: Request,
    examples: Sequence[Example],
    *,
    bench: Workbench,
    pooling: Pooling = "mean",
    unit: bool = True,
    network: Network | None = None,
    what: str = "embeddings",
) -> Vectors:
    """(rows, width) float32 vectors of ``examples``, kept in the request's folder.

    With ``network`` (an adapter under training) nothing is kept, because its weights have no name.
    """
    rows = _tokens(bench, examples)
    made_of = [bench.weights_hash, str(bench.network.model.dtype), pooling]
    kept = request if network is None else without_folder(request)

    def compute(block: Sequence[int]) -> dict[str, Vectors]:
        return {"vector": pooled(bench, [rows[i] for i in block], network or bench.network, pooling)}

    arrays = in_blocks(kept, what, [row_key(row) for row in rows], made_of, compute)
    vectors: Vectors = arrays["vector"] if arrays else np.zeros((0, 0), np.float32)
    return unit_length(vectors) if unit else vectors


def unit_length(vectors: Vectors) -> Vectors:
    """Vectors of length one; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled


def _tokens(bench: Workbench, examples: Sequence[Example]) -> list[EncodedRow]:
    """Rows as the model takes them; a bare encoder takes question and answer as one text."""
    if bench.kind != "encoder":
        return bench.encode(examples)
    texts = [f"{row.prompt}\n{row.answer}" if row.answer else row.prompt for row in examples]
    if not texts:
        return []
    limit = min(int(bench.task.context_tokens), int(bench.tokenizer.model_max_length))
    ids = bench.tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
    return [EncodedRow(np.asarray(row, np.int32), np.zeros(len(row), np.bool_), len(row), 0) for row in ids]


@torch.no_grad()
def pooled(bench: Workbench, rows: Sequence[EncodedRow], network: Network, pooling: Pooling) -> Vectors:
    """(rows, width) float32 of a few rows."""
    found: dict[int, Vectors] = {}
    plain = [EncodedRow(row.ids, np.zeros(len(row.ids), np.bool_), row.prompt_length, 0, label=0) for row in rows]
    with network.mode(packing=False, training=False):
        update = lay_out(
            plain, range(len(plain)), kind="causal", limit_tokens=bench.task.micro_batch_tokens, packing=False,
            pad_id=bench.pad_id,
        )  # fmt: skip
        for batch in update.micro_batches:
            placed = on_device(batch, network.model)
            mask = placed.attention_mask
            hidden = _hidden(network, placed.ids, mask).float()
            weights = _weights(mask, pooling)
            vectors = (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1e-9)
            for row, vector in zip(batch.rows, vectors.cpu().numpy().astype(np.float32), strict=True):
                found[row] = vector
    return np.stack([found[i] for i in range(len(rows))])


def _hidden(network: Network, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, time, width) last hidden states: of the encoder of an encoder–decoder, else of the model itself."""
    model: Any = network.model
    backbone = model.get_encoder() if network.kind == "seq2seq" else backbone_of(model)
    more = {"use_cache": False} if network.kind == "causal" else {}
    states: torch.Tensor = backbone(input_ids=ids, attention_mask=mask, **more).last_hidden_state
    return states


def _weights(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(rows, time) float: what each token counts."""
    tokens = mask.float()
    if pooling == "mean":
        return tokens
    position = tokens.cumsum(1) * tokens
    if pooling == "weighted":
        return position
    return (position == position.max(1, keepdim=True).values).float() * tokens
