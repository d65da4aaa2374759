"""Misuse is refused with the fix named: before anything runs where the words say it, else before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foretune.catalogue.methods import METHODS, config_space, resolve
from foretune.catalogue.regularizers import DROPOUTS, REGULARIZERS, check_kind, menu, named
from foretune.config.resolve import resolve as resolve_settings
from foretune.errors import UsageError
from foretune.regularization.base import Context, Plan
from foretune.regularization.child_tuning import ChildTuning
from foretune.regularization.dropout import Dropout
from foretune.regularization.flat_lora import FlatLora
from foretune.regularization.guided_dropout import GuidedDropout
from foretune.regularization.kl_to_base import KlToBase
from foretune.regularization.mixout import Mixout
from foretune.regularization.r_drop import RDrop
from foretune.regularization.registry import build
from foretune.regularization.reinit_top import ReinitTop
from foretune.regularization.smart import Smart
from tests.regularization.models import tiny
from tests.regularization.test_contract import training
from tests.regularization.test_rates import file_of

WORDS = {
    "guided-droput": r"Did you mean guided-dropout\?",
    "dropout,dropout": "named twice.*Name it once",
    "dropout:much": "not of its form|not a strength",
    "dropout:1.5": "outside its range.*Use 0 to 0.9",
    "reinit-top:1.5": "no whole number.*reinit-top:2",
    "guided-dropout,dropout": "both set the dropout of the same places; name one",
    "l2-sp,recadam": "both pull the weights.*name one",
    "r-drop,token-weighting": "one of two passes only; name one",
    "extrapolation,smart": "name one of them",
    "prune-rewind,recadam": "rewinding back; name l2-sp",
    **{f"{noise},tfew": "not for those of wrong choices; name one" for noise in (*DROPOUTS, "neftune")},
}


@pytest.mark.parametrize("text", WORDS)
def test_words_that_cannot_work_are_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(UsageError, match=WORDS[text]):
        resolve({"regularizer": text})
    with pytest.raises(UsageError):
        resolve_settings(options={"data.path": "facts", "training.regularizer": text})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularizer": "mixout"}, r"mixout does not work with the method lora.*method=full"),
        ({"regularizer": "reinit-top"}, r"does not work with the method lora.*method=full"),
        ({"regularizer": "flat-lora", "method": "full"}, r"does not work with the method full.*method=lora"),
        ({"regularizer": "kl-to-base", "method": "full"}, r"does not work with the method full.*method=lora"),
        ({"regularizer": "token-weighting", "method": "full"}, r"does not work with the method full.*method=lora"),
        (
            {"regularizer": "guided-dropout", "lora.dropout": 0.1},
            r"sets the dropout of the adapter.*lora\.dropout at 0",
        ),
        ({"regularizer": "none", "l2-sp.weight": 1.0}, r"does not belong to the regularizer 'none'.*to l2-sp"),
        ({"regularizer": "l2-sp:0.1", "l2-sp.weight": 0.2}, "contradict each other.*Leave out one"),
        (
            {"regularizer": "guided-dropout", "guided-dropout.low": 0.3, "guided-dropout.high": 0.1},
            "above guided-dropout.high.*schedule=reversed",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(settings)


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("kl-to-base", {"kind": "encoder"}, "does not work with an encoder.*l2-sp"),
        ("token-weighting", {"kind": "encoder"}, "does not work with an encoder.*leave it out"),
        ("r-drop", {"kind": "encoder", "regression": True}, "a regression has none.*l2-sp"),
        ("flat-lora", {"kind": "causal", "quantized": True}, "4-bit weights cannot take it.*--quantize"),
    ],
)
def test_kinds_of_model_and_task_that_do_not_fit_are_refused(text: str, fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_kind(text, **fields)


def planned(regularizer: Any, name: str = "dropout", **fields: Any) -> Plan:
    run = training(name, parts=[])
    context = Context(
        run.network.model, run.attachment, 0, 10, names=tuple(run.masters.names), masters=tuple(run.masters.masters),
        weights=tuple(run.masters.weights), rows=run.rows, runner=run.network, lay_out=run._lay_out,
        **fields,
    )  # fmt: skip
    plan: Plan = regularizer.check(context)
    return plan


def test_what_the_loaded_model_cannot_do_is_refused_with_the_fix() -> None:
    assert "Write --regularize dropout:0.1,r-drop" in planned(RDrop()).refusal
    assert not planned(RDrop(), others=("dropout", "r-drop")).refusal
    assert "--set training.method=lora" in planned(FlatLora(), "mixout").refusal
    assert "method full" in planned(Mixout(), "dropout").refusal
    assert "--set training.method=full" in planned(ReinitTop(1)).refusal
    assert "the model has 2 blocks" in planned(ReinitTop(2), "reinit-top").refusal
    assert "l2-sp" in planned(KlToBase(), "reinit-top").refusal
    assert "classifier" in planned(KlToBase(), kind="encoder").refusal
    assert "foretune regularize rates" in planned(GuidedDropout(rates="/nowhere/rates.json")).refusal
    assert "others" in planned(GuidedDropout(rates=file_of(tiny("bert")))).refusal
    assert "no places" not in planned(Dropout(0.1)).refusal


def test_gradient_checkpointing_and_several_passes_are_refused_together() -> None:
    run = training("r-drop", parts=[])
    run.network.model.gradient_checkpointing_enable()
    for part in (RDrop(), Smart()):
        context = Context(run.network.model, run.attachment, 0, 10, others=("dropout",))
        assert "memory.gradient_checkpointing=false" in part.check(context).refusal


def test_child_tuning_by_fisher_refuses_an_adapter_without_gradient() -> None:
    from peft import LoraConfig

    from foretune.data.update import Epochs
    from foretune.methods.attachment import PeftAttachment
    from foretune.training.forward import Network
    from foretune.training.loop import LoopSettings, Training
    from foretune.training.optimizer import OptimizerSettings
    from tests.training.rows import random_rows
    from tests.training.test_loop import TRAITS

    model = tiny("llama")
    modules = [(name, id(module)) for name, module in model.named_modules()]
    attachment = PeftAttachment(model, LoraConfig(r=2, target_modules="all-linear"), TRAITS, seed=0)
    settings = LoopSettings(OptimizerSettings(1e-2, 6), seed=3)
    network = Network(attachment.model, "causal")
    with pytest.raises(UsageError, match=r"cannot rank.*by=random"):
        parts = [Dropout(0.1), ChildTuning(0.3, by="fisher", fisher_rows=2)]
        Training(network, attachment, random_rows(4), Epochs(4, 2, 0), settings, parts)
    base = attachment.detach()  # what the first had placed is gone
    assert [(name, id(module)) for name, module in base.named_modules()] == modules
    assert not any(module._forward_hooks for module in base.modules())


def test_an_architecture_without_known_places_is_refused() -> None:
    class Odd(torch.nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Dropout(0.1))])

    plan = Dropout(0.1).check(Context(Odd(), None, 0, 10))  # type: ignore[arg-type]
    assert "not supported by guided dropout" in plan.refusal


def test_strength_and_setting_are_the_same_and_resolving_again_changes_nothing() -> None:
    config = resolve({"regularizer": "guided-dropout:0.2,kl-to-base:0.3"})
    assert config["guided-dropout.high"] == 0.2 and config["kl-to-base.weight"] == 0.3
    assert resolve(config) == config
    guided, stay = build(config)
    assert (guided.high, stay.weight) == (0.2, 0.3)  # type: ignore[attr-defined]
    assert [part.name for part in build({"regularizer": "r-drop,dropout"})] == ["r-drop", "dropout"]
    assert build({}) == [] and "guided-dropout.high" not in resolve({})


def test_the_menu_offers_what_fits() -> None:
    for method, declared in METHODS.items():
        back = declared.traits.disables_to_base
        for kind in ("causal", "encoder"):
            choice = menu(method, kind, disables_to_base=back)
            assert choice.options[0] == choice.default == "none"
            for word in choice.options:
                resolve({"method": method, "regularizer": word})
                check_kind(str(word), kind)
    assert "kl-to-base:0.1" in menu("lora", "causal").options
    assert "kl-to-base:0.1" not in menu("lora", "encoder").options


def test_every_declaration_is_whole() -> None:
    for declared in REGULARIZERS.values():
        assert declared.source and declared.about.endswith(".")
        assert all(parameter.name in config_space() for parameter in declared.space.parameters)
        assert not declared.methods or declared.fix
        for other, _ in declared.conflicts:
            assert other in REGULARIZERS
        for word in declared.menu:
            named(word)
