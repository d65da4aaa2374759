"""A gated LoRATRF adapter as a plain LoRA that any server loads: its mean gate for the gate, and the loss measured.

LoRATRF (a reconstruction; see `foretune.methods.loratrf`) adds s·B A x + s_t·D (g(h)·C h) with h = W₀x + b. With a
number ḡ in place of g(h) this is linear in x and equals a LoRA of rank r + r_t:

    A' = [A; C W₀]        B' = [s·B, ḡ s_t·D]        b' = ḡ s_t·D C b

ḡ is the mean gate of each layer over the tokens of some prompts, weighted by the size of what the gate lets through,
which minimises the squared error of the edit there. Gates that depend on no token (none, channel) are converted
exactly. On other prompts the two models are compared: mean KL divergence of the next-token distributions, and how
often both prefer the same token. A conversion that is too far off is refused.

Not converted: edits of whole blocks, edits of some positions only; they are no change of a layer's weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foretune import files
from foretune.errors import ModelError, Place, UsageError
from foretune.export.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapted, load_tokenizer, read_config
from foretune.export.verify import encode

MOST_KL = 0.05
"""Nats a position: about what rounding to 4 bits costs a small model; more is another model."""
FEWEST_AGREEING = 0.95
"""Share of positions at which both must prefer the same token."""
LORATRF_TYPE = "FORETUNE_LORATRF"


@dataclass(frozen=True)
class Agreement:
    """How near the plain LoRA is to the gated adapter on prompts that the mean gate was not measured on."""

    positions: int
    kl: float
    """Mean KL divergence of the plain LoRA's next-token distribution from the adapter's, nats"""
    top1: float
    """Share of positions with the same most likely token"""
    gates: tuple[float, ...]
    """Mean gate of every edited layer"""

    @property
    def detail(self) -> str:
        """One line for the terminal and the record."""
        low, high = (min(self.gates), max(self.gates)) if self.gates else (1.0, 1.0)
        return (
            f"plain LoRA with mean gates {low:.2f} to {high:.2f}: KL {self.kl:.2g} nats, same first token at "
            f"{100 * self.top1:.1f} % of {self.positions} positions"
        )


def approximate(
    base: Path,
    adapter: Path,
    destination: Path,
    prompts: Sequence[str],
    *,
    labels: Sequence[str] = (),
    most_kl: float = MOST_KL,
) -> Agreement:
    """Write the plain LoRA of the LoRATRF adapter in ``adapter`` to ``destination``; returns how near it is.

    Half of ``prompts`` measure the gates, the other half the agreement. Raises `UsageError` for another kind of
    adapter and where the two differ by more than ``most_kl`` or prefer other tokens too often; nothing is left then.
    """
    _check(adapter)
    model: Any = load_adapted(base, adapter, torch.float32, labels=labels)
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(adapter if own else base)
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    measured, checked = rows[::2], rows[1::2] or rows
    gates = _mean_gates(model, measured)
    before = [_log_probabilities(model, ids) for ids in checked]
    tensors = _lora_tensors(model, gates)
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
    others = _other_tensors(adapter)
    with files.atomic_folder(destination) as aside:
        _write(aside, adapter, {**_padded(tensors, rank), **others}, rank, tokenizer)
        del model
        plain = load_adapted(base, aside, torch.float32, labels=labels)
        agreement = _agreement(before, [_log_probabilities(plain, ids) for ids in checked], tuple(gates.values()))
        if agreement.kl > most_kl or agreement.top1 < FEWEST_AGREEING:
            raise UsageError(
                f"the plain LoRA is too far from the evaluated adapter ({agreement.detail}).",
                place=Place(adapter),
                remedy="Serve the adapter with foretune, or train with --set training.loratrf.trf_gate=none.",
            )
    return agreement


def _check(adapter: Path) -> None:
    config = read_config(adapter, ADAPTER_CONFIG)
    remedy = "Use --merge or the adapter as it is."
    if config.get("peft_type") != LORATRF_TYPE:
        raise UsageError("only LoRATRF adapters are approximated.", place=Place(adapter), remedy=remedy)
    if config.get("trf_site") == "block" or config.get("trf_positions", "all") != "all":
        raise UsageError("an edit of blocks or of some positions is no LoRA.", place=Place(adapter), remedy=remedy)


@contextmanager
def _weighing(model: Any, sums: dict[str, list[float]]) -> Iterator[None]:
    """Inside, every gated edit adds (Σ g·‖D C h‖², Σ ‖D C h‖²) over its tokens to ``sums``."""
    from foretune.methods.loratrf import edits

    def hook(name: str) -> Any:
        def add(edit: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            hidden = arguments[0].float()
            passed = (hidden @ edit.down.float().T) @ edit.up.float().T
            energy = passed.square().sum(-1)
            sums[name][0] += float((edit.gate(hidden).squeeze(-1) * energy).sum())
            sums[name][1] += float(energy.sum())

        return add

    gated = {name: edit for name, edit in edits(model).items() if edit.kind not in ("none", "channel")}
    sums.update({name: [0.0, 0.0] for name in gated})
    handles = [edit.register_forward_pre_hook(hook(name)) for name, edit in gated.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_gates(model: Any, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    with torch.inference_mode(), _weighing(model, sums):
        for ids in rows:
            _log_probabilities(model, ids)
    return {name: total / weight if weight > 0 else 0.0 for name, (total, weight) in sums.items()}


def _log_probabilities(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(time, vocabulary), or (1, classes): what the model expects after each token of a prompt."""
    with torch.inference_mode():
        given: dict[str, torch.Tensor] = {"input_ids": torch.tensor([list(ids)])}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *ids[:8]]])
        logits: torch.Tensor = model(**given).logits.float()
    return torch.log_softmax(logits.reshape(-1, logits.shape[-1]), -1)


