"""The gradient of every row's own loss with respect to the LoRA matrices, for many rows in one backward pass.

A LoRA layer computes y = W x + s·B (A x). For a padded batch whose loss is the sum of the rows' mean losses no row's
output depends on another row, so with x: (rows, time, in), the layer's input, and g: (rows, time, out), the gradient
of its output,

    ∂L_i/∂B = s Σ_t g_it (A x_it)ᵀ          ∂L_i/∂A = s Σ_t (Bᵀ g_it) x_itᵀ

which two products give for all rows at once (Goodfellow 2015, 1510.01799, for plain layers). Padding has g = 0. The
products are in float32. Each layer's gradients are handed over as the backward pass reaches it, so only one layer's
are held. Dropout must be off. It does not see other trained tensors (a classifier's new head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foretune.data.batches import lay_out, length_of
from foretune.data.encode import EncodedRow
from foretune.seeding import generator
from foretune.selection.base import Workbench
from foretune.training.forward import Network, on_device

ADAPTER = "default"
Take = Callable[[str, torch.Tensor], None]
"""(name of the matrix, its gradients (rows, a, b) float32)"""


def row_gradients(bench: Workbench, network: Network, rows: Sequence[EncodedRow], take: Take) -> None:
    """Hand the gradients of all ``rows`` (one padded batch) to ``take``, matrix after matrix.

    ``network`` has LoRA attached. The loss of a row is the mean over its scored tokens.
    """
    longest = max(length_of(row, network.kind) for row in rows)
    update = lay_out(
        rows, range(len(rows)), kind=network.kind, limit_tokens=longest * len(rows),
        packing=False, pad_id=bench.pad_id, decoder_start_id=bench.decoder_start_id,
    )  # fmt: skip
    (batch,) = update.micro_batches
    order = torch.tensor(batch.rows)
    with network.mode(packing=False, training=False), _hooked(network.model, order, take):
        scored = network.run(on_device(batch, network.model))
        counts = torch.bincount(scored.row, minlength=len(rows)).clamp_min(1)
        loss = (scored.nll() / counts[scored.row]).sum()
        bench.accelerator.backward(loss)
    for weight in network.model.parameters():
        weight.grad = None


def lora_layers(model: Any) -> dict[str, Any]:
    """The layers that carry LoRA matrices, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and ADAPTER in getattr(module, "lora_A", {})
    }


@contextmanager
def _hooked(model: Any, order: torch.Tensor, take: Take) -> Iterator[None]:
    handles = []
    for name, layer in lora_layers(model).items():

        def forward(module: Any, inputs: tuple[Any, ...], output: torch.Tensor, name: str = name) -> None:
            if not output.requires_grad:  # a self-check of the network, which asks for no gradient
                return
            x = inputs[0].detach()

            def backward(gradient: torch.Tensor) -> None:
                _take_layer(name, module, x, gradient, order, take)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        handles.append(layer.register_forward_hook(forward))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _take_layer(
    name: str, layer: Any, x: torch.Tensor, gradient: torch.Tensor, order: torch.Tensor, take: Take
) -> None:
    """x: (rows, time, in), gradient: (rows, time, out); ``order`` names the row that each line of the batch is."""
    a, b = layer.lora_A[ADAPTER].weight.float(), layer.lora_B[ADAPTER].weight.float()
    scale = float(layer.scaling[ADAPTER])
    x, gradient = x.float(), gradient.float()
    back = torch.argsort(order).to(x.device)
    of_b = scale * torch.einsum("bto,btr->bor", gradient, x @ a.T)
    of_a = scale * torch.einsum("btr,bti->bri", gradient @ b, x)
    take(f"{name}.lora_A", of_a[back])
    take(f"{name}.lora_B", of_b[back])


class Projection:
    """A seeded random projection that keeps inner products: each coordinate goes to a few places with random signs.

    ``sparse``: ``nonzeros`` places a coordinate with entries ±1/√nonzeros (Kane & Nelson 2014); ``dense``: every place,
    ±1/√width (Rademacher, as LESS). E⟨Px, Py⟩ = ⟨x, y⟩ for both. Signs follow from seed and matrix name alone, so
    nothing is stored, and no CUDA extension is needed.
    """

    def __init__(self, width: int, *, kind: str = "sparse", nonzeros: int = 4, seed: int = 0) -> None:
        self.width = width
        self.kind = kind
        self.nonzeros = min(nonzeros, width)
        self.seed = seed
        self._places: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def add(self, total: torch.Tensor, name: str, flat: torch.Tensor) -> None:
        """Add the projection of ``flat``: (rows, size) float32 to ``total``: (rows, width)."""
        if self.kind == "dense":
            self._add_dense(total, name, flat)
            return
        for places, signs in self._sparse(name, flat.shape[1]):
            total.index_add_(1, places.to(flat.device), flat * signs.to(flat.device))

    def _sparse(self, name: str, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if name not in self._places:
            draw = generator(self.seed, "projection", name, size)
            share = self.nonzeros**-0.5
            self._places[name] = [
                (
                    torch.from_numpy(draw.integers(0, self.width, size)),
                    torch.from_numpy(_signs(draw, (size,)) * np.float32(share)),
                )
                for _ in range(self.nonzeros)
            ]
        return self._places[name]

    def _add_dense(self, total: torch.Tensor, name: str, flat: torch.Tensor) -> None:
        block = max(1, 2**24 // self.width)  # 64 MiB of signs at a time
        for number, start in enumerate(range(0, flat.shape[1], block)):
            part = flat[:, start : start + block]
            draw = generator(self.seed, "projection", name, number)
            signs = torch.from_numpy(_signs(draw, (part.shape[1], self.width)) * np.float32(self.width**-0.5))
            total += part @ signs.to(flat.device)


def _signs(draw: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return draw.integers(0, 2, shape, dtype=np.int8).astype(np.float32) * 2 - 1
