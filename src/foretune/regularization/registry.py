"""All regularizers by name, and building them from a configuration.

``regularizer`` in a configuration is ``none`` or a comma-separated list of ``name`` or ``name:strength``
(`catalogue.regularizers`); the settings of each stand under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING, named, with_strengths
from foretune.regularization.base import Regularizer
from foretune.regularization.child_tuning import ChildTuning
from foretune.regularization.dropout import Dropout
from foretune.regularization.extrapolation import Extrapolation
from foretune.regularization.flat_lora import FlatLora
from foretune.regularization.gaussian_dropout import GaussianDropout
from foretune.regularization.guided_dropout import GuidedDropout
from foretune.regularization.kl_to_base import KlToBase
from foretune.regularization.l2_sp import L2Sp
from foretune.regularization.mixout import Mixout
from foretune.regularization.neftune import Neftune
from foretune.regularization.prune_rewind import PruneRewind
from foretune.regularization.r_drop import RDrop
from foretune.regularization.rank_schedule import RankSchedule
from foretune.regularization.recadam import Recadam
from foretune.regularization.reinit_top import ReinitTop
from foretune.regularization.smart import Smart
from foretune.regularization.tfew import Tfew
from foretune.regularization.token_weighting import TokenWeighting

REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "guided-dropout": GuidedDropout,
    "dropout": Dropout,
    "gaussian-dropout": GaussianDropout,
    "l2-sp": L2Sp,
    "r-drop": RDrop,
    "kl-to-base": KlToBase,
    "flat-lora": FlatLora,
    "neftune": Neftune,
    "child-tuning": ChildTuning,
    "reinit-top": ReinitTop,
    "mixout": Mixout,
    "smart": Smart,
    "recadam": Recadam,
    "extrapolation": Extrapolation,
    "token-weighting": TokenWeighting,
    "tfew": Tfew,
    "prune-rewind": PruneRewind,
    "rank-schedule": RankSchedule,
}


def build(config: Mapping[str, Any]) -> list[Regularizer]:
    """The regularizers of a configuration, in composition order. Raises `UsageError`."""
    complete = with_strengths(config)
    built = []
    for declared, _ in named(str(config.get(SETTING, NONE))):
        prefix = f"{declared.name}."
        fields = {key.removeprefix(prefix): value for key, value in complete.items() if key.startswith(prefix)}
        built.append(REGULARIZERS[declared.name](**fields))
    return built