def _agreement(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], gates: tuple[float, ...]) -> Agreement:
    one, other = torch.cat(list(before)), torch.cat(list(after))
    divergence = float((one.exp() * (one - other)).sum(-1).mean())
    same = float((one.argmax(-1) == other.argmax(-1)).float().mean())
    return Agreement(one.shape[0], divergence, same, gates)


def _lora_tensors(model: Any, gates: dict[str, float]) -> dict[str, torch.Tensor]:
    """The LoRA's tensors by the names peft saves them under, before padding to one rank.

    peft gives every layer of an adapter a bias or none: where one has one, those without get zeros.
    """
    from foretune.methods.loratrf import LoratrfUpdate
    from foretune.methods.tuners.layer import AdapterLayer

    found: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, AdapterLayer):
            continue
        for adapter, update in layer.updates.items():
            if not isinstance(update, LoratrfUpdate):
                raise ModelError(f"{name} holds {type(update).__name__}, which is no LoRA.")
            edit_name = f"{name}.{layer.container}.{adapter}.edit"
            base: Any = layer.get_base_layer()
            weight = base.weight.T if type(base).__name__ == "Conv1D" else base.weight
            down, up, bias = update.as_lora(weight, base.bias, gates.get(edit_name, 1.0))
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = down, up
            if bias is not None:
                found[f"{name}.lora_B.bias"] = bias
    if any(name.endswith("lora_B.bias") for name in found):
        ups = {name: up for name, up in found.items() if name.endswith("lora_B.weight")}
        for name, up in ups.items():
            found.setdefault(f"{name.removesuffix('weight')}bias", up.new_zeros(len(up)))
    return found


def _padded(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Every factor filled with zeros to ``rank``, so that one rank describes all layers."""
    padded = {}
    for name, tensor in tensors.items():
        if name.endswith("lora_A.weight"):
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, rank - tensor.shape[0]))
        elif name.endswith("lora_B.weight"):
            tensor = torch.nn.functional.pad(tensor, (0, rank - tensor.shape[1]))
        padded[name] = tensor.contiguous()
    return padded


def _other_tensors(adapter: Path) -> dict[str, torch.Tensor]:
    """What is saved beside the updates: a classifier's trained head."""
    from safetensors.torch import load_file

    update = f".{LORATRF_TYPE.lower()}_update."
    return {name: tensor for name, tensor in load_file(adapter / ADAPTER_WEIGHTS).items() if update not in name}


def _write(aside: Path, adapter: Path, tensors: dict[str, torch.Tensor], rank: int, tokenizer: Any) -> None:
    import peft
    from safetensors.torch import save_file

    config = read_config(adapter, ADAPTER_CONFIG)
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_bias=any(name.endswith("lora_B.bias") for name in tensors),
        target_modules=[name.removeprefix("base_model.model.") for name in modules],
        modules_to_save=config.get("modules_to_save"),
        task_type=config["task_type"],
        base_model_name_or_path=config.get("base_model_name_or_path"),
        inference_mode=True,
    ).save_pretrained(str(aside))
    save_file(tensors, aside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    tokenizer.save_pretrained(aside)
