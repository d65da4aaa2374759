"""peft adapters, peft's own and ours, behind the `Attachment` seam: inject, train, save, remove.

Adapters are drawn in float32 from a named seed and then computed in the base's precision; the float32 masters live
in the optimiser. ``detach`` removes every injected module, so the base is bitwise what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from foretune.catalogue.traits import Traits
from foretune.errors import ModelError, UsageError
from foretune.methods.fused import fuse
from foretune.methods.tuners.frozen import forget
from foretune.models.load import NEW_HEAD

WEIGHTS = "adapter_model.safetensors"
WHOLE_RUN = (0.0, 1.0)


class PeftAttachment:
    """A peft adapter on a base model."""

    def __init__(self, base: Any, config: PeftConfig, traits: Traits, seed: int) -> None:
        """Inject fresh adapter weights drawn from ``seed``."""
        self.traits = traits
        self._base = base
        self._gradients = {name: weight.requires_grad for name, weight in base.named_parameters()}
        if new_head := _unknown_to_peft(getattr(base, NEW_HEAD, ())):
            config.modules_to_save = [*(getattr(config, "modules_to_save", None) or ()), *new_head]
        known = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft_model: PeftModel = get_peft_model(base, config)
        self.peft_model.train(base.training)  # peft's new modules, and their dropout, come in training mode
        for tensor in (*self.peft_model.parameters(), *self.peft_model.buffers()):
            if id(tensor) not in known and tensor.is_floating_point():  # frozen parts of the adapter too
                tensor.data = tensor.data.to(_compute_dtype(base))
        fuse(self.peft_model)
        self.restores: Mapping[str, torch.Tensor] = {}
        """Weights of the base that attaching has changed, as they were."""
        self.rate_factor: Callable[[str], float] = lambda name: 1.0
        """A tensor's learning rate as a multiple of the run's, by its name"""
        self.window: Callable[[str], tuple[float, float]] = lambda name: WHOLE_RUN
        """The part of the run in which a tensor trains, in shares of it, by its name"""

    @property
    def model(self) -> Any:
        """The transformers model with the adapter injected."""
        return self.peft_model.get_base_model()

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Named trainable tensors, in a fixed order."""
        return [(name, weight) for name, weight in self.peft_model.named_parameters() if weight.requires_grad]

    @property
    def adapter_parameters(self) -> int:
        """Trainable parameters, a classifier's new head left out."""
        heads = [module for module in self.model.modules() if isinstance(module, ModulesToSaveWrapper)]
        new = {id(weight) for head in heads for weight in head.parameters()}
        return sum(weight.numel() for _, weight in self.trainable() if id(weight) not in new)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """A group for each factor on the learning rate (`rate_factor`) and `window`; weight decay is for matrices."""
        named = [((self.rate_factor(name), self.window(name)), name, weight) for name, weight in self.trainable()]
        groups: list[dict[str, Any]] = []
        for factor, window in sorted({key for key, _, _ in named}):
            members = [(name, weight) for key, name, weight in named if key == (factor, window)]
            own = {} if window == WHOLE_RUN else {"window": window}
            groups += [{**group, **own} for group in split_by_decay(members, learning_rate * factor)]
        return groups

    def state(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors under peft's names."""
        return adapter_tensors(self.peft_model)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put the tensors back; peft only warns of missing names, here they are refused."""
        check_fits(get_peft_model_state_dict(self.peft_model), state)
        set_peft_model_state_dict(self.peft_model, dict(state))

    def disabled(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the model answers as the base."""
        if not self.traits.disables_to_base:
            raise UsageError("this method changes the base weights, so switching it off does not give the base.")
        return self.peft_model.disable_adapter()  # type: ignore[no-any-return]

    def merge(self) -> nn.Module:
        """The base with the adapter folded in (this consumes the attachment)."""
        if self.traits.merge == "no":
            raise UsageError("this method cannot be merged.", remedy="Deploy it as an adapter.")
        try:
            merged: nn.Module = self.peft_model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
            raise UsageError(f"this adapter cannot be merged: {error}.", remedy="Deploy it as an adapter.") from error
        return merged

    def save(self, folder: Path) -> None:
        """``adapter_config.json`` and ``adapter_model.safetensors``, as peft loads them."""
        self.peft_model.save_pretrained(str(folder), safe_serialization=True)

    def statistics(self) -> dict[str, float]:
        """Trainable parameters and the norm of all trainable tensors."""
        weights = [weight.detach().float() for _, weight in self.trainable()]
        norm = float(torch.linalg.vector_norm(torch.stack([weight.norm() for weight in weights])))
        count = float(sum(weight.numel() for weight in weights))
        own = getattr(self.peft_model.base_model, "statistics", dict)
        return {"trainable_parameters": count, "norm": norm, **own()}

    def observed(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the method counts what its layers see, for `statistics`."""
        return getattr(self.peft_model.base_model, "observing", contextlib.nullcontext)()

    def detach(self) -> nn.Module:
        """Remove the adapter; the base is bitwise as before, and asks for gradients where it did."""
        heads = {
            name: module.original_module
            for name, module in self.model.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        }
        base: nn.Module = self.peft_model.unload()
        for name, original in heads.items():  # peft leaves the trained head in the base
            base.set_submodule(name, original)
        if hasattr(base, "peft_config"):
            del base.peft_config
        for name, before in self.restores.items():
            base.get_submodule(name).weight.data = before
        for name, weight in base.named_parameters():
            weight.requires_grad_(self._gradients.get(name, False))
        forget()
        return base


def _unknown_to_peft(new_head: Sequence[str]) -> list[str]:
    """The modules of a classifier's new head that peft would leave as they were drawn: it trains and saves those alone
    whose name ends in ``classifier`` or ``score``."""
    known = ("classifier", "score")
    return [name for name in new_head if not any(part.endswith(known) for part in name.split("."))]


def adapter_tensors(peft_model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of the active adapter's tensors under the names they are saved by."""
    tensors = get_peft_model_state_dict(peft_model, adapter_name=peft_model.active_adapter)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def check_fits(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are missing, extra or of another shape: peft only warns of the first two."""
    if set(expected) != set(given):
        odd = sorted(set(expected) ^ set(given))
        raise ModelError(f"the adapter does not fit this model: {len(odd)} tensors differ, first {odd[0]}.")
    for name, tensor in expected.items():
        if tensor.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
            raise ModelError(f"the adapter does not fit this model: {name} is {shapes}.")


def load_adapter(model: Any, folder: Path) -> PeftModel:
    """The adapter in ``folder`` over ``model``; tensors that are missing, extra or misshapen raise `ModelError`."""
    from safetensors.torch import load_file

    loaded = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    check_fits(get_peft_model_state_dict(loaded), load_file(folder / WEIGHTS))
    return loaded


def split_by_decay(named: list[tuple[str, nn.Parameter]], learning_rate: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, vectors (biases, norms) without."""
    groups = []
    for decays in (True, False):
        members = [(name, weight) for name, weight in named if (weight.ndim >= 2) == decays]
        if members:
            groups.append(
                {
                    "names": [name for name, _ in members],
                    "params": [weight for _, weight in members],
                    "lr": learning_rate,
                    "weight_decay": decays,
                }
            )
    return groups


def _compute_dtype(model: Any) -> torch.dtype:
    """The precision the model computes in (the embedding's: quantised linears store integers)."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype
