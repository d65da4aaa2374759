"""Dropout rates of a base model that nobody has computed yet: taken once, before its first guided trial.

Rates belong to the base's weights, so they are computed before anything is attached, on the general text, and kept in
the cache under the weights' hash; every later trial, task and study of the same base reads them. A language model that
is loaded already is used as it is; an encoder is loaded again with the head that its Fisher information needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from foretune.catalogue.regularizers import NONE, SETTING, named
from foretune.errors import UsageError
from foretune.evaluation.forgetting import SAMPLE, general_text
from foretune.execution.bench import Bench
from foretune.files import cache_folder
from foretune.models.load import LoadedModel
from foretune.packages import sole
from foretune.regularization.fisher.model_rates import load_for_fisher, model_rates
from foretune.regularization.fisher.samples import Variant
from foretune.regularization.places.rates import AUTO, cached_path, find, save

logger = logging.getLogger(__name__)
GUIDED = "guided-dropout"


def ensure_rates(bench: Bench, config: Mapping[str, Any], beat: Callable[[], None]) -> None:
    """Compute and keep the rates of the bench's base where ``config`` asks for them and nobody has any.

    ``beat`` is called between batches. Raises what `model_rates` raises.
    """
    wanted = any(declared.name == GUIDED for declared, _ in named(str(config.get(SETTING, NONE))))
    if not wanted or config.get(f"{GUIDED}.rates", AUTO) != AUTO or _known(bench):
        return
    with sole(cache_folder() / "regularization" / f".{bench.weights_hash}.rates"):
        if _known(bench):  # another worker has finished while this one waited
            return
        logger.info("computing the dropout rates of %s, once for this base model", bench.folder_or_id)
        loaded, variant = _loaded(bench)
        texts = [example.turns[0].content for example in general_text()]
        rates = model_rates(loaded, variant, texts, text_name=SAMPLE, progress=lambda done, of: beat())
        save(cached_path(bench.weights_hash), rates)


def _known(bench: Bench) -> bool:
    try:
        find(AUTO, weights=bench.weights_hash, source=bench.folder_or_id)
    except UsageError:
        return False
    return True


def _loaded(bench: Bench) -> tuple[LoadedModel, Variant]:
    if bench.kind == "encoder":
        return load_for_fisher(replace(bench.task.model, kind="encoder"))
    own = LoadedModel(bench.model, bench.tokenizer, bench.kind, bench.folder_or_id, bench.weights_hash)
    return own, "pre-training"
