"""What the rules of thumb say for a fit's data and model, as settings that a plan starts from.

Published rules (`catalogue.rules.LITERATURE`) and rules that studies measured on this machine's or this user's data
(``priors.yaml`` beside the experience store, or ``search.priors``). What the user set wins over all of them. The search
begins from the advice and may leave it; nothing here is a result.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.catalogue.languages import distance, parse_pair
from foretune.catalogue.methods import METHODS
from foretune.catalogue.priors import DEFAULT_LORA, recommended, rows_per_update
from foretune.catalogue.rules import TRAINABLE, Advice, Rule, Situation, advise
from foretune.config.resolve import Resolution
from foretune.config.rules_file import PRIORS, read_rules
from foretune.config.spec import FitSpec
from foretune.cost.request import RunSettings
from foretune.cost.shapes import ModelShapes
from foretune.data.formats import TRANSLATIONS
from foretune.errors import ForetuneError, UsageError
from foretune.experience.store import default_path
from foretune.methods.share import with_share
from foretune.search.hints import Hint

logger = logging.getLogger(__name__)
NONE = "none"


def measured_rules(setting: str | None) -> tuple[Rule, ...]:
    """Rules of studies: of the file that ``setting`` names, or of the one beside the store; none for ``none``.

    A named file that cannot be read is an error; the store's own is passed over with a warning.
    """
    if setting == NONE:
        return ()
    if setting is not None:
        return read_rules(Path(setting).expanduser())
    path = default_path().parent / PRIORS
    if not path.is_file():
        return ()
    try:
        return read_rules(path)
    except ForetuneError as error:
        logger.warning("measured rules are not used: %s", error)
        return ()


def advice_for(spec: FitSpec, shapes: ModelShapes, *, task: str, format: str, rows: int) -> Advice:
    """The advice for ``rows`` training rows of a task under a model. Raises `UsageError` for a bad file of rules."""
    pair = None if spec.data.languages is None else parse_pair(spec.data.languages)
    at = Situation(
        kind=shapes.kind,
        task=task,
        rows=rows,
        parameters=shapes.parameters,
        translation=pair is not None or format in TRANSLATIONS,
        distance=None if pair is None else distance(*pair),
        model=Path(spec.model.source).name,
    )
    return advise(at, measured_rules(spec.search.priors))


def advised_configuration(
    resolution: Resolution, shapes: ModelShapes, train_rows: int, advice: Advice
) -> tuple[dict[str, Any], str]:
    """The flat configuration that is advised, with what the user fixed, and why."""
    chosen = resolution.fixed_training()
    methods = resolution.spec.search.methods
    started, behind = starting_settings(advice, shapes, chosen, methods)
    fixed = {**started, **chosen}
    method = _first_method(advice, chosen, methods)
    epochs = float(fixed.get("epochs", DEFAULT_LORA["epochs"]))
    usual = rows = int(DEFAULT_LORA["rows_per_update"])
    if resolution.spec.budget.steps is None:  # where steps are counted, fewer rows would mean less training
        rows = rows_per_update(train_rows, epochs)
    smaller = rows < usual and "rows_per_update" not in fixed
    rows = int(fixed.setdefault("rows_per_update", rows))
    steps = RunSettings(0, rows_per_update=rows, epochs=epochs).steps(train_rows)
    found = recommended(method, width=shapes.width, kind=shapes.kind, steps=steps, fixed=fixed)
    said = [f"updates of {rows} rows instead of {usual}, so that there are more of them"] if smaller else []
    return dict(found.config), "; ".join([found.why, *said, *(rule.citation for rule in behind)])


def hints_of(advice: Advice, fixed: Mapping[str, Any]) -> tuple[Hint, ...]:
    """The cited rules for a search: what they say of settings that the user left open."""
    found = []
    for rule in advice.cited:
        open_ = {name: value for name, value in rule.advice.items() if name != TRAINABLE and name not in fixed}
        if open_ or rule.avoid:
            found.append(Hint(open_, tuple(rule.avoid), rule.citation, rule.strength))
    return tuple(found)


def starting_settings(
    advice: Advice, shapes: ModelShapes, fixed: Mapping[str, Any], methods: Sequence[str] | None = None
) -> tuple[dict[str, Any], list[Rule]]:
    """(settings that differ from the default LoRA's, the rules behind them), where the user left them open.

    Settings of a method other than the advised (or fixed) one are left out, and so is a share its knob cannot meet. A
    method that is not among those to choose from (``methods``; None for any) is not advised.
    """
    method = _first_method(advice, fixed, methods)
    if method not in METHODS:
        return {}, []
    settings: dict[str, Any] = {}
    for name, value in advice.settings.items():
        foreign = (name == "method" and value != method) or ("." in name and not name.startswith(f"{method}."))
        if name != TRAINABLE and not foreign and name not in fixed:
            settings[name] = value
    share = advice.settings.get(TRAINABLE)
    if share is not None and not any(name.startswith(f"{method}.") for name in fixed):
        try:
            config = {**DEFAULT_LORA, **settings, **fixed, "method": method}
            met = with_share(config, float(share), shapes)
        except UsageError as error:
            logger.info("the advised share is not used: %s", error)
        else:
            settings |= {name: value for name, value in met.items() if config.get(name) != value}
    changed = {name: value for name, value in settings.items() if DEFAULT_LORA.get(name) != value}
    knob = any("." in name and name not in advice.settings for name in changed)
    behind = [advice.by[name] for name in changed if name in advice.by]
    behind += [advice.by[TRAINABLE]] if knob and TRAINABLE in advice.by else []
    return changed, [rule for number, rule in enumerate(behind) if rule not in behind[:number]]


def _first_method(advice: Advice, fixed: Mapping[str, Any], methods: Sequence[str] | None) -> str:
    """The fixed method, else the advised one where it is among ``methods``, else the first of these."""
    advised = advice.settings.get("method", DEFAULT_LORA["method"])
    return str(fixed.get("method", methods[0] if methods and advised not in methods else advised))
