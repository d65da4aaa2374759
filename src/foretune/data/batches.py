"""From encoded rows to micro-batches: packed streams where that is exact, length-sorted padded batches elsewhere.

Both layouts score the same labels; only the memory layout differs. A packed stream starts with the rows' common
head (the constant part of a chat template), computed once; every row then brings only its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from foretune.catalogue.models import ModelKind
from foretune.data.encode import EncodedRow, shared_head
from foretune.data.update import PADDING, Layout, MicroBatch, Update


def lay_out(
    rows: Sequence[EncodedRow],
    chosen: Sequence[int],
    *,
    kind: ModelKind,
    limit_tokens: int,
    packing: bool,
    share_head: bool = True,
    pad_id: int = 0,
    decoder_start_id: int = 0,
    padded_rows: int | None = None,
    tasks: bool = False,
) -> Update:
    """Lay the ``chosen`` rows out in micro-batches of at most ``limit_tokens`` tokens (always at least one row).

    ``packing`` asks for packed streams (not for encoder–decoders), ``share_head`` for the common head of a causal
    model's rows to be computed once (exact where no dropout is active). ``padded_rows`` bounds the rows of a padded
    batch. ``tasks`` adds the numbers of the rows' tasks; rows of several tasks then share no head, which each task's
    adapter would see differently.
    """
    packing = packing and kind != "seq2seq"
    share_head = share_head and kind == "causal" and not (tasks and len({rows[i].task for i in chosen}) > 1)
    order = sorted(range(len(chosen)), key=lambda number: (-length_of(rows[chosen[number]], kind), number))
    head = shared_head([rows[i] for i in chosen]) if packing and share_head and len(chosen) > 1 else 0
    groups: list[list[int]] = []
    filled = 0
    for number in order:
        length = length_of(rows[chosen[number]], kind)
        if packing:
            length -= head
            fits = bool(groups) and filled + length <= limit_tokens
            filled = filled + length if fits else head + length
        else:  # sorted by falling length: the first row of a group sets its width
            width = length_of(rows[chosen[groups[-1][0]]], kind) if groups else 0
            full = padded_rows is not None and bool(groups) and len(groups[-1]) >= padded_rows
            fits = bool(groups) and not full and width * (len(groups[-1]) + 1) <= limit_tokens
        if fits:
            groups[-1].append(number)
        else:
            groups.append([number])
    if kind == "causal":
        build = _packed if packing else _padded
        batches = [build(rows, chosen, group, head, pad_id) for group in groups]
    elif kind == "encoder":
        batches = [_labelled(rows, chosen, group, pad_id, packing=packing) for group in groups]
    else:
        batches = [_translated(rows, chosen, group, pad_id, decoder_start_id) for group in groups]
    if tasks:
        batches = [_with_tasks(batch, rows) for batch in batches]
    return Update(tuple(chosen), tuple(batches))


def _with_tasks(batch: MicroBatch, rows: Sequence[EncodedRow]) -> MicroBatch:
    """``batch`` with its rows' task numbers: of every token of a packed stream, of every line of a padded batch."""
    numbers = _tensor([rows[i].task or 0 for i in batch.rows])
    if batch.layout is None:
        return replace(batch, tasks=numbers)
    # documents count from 1; the shared head, number 0, is of the one task there is
    return replace(batch, tasks=numbers[(batch.segments - 1).clamp_min(0)])


def length_of(row: EncodedRow, kind: ModelKind) -> int:
    """The tokens that a row puts into a batch, those of a decoder of its own among them."""
    return len(row.ids) + (len(row.decoder_ids) if kind == "seq2seq" and row.decoder_ids is not None else 0)


def _tensor(values: np.ndarray | Sequence[int], kind: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=kind)


def _packed(
    rows: Sequence[EncodedRow], chosen: Sequence[int], group: Sequence[int], head: int, pad_id: int
) -> MicroBatch:
    members = [rows[chosen[number]] for number in group]
    ids, positions, segments, layout = _stream([row.ids for row in members], head)
    scored = [np.flatnonzero(row.target_mask) for row in members]
    starts = [start for start, _ in layout.bounds]
    return MicroBatch(
        ids=ids,
        positions=positions,
        segments=segments,
        target_index=_tensor(np.concatenate([start + at - head - 1 for start, at in zip(starts, scored, strict=True)])),
        labels=_tensor(np.concatenate([row.ids[at] for row, at in zip(members, scored, strict=True)])),
        row=_tensor(np.repeat(list(group), [len(at) for at in scored])),
        rows=tuple(chosen[number] for number in group),
        layout=layout,
    )


def _stream(sequences: Sequence[np.ndarray], head: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Layout]:
    """(1, stream) ids, positions and segments of sequences one after another, behind ``head`` tokens they share."""
    lengths = [len(sequence) - head for sequence in sequences]
    ends = (head + np.cumsum(lengths)).tolist()
    ids = np.concatenate([sequences[0][:head], *(sequence[head:] for sequence in sequences)])
    positions = np.concatenate([np.arange(head), *(np.arange(head, head + length) for length in lengths)])
    segments = np.repeat(np.arange(len(sequences) + 1), [head, *lengths])
    bounds = tuple((end - length, end) for end, length in zip(ends, lengths, strict=True))
    return _tensor(ids)[None], _tensor(positions)[None], _tensor(segments)[None], Layout(head, bounds)


def _grid(sequences: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, longest) ids, positions and segments of right-padded sequences."""
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    segments = np.full((len(sequences), width), PADDING, dtype=np.int64)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)] = sequence
        segments[number, : len(sequence)] = 1
    positions = np.broadcast_to(np.arange(width), ids.shape)
    return _tensor(ids), _tensor(positions), _tensor(segments)


def _padded(
    rows: Sequence[EncodedRow], chosen: Sequence[int], group: Sequence[int], _head: int, pad_id: int
) -> MicroBatch:
    members = [rows[chosen[number]] for number in group]
    ids, positions, segments = _grid([row.ids for row in members], pad_id)
    width = ids.shape[1]
    scored = [np.flatnonzero(row.target_mask) for row in members]
    return MicroBatch(
        ids=ids,
        positions=positions,
        segments=segments,
        target_index=_tensor(np.concatenate([line * width + at - 1 for line, at in enumerate(scored)])),
        labels=_tensor(np.concatenate([row.ids[at] for row, at in zip(members, scored, strict=True)])),
        row=_tensor(np.repeat(list(group), [len(at) for at in scored])),
        rows=tuple(chosen[number] for number in group),
    )


def _labelled(
    rows: Sequence[EncodedRow], chosen: Sequence[int], group: Sequence[int], pad_id: int, *, packing: bool
) -> MicroBatch:
    members = [rows[chosen[number]] for number in group]
    labels = [row.label for row in members]
    real = any(isinstance(label, float) for label in labels)
    texts = [row.ids for row in members]
    layout = None
    if packing:
        ids, positions, segments, layout = _stream(texts)
    else:
        ids, positions, segments = _grid(texts, pad_id)
    types = None
    if any(row.pair_start for row in members):
        starts = _tensor([row.pair_start or len(row.ids) for row in members])
        starts = starts[segments - 1] if packing else starts[:, None]
        types = ((positions >= starts) & (segments != PADDING)).long()
    return MicroBatch(
        ids=ids,
        positions=positions,
        segments=segments,
        target_index=_tensor(range(len(group))),
        labels=torch.tensor(labels, dtype=torch.float32 if real else torch.int64),
        row=_tensor(list(group)),
        rows=tuple(chosen[number] for number in group),
        layout=layout,
        types=types,
    )


def _translated(
    rows: Sequence[EncodedRow], chosen: Sequence[int], group: Sequence[int], pad_id: int, start_id: int
) -> MicroBatch:
    """Decoder inputs are the labels shifted right behind ``start_id``: position t predicts label t."""
    members = [rows[chosen[number]] for number in group]
    ids, positions, segments = _grid([row.ids for row in members], pad_id)
    answers = [row.decoder_ids for row in members if row.decoder_ids is not None]
    decoder_ids, _, _ = _grid([np.concatenate([[start_id], answer[:-1]]) for answer in answers], pad_id)
    width = decoder_ids.shape[1]
    return MicroBatch(
        ids=ids,
        positions=positions,
        segments=segments,
        target_index=_tensor(np.concatenate([line * width + np.arange(len(a)) for line, a in enumerate(answers)])),
        labels=_tensor(np.concatenate(answers)),
        row=_tensor(np.repeat(list(group), [len(answer) for answer in answers])),
        rows=tuple(chosen[number] for number in group),
        decoder_ids=decoder_ids,
    )


def probe_layouts(ids: torch.Tensor, kind: ModelKind) -> tuple[MicroBatch, MicroBatch]:
    """The same rows packed (causal: behind a shared head) and padded, for the self-check "packed = separate".

    ids: (rows, time) int64; the first third of every row is replaced by that of the first row.
    """
    count, time = ids.shape
    head = time // 3
    rows = []
    for number in range(count):
        own = ids[number].cpu().numpy().astype(np.int32)
        own[:head] = ids[0, :head].cpu().numpy()
        own = own[: time - number]  # rows of different lengths
        mask = np.zeros(len(own), dtype=bool)
        mask[head + 1 :] = True
        label = 0 if kind == "encoder" else None
        rows.append(EncodedRow(ids=own, target_mask=mask, prompt_length=head + 1, answer_bytes=0, label=label))
    everything = list(range(count))
    together, apart = (
        lay_out(rows, everything, kind=kind, limit_tokens=count * time, packing=packing) for packing in (True, False)
    )
    device = ids.device
    return together.micro_batches[0].to(device), apart.micro_batches[0].to(device)
