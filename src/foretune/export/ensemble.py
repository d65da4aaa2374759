"""A weighted ensemble of stored LoRA adapters as one adapter, exactly, by concatenation.

The updates w₁·s₁B₁A₁ + … + w_n·s_nB_nA_n of a layer are one LoRA whose A stacks the A_i and whose B joins the
w_i s_i B_i: of rank r₁ + … + r_n and scale 1. Nothing is approximated, any server loads the result, and negative
weights take a skill away (Ilharco et al. 2023, task arithmetic). Adapters may have different ranks, scales and targets.

Weights may be given, or found without labels from representations of the adapters' training rows
(`foretune.evaluation.representation`): RPE, retrieval-based parameter ensemble (Jin et al. 2024, 2410.09908).

Refused: other methods than LoRA, variants whose update is not s·BA (DoRA), starts that change the base weights (PiSSA,
OLoRA, CorDA, LoRA-GA), trained biases and trained heads, which have no exact sum of this form.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune import files
from foretune.errors import ModelError, Place, UsageError
from foretune.export.adapter import check_weights
from foretune.export.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_config

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they are."""
_ABSENT = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication", "use_bdlora",
           "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config")  # fmt: skip
"""Fields of peft's LoRA configuration under which the update of a layer is not s·BA alone."""
ENSEMBLE = "foretune_ensemble.json"
"""In the combined folder: which adapters with which weights."""


@dataclass(frozen=True)
class StoredLora:
    """One adapter folder: for every adapted module A, B and their scale."""

    folder: Path
    config: Mapping[str, Any]
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
    """Module name -> (A (rank, in), B (out, rank), scale)"""


def read_lora(folder: Path) -> StoredLora:
    """A stored LoRA adapter. Raises `ModelError` where damaged and `UsageError` where it cannot be combined."""
    from safetensors.torch import load_file

    config = read_config(folder, ADAPTER_CONFIG)
    check_weights(folder)
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder} is no LoRA adapter but {config.get('peft_type')}.", remedy="Combine LoRA adapters.")
    odd = [name for name in _ABSENT if config.get(name)]
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        odd.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise UsageError(f"{folder} cannot be combined exactly: it uses {', '.join(odd)}.")
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    names = [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
    if len(tensors) != 2 * len(names):
        raise ModelError("there are tensors here besides A and B of each layer.", place=Place(folder))
    pairs = {name: tuple(tensors[f"{_PREFIX}{name}.lora_{part}.weight"] for part in "AB") for name in names}
    return StoredLora(
        folder, config, {name: (a, b, _scale(config, name, a.shape[0])) for name, (a, b) in pairs.items()}
    )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha / rank of a module, or alpha / √rank for rank-stabilised LoRA."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def concatenated(adapters: Sequence[StoredLora], weights: Sequence[float]) -> dict[str, tuple[Any, Any]]:
    """Module name -> A (sum of ranks, in) and B (out, sum of ranks), float32, whose product is the weighted sum."""
    import torch

    joined: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.modules):
        parts = [
            (weight * scale, a.float(), b.float())
            for adapter, weight in zip(adapters, weights, strict=True)
            if name in adapter.modules
            for a, b, scale in (adapter.modules[name],)
        ]
        if len({(a.shape[1], b.shape[0]) for _, a, b in parts}) > 1:
            raise ModelError(f"the adapters are of models of other sizes: {name} has several shapes.")
        joined[name] = torch.cat([a for _, a, _ in parts]), torch.cat([factor * b for factor, _, b in parts], dim=1)
    return joined


def combine(folders: Sequence[Path], weights: Sequence[float], destination: Path) -> Path:
    """Write the ensemble of the adapters in ``folders`` to ``destination``, whole or not at all.

    Raises `UsageError` for adapters that cannot be combined exactly or name other base models, and
    `OutputError` where something stands at ``destination``.
    """
    from safetensors.torch import save_file

    files.check_free(destination)
    if len(folders) != len(weights) or not folders:
        raise UsageError(f"{len(folders)} adapters and {len(weights)} weights do not fit together.")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError("a weight is not a finite number.")
    adapters = [read_lora(folder) for folder in folders]
    bases = {str(adapter.config.get("base_model_name_or_path")) for adapter in adapters}
    if len(bases) > 1:
        raise UsageError(
            f"the adapters were trained on other base models: {', '.join(sorted(bases))}.",
            remedy="An update means something on its own base only.",
        )
    joined = concatenated(adapters, weights)
    ranks = {name: int(a.shape[0]) for name, (a, _) in joined.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = {name: rank for name, rank in ranks.items() if rank != common}
    config = {
        **adapters[0].config,
        "r": common, "lora_alpha": common, "rank_pattern": odd, "alpha_pattern": odd, "use_rslora": False,
        "lora_dropout": 0.0, "target_modules": sorted(joined), "layers_to_transform": None, "layers_pattern": None,
        "exclude_modules": None, "init_lora_weights": True, "eva_config": None, "inference_mode": True,
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in joined.items():
        tensors |= {f"{_PREFIX}{name}.lora_A.weight": a.contiguous(), f"{_PREFIX}{name}.lora_B.weight": b.contiguous()}
    record = [{"adapter": str(folder), "weight": weight} for folder, weight in zip(folders, weights, strict=True)]
    with files.atomic_folder(destination) as aside:
        save_file(tensors, aside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        files.write_json(aside / ADAPTER_CONFIG, config)
        files.write_json(aside / ENSEMBLE, {"parts": record})
        _copy_tokenizer(folders[0], aside)
        check_weights(aside)
    return destination


def _copy_tokenizer(source: Path, aside: Path) -> None:
    from foretune.export.loading import load_tokenizer

    if (source / "tokenizer_config.json").is_file():
        load_tokenizer(source).save_pretrained(aside)
