"""The peft tuner of our methods: which modules are wrapped, when merging is allowed, how all of it is taken out again.

A method subclasses `AdapterModel` with its ``prefix`` and ``update_class``; `define` builds and registers it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update, widths_of
from foretune.methods.tuners.register import peft_name, register


class AdapterModel(BaseTuner):  # type: ignore[misc]
    """Wraps every targeted module in an `AdapterLayer` and gives it the method's update."""

    prefix = ""
    update_class: type[Update] = Update
    tuner_layer_cls = AdapterLayer
    layer_class: type[AdapterLayer] = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 -- peft's name and type

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if isinstance(parent, AdapterLayer):  # a wrapped block: its children are the wrapped module's
            parent = parent.get_base_layer()
        if not isinstance(target, AdapterLayer):
            layer = self.layer_class(target, self.prefix)
            layer.set_first(adapter_name)
        assert isinstance(layer, AdapterLayer)
        base = layer.get_base_layer()
        name = current_key.replace("base_layer.", "")
        update = self.build(peft_config, base, name)
        layer.add_adapter(adapter_name, update, inference=peft_config.inference_mode)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        inputs, outputs = widths_of(base)
        if not inputs:
            raise TypeError(f"{config.method} goes to linear layers, and {name} is a {type(base).__name__}")
        return self.update_class(base, inputs, outputs, config, name)

    def observing(self) -> AbstractContextManager[Any]:
        """Inside, a method may count what its layers see, for `statistics`; nothing as a rule."""
        return nullcontext()

    def statistics(self) -> dict[str, float]:
        """Numbers of the method's own for the report."""
        return {}

    def _check_merge_allowed(self) -> None:
        """Refuse quantised bases and updates that are no change of weights, before anything is touched."""
        super()._check_merge_allowed()
        for layer in self._layers():
            base: Any = layer.get_base_layer()
            for update in layer._active():
                if update.refuses_merge:
                    raise ValueError(update.refuses_merge)
            if not self._mergeable(base):
                raise ValueError(
                    f"the base is quantised or wrapped ({type(base).__name__}); an adapter is folded into plain weights"
                )

    def _mergeable(self, base: nn.Module) -> bool:
        """Whether an update can be added to the module's weight."""
        return _plain(base)

    def _layers(self) -> list[AdapterLayer]:
        return [module for module in self.model.modules() if isinstance(module, AdapterLayer)]

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Take every layer out, the inner ones first: a wrapped block may hold wrapped linears (peft skips those)."""
        if merge:
            self._check_merge_allowed()
        names = [name for name, module in self.model.named_modules() if isinstance(module, AdapterLayer)]
        for name in sorted(names, key=lambda name: -name.count(".")):
            layer = self.model.get_submodule(name)
            if merge:
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            self.model.set_submodule(name, layer.base_layer)
        if merge:
            self._keep_trained_heads(safe_merge, adapter_names)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        model: nn.Module = self.model
        return model

    def _keep_trained_heads(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        """Put modules that were trained whole in the place of what holds them and their originals."""
        wrapped = [(name, m) for name, m in self.model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
        for name, module in wrapped:
            trained = module.unload_and_optionally_merge_module(True, safe_merge, adapter_names)
            self.model.set_submodule(name, trained)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """``….<prefix>update.default.tensor`` -> ``….<prefix>update.tensor``; peft inverts it for loading."""
        container = f".{cls.prefix}update."
        before, found, after = key.rpartition(container)
        if not found:
            return str(super()._remove_adapter_name_from_key(key, adapter_name))
        return f"{before}{container}{after.removeprefix(f'{adapter_name}.')}"


def _plain(base: nn.Module) -> bool:
    """Whether the base is an ordinary linear layer with floating-point weights."""
    weight = getattr(base, "weight", None)
    plain = type(base) is nn.Linear or type(base).__name__ == "Conv1D"
    return plain and isinstance(weight, torch.Tensor) and weight.is_floating_point()


def define(
    config_class: type[AdapterConfig], update: type[Update], *, model: type[AdapterModel] = AdapterModel
) -> type[AdapterModel]:
    """The tuner of a method, registered with peft: ``config_class.method`` is its name, ``update`` what it adds."""
    method = config_class.method
    attributes = {"prefix": f"{peft_name(method)}_", "update_class": update, "__doc__": update.__doc__}
    made = type(f"{update.__name__}Model", (model,), attributes)
    register(method, config_class, made)
    return made
