"""Small updates on a GPU: one recorded graph instead of some thousand launches.

Forward and backward pass of SmolLM2-135M with LoRA are about 5,300 kernels that take a GPU 15 ms, and a processor ten
times as long to launch. Here they are recorded once a run (CUDA graphs) on rows padded to one fixed shape, and played
again for every update. What differs between updates is copied into the recorded inputs: tokens, targets, labels and the
weight of every target, which is 0 where the fixed shape is not filled.

Losses and gradients are those of the ordinary way to rounding. It is taken by rule, so that a resumed run takes the
same way: on a GPU, for causal models and encoders, without regularizers, without rows of several tasks, without kept
states of frozen layers, when an update fits one micro-batch of at most `LARGEST_TOKENS`. Where a method cannot be
recorded (it copies from the processor, or waits for a result), the run goes on in the ordinary way.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from foretune.data.encode import EncodedRow
from foretune.data.update import PADDING, Layout, MicroBatch, Update
from foretune.training.attention import PackedPlan
from foretune.training.forward import Network

logger = logging.getLogger(__name__)
LARGEST_TOKENS = 4096
"""Of the fixed shape. Larger updates keep a GPU busy while the next kernels are launched."""
STEP = 8
"""The fixed row length is a multiple of this."""


class Recorded:
    """The recorded pass of one run."""

    def __init__(
        self,
        network: Network,
        weights: Sequence[torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        rows: Sequence[EncodedRow],
        rows_per_update: int,
        pad_id: int,
    ) -> None:
        """``rows`` are all rows of the run, ``rows_per_update`` the most that an update has. See `recordable`."""
        self._network = network
        self._weights = tuple(weights)
        self._backward = backward
        self._lines = rows_per_update
        self._width = width_of(rows)
        most = max(max(row.targets for row in rows), 1) if network.kind == "causal" else 1
        self._batch, self._shares = _blank(network, rows, self._lines, self._width, self._lines * most, pad_id)
        self._pad_id = pad_id
        self._plan: PackedPlan | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.zeros(())
        self._gradients: list[torch.Tensor | None] = []
        self.refused = ""
        """Why the run cannot be recorded, once that is known"""

    def run(self, update: Update, denominator: float) -> float | None:
        """The loss of an update, its gradients on the weights; None where the ordinary way has to be taken."""
        if self.refused or len(update.micro_batches) != 1 or len(update.rows) > self._lines:
            return None
        self._fill(update.micro_batches[0], denominator)
        if self._graph is None and not self._record():
            return None
        assert self._graph is not None
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return float(self._loss)

    def _pass(self) -> torch.Tensor:
        loss = (self._network.run(self._batch).nll() * self._shares).sum()
        self._backward(loss)
        return loss.detach()

    def _record(self) -> bool:
        if self._batch.layout is not None:  # the graph reads it: it must live as long
            self._plan = PackedPlan.of(self._batch.layout, self._batch.ids.device)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self._pass()  # what is made at the first pass (workspaces, plans) must not be made while recording
                self._forget()
                stream.synchronize()
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._loss = self._pass()
                except BaseException:
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        except (RuntimeError, ValueError, TypeError) as error:
            self.refused = f"{type(error).__name__}: {error}"
            logger.info("this run is not recorded: %s", self.refused)
        torch.cuda.current_stream().wait_stream(stream)
        if self.refused:
            self._forget()
            torch.cuda.synchronize()
            return False
        self._graph = graph
        self._gradients = [weight.grad for weight in self._weights]
        return True

    def _forget(self) -> None:
        for weight in self._weights:
            weight.grad = None

    def _fill(self, given: MicroBatch, denominator: float) -> None:
        """Copy an update into the recorded inputs."""
        own = self._batch
        causal = self._network.kind == "causal"
        lines, width, count = len(given.rows), given.ids.shape[1], len(given.labels)
        ids = torch.full((self._lines, self._width), self._pad_id)
        ids[:lines, :width] = given.ids
        own.ids.copy_(ids.view_as(own.ids))
        targets = torch.zeros(own.labels.shape, dtype=torch.int64)
        labels = torch.zeros(own.labels.shape, dtype=own.labels.dtype)
        shares = torch.zeros(own.labels.shape)
        labels[:count], shares[:count] = given.labels, 1 / denominator
        own.labels.copy_(labels)
        self._shares.copy_(shares)
        if causal:
            line, at = given.target_index // width, given.target_index % width
            targets[:count] = line * self._width + at
            own.target_index.copy_(targets)
            return
        segments = torch.full((self._lines, self._width), PADDING)
        segments[:, 0] = 1  # a line without any token would have no attention to normalise
        segments[:lines, :width] = given.segments
        segments[:lines, 0] = 1
        own.segments.copy_(segments)
        if own.types is not None:
            types = torch.zeros((self._lines, self._width), dtype=torch.int64)
            if given.types is not None:
                types[:lines, :width] = given.types
            own.types.copy_(types)


def width_of(rows: Sequence[EncodedRow]) -> int:
    """The fixed row length in tokens."""
    return -(-max(len(row.ids) for row in rows) // STEP) * STEP


def recordable(network: Network) -> bool:
    """Whether updates of this model can take the recorded way."""
    if network.model.device.type != "cuda" or network.kind not in ("causal", "encoder"):
        return False
    if network.reads_tasks or network.keeps_states or getattr(network.model, "is_gradient_checkpointing", False):
        return False
    return network.kind == "encoder" or network.packs


def _blank(
    network: Network, rows: Sequence[EncodedRow], lines: int, width: int, targets: int, pad_id: int
) -> tuple[MicroBatch, torch.Tensor]:
    """A micro-batch of the fixed shape on the model's device, and the share of every target in the loss.

    Causal: lines one after another in a packed stream, every one a document, so that attention needs no mask: padding
    stands behind a row, where nothing real sees it. Encoder: a padded batch, with token types where rows are pairs.
    """
    kind = torch.float32 if any(isinstance(row.label, float) for row in rows) else torch.int64
    positions = np.tile(np.arange(width), lines)
    batch = MicroBatch(
        ids=torch.full((lines * width,), pad_id),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(np.repeat(np.arange(1, lines + 1), width)),
        target_index=torch.arange(targets) if network.kind == "encoder" else torch.zeros(targets, dtype=torch.int64),
        labels=torch.zeros(targets, dtype=kind),
        row=torch.zeros(targets, dtype=torch.int64),
        types=torch.zeros((lines, width), dtype=torch.int64) if any(row.pair_start for row in rows) else None,
    )
    shape = (1, lines * width) if network.kind == "causal" else (lines, width)
    batch = replace(batch, **{name: getattr(batch, name).reshape(shape) for name in ("ids", "positions", "segments")})
    if network.kind == "causal":
        bounds = tuple((line * width, (line + 1) * width) for line in range(lines))
        batch = replace(batch, layout=Layout(0, bounds))
    device = network.model.device
    return batch.to(device), torch.zeros(targets, device=device)
