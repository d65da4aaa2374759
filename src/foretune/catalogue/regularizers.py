"""The literal registry of regularizers: settings, what they go together with, and what a search may draw; torch-free.

`REGULARIZERS` is read by the configuration, the search and the command line; `foretune.regularization` holds the code
of each. In a configuration, ``regularizer`` is ``none`` or a comma list such as ``guided-dropout,kl-to-base:0.1``:
names in the order in which they are composed, each with an optional strength, which is a short way to write its main
setting (``kl-to-base.weight``). What cannot work is refused here, with the fix, before anything runs; what only the
loaded model can tell is refused by `Regularizer.check`.

It does not say what is good: whether any of them helps is a question for `foretune study`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.catalogue.regularizer import Declaration
from foretune.catalogue.regularizer import number as _number
from foretune.catalogue.regularizers_of_recipes import PRUNE_REWIND, RANK_SCHEDULE, TFEW
from foretune.catalogue.space import Choice, Mentions, Number, Parameter, Space, Text
from foretune.errors import UsageError

NONE = "none"
DROPOUTS = ("guided-dropout", "dropout", "gaussian-dropout")
"""They set the rate of every place, an adapter's own dropout included."""
SETTING = "regularizer"
"""The key of a configuration that names the regularizers."""


SCHEDULES = ("linear", "log-proportional", "type-only", "uniform", "reversed", "random")
AGGREGATIONS = ("mean_of_means", "parameter_mean", "sum")
_SAME_SITES = "both set the dropout of the same places; name one of them."
_SAME_PULL = "both pull the weights towards where they began; name one of them."

GUIDED_DROPOUT = Declaration(
    name="guided-dropout",
    about="Dropout rates by Fisher information of the pre-trained model: the least informative places get most.",
    source="Sharma et al. 2024, 2406.14005",
    strength="high",
    space=Space(
        (
            _number("guided-dropout.high", 0.0, 0.9, 0.1, "Rate of the least informative place."),
            _number("guided-dropout.low", 0.0, 0.9, 0.0, "Rate of the most informative place."),
            Choice("guided-dropout.schedule", SCHEDULES, "linear", about="How rates follow the ranking."),
            Choice(
                "guided-dropout.noise", ("bernoulli", "gaussian"), "bernoulli", about="What multiplies activations."
            ),
            Choice("guided-dropout.aggregation", AGGREGATIONS, "mean_of_means", about="From tensors to groups."),
            Text("guided-dropout.rates", "auto", r"[^\n]{1,400}", about="auto, or the path of a rates file."),
        )
    ),
    menu=("guided-dropout",),
    conflicts=(("dropout", _SAME_SITES), ("gaussian-dropout", _SAME_SITES)),
)
DROPOUT = Declaration(
    name="dropout",
    about="The same dropout rate everywhere in the model, attention probabilities and adapters included.",
    source="Srivastava et al. 2014",
    strength="rate",
    space=Space((_number("dropout.rate", 0.0, 0.9, 0.1, "Rate of every place."),)),
    menu=("dropout:0.05", "dropout:0.1"),
    conflicts=(("gaussian-dropout", _SAME_SITES),),
)
GAUSSIAN_DROPOUT = Declaration(
    name="gaussian-dropout",
    about="Multiplicative Gaussian noise N(1, p/(1-p)) everywhere, off at evaluation.",
    source="Srivastava et al. 2014, section 10",
    strength="rate",
    space=Space((_number("gaussian-dropout.rate", 0.0, 0.9, 0.1, "The dropout rate p whose variance it has."),)),
)
L2_SP = Declaration(
    name="l2-sp",
    about="A decoupled pull towards the pre-trained weights; for LoRA towards a zero update.",
    source="Li et al. 2018, 1802.01483",
    strength="weight",
    space=Space((_number("l2-sp.weight", 0.0, 1e4, 0.01, "Strength of the pull."),)),
    menu=("l2-sp:0.01", "l2-sp:0.1"),
    conflicts=(("recadam", _SAME_PULL),),
)
R_DROP = Declaration(
    name="r-drop",
    about="Two passes with different dropout have to agree: symmetric KL between them.",
    source="Liang et al. 2021, 2106.14448",
    strength="weight",
    space=Space((_number("r-drop.weight", 0.0, 100.0, 1.0, "Weight of the divergence."),)),
    menu=("dropout:0.1,r-drop:1",),
    conflicts=(("token-weighting", "the weights would reach one of two passes only; name one of them."),),
)
KL_TO_BASE = Declaration(
    name="kl-to-base",
    about="The tuned model's predictions stay near those of the model with the adapter switched off.",
    source="self-regularisation of OrthSR, Yang et al. 2024, 2407.08374",
    strength="weight",
    space=Space(
        (
            _number("kl-to-base.weight", 0.0, 100.0, 0.1, "Weight of the divergence."),
            _number("kl-to-base.cache_mib", 0, 65536, 256, "Most memory for the base's hidden states.", whole=True),
        )
    ),
    menu=("kl-to-base:0.1", "kl-to-base:0.5"),
    needs_base=True,
    kinds=("causal", "seq2seq"),
    fix="It needs a base to go back to: use --set training.method=lora on a language model, or l2-sp.",
)
FLAT_LORA = Declaration(
    name="flat-lora",
    about="Noise on the merged weights, so that LoRA settles where the loss is flat.",
    source="Li et al. 2024, 2409.14396",
    strength="rho",
    space=Space((_number("flat-lora.rho", 0.0, 1.0, 0.05, "Size of the noise, relative to a row's norm."),)),
    menu=("flat-lora:0.05",),
    methods=("lora", "rslora", "loraplus", "pissa", "olora", "eva"),
    fix="Use --set training.method=lora, or dropout.",
    conflicts=(("mixout", "both replace the weights of a pass; name one of them."),),
)
NEFTUNE = Declaration(
    name="neftune",
    about="Uniform noise on the input embeddings.",
    source="Jain et al. 2023, 2310.05914",
    strength="alpha",
    space=Space((_number("neftune.alpha", 0.0, 50.0, 5.0, "Noise strength."),)),
    menu=("neftune:5",),
)
CHILD_TUNING = Declaration(
    name="child-tuning",
    about="Only some weights move: a fresh random part at every update, or those of highest task Fisher.",
    source="Xu et al. 2021, 2109.05687",
    strength="share",
    space=Space(
        (
            _number("child-tuning.share", 0.01, 1.0, 0.3, "Share of the weights that move."),
            Choice("child-tuning.by", ("random", "fisher"), "random", about="F: random; D: highest task Fisher."),
            _number("child-tuning.fisher_rows", 1, 100_000, 128, "Training rows of the task Fisher.", whole=True),
        )
    ),
    menu=("child-tuning:0.3",),
)
REINIT_TOP = Declaration(
    name="reinit-top",
    about="The top blocks start anew.",
    source="Zhang et al. 2021, 2006.05987",
    strength="blocks",
    space=Space((_number("reinit-top.blocks", 1, 100, 2, "Blocks drawn anew, from the top.", whole=True),)),
    methods=("full",),
    fix="Fresh blocks have to be trained: use --set training.method=full.",
)
MIXOUT = Declaration(
    name="mixout",
    about="Input neurons fall back to their pre-trained weights at random.",
    source="Lee et al. 2020, 1909.11299",
    strength="rate",
    space=Space((_number("mixout.rate", 0.0, 0.95, 0.7, "Share of neurons that fall back."),)),
    methods=("full",),
    fix="It mixes trained weights with the base's: use --set training.method=full, or dropout on an adapter.",
)
SMART = Declaration(
    name="smart",
    about="Predictions may not change under a small adversarial change of the embeddings, nor move fast.",
    source="Jiang et al. 2020, 1911.03437",
    strength="weight",
    space=Space(
        (
            _number("smart.weight", 0.0, 100.0, 1.0, "Weight of the divergence."),
            _number("smart.radius", 1e-8, 1.0, 1e-2, "Largest change, relative to the embeddings' size.", log=True),
            _number("smart.ascents", 1, 10, 1, "Steps of the adversary.", whole=True),
            _number("smart.proximal", 0.0, 100.0, 1.0, "Weight of the proximal term, relative to the adversary's."),
        )
    ),
)
RECADAM = Declaration(
    name="recadam",
    about="The objective moves from staying at the pre-trained weights to the task.",
    source="Chen et al. 2020, 2004.12651",
    strength="pull",
    space=Space(
        (
            _number("recadam.pull", 0.0, 1e5, 5000.0, "Strength of the quadratic pull."),
            _number("recadam.midpoint", 0.0, 1.0, 0.2, "Share of the run after which the task weighs one half."),
            _number("recadam.speed", 1.0, 1000.0, 20.0, "Slope of the change, per run.", log=True),
        )
    ),
)
EXTRAPOLATION = Declaration(
    name="extrapolation",
    about="The gradient is taken a step ahead along the last one and applied where the weights are.",
    source="Lin et al. 2020, 2006.05720",
    strength="step",
    space=Space((_number("extrapolation.step", 0.0, 100.0, 0.1, "Length of the step ahead along the last gradient."),)),
    conflicts=(("smart", "both move the model for a pass; name one of them."),),
)
TOKEN_WEIGHTING = Declaration(
    name="token-weighting",
    about="Tokens count by a weight: how surprised the base is, or a weight learnt to help other rows.",
    source="Seo et al. 2024 (Train-Attention), 2407.16920",
    strength="sharpness",
    space=Space(
        (
            _number("token-weighting.sharpness", 0.0, 10.0, 1.0, "0 weighs all tokens alike."),
            Choice("token-weighting.by", ("surprise", "learned"), "surprise", about="Heuristic, or meta-learned."),
            _number("token-weighting.every", 1, 1000, 4, "Updates between two lessons of the weights.", whole=True),
            _number("token-weighting.rate", 1e-5, 10.0, 0.1, "Learning rate of the weights.", log=True),
        )
    ),
    needs_base=True,
    kinds=("causal", "seq2seq"),
    fix="It asks the base how surprised it is: use --set training.method=lora on a language model, or leave it out.",
)

REGULARIZERS: dict[str, Declaration] = {
    declaration.name: declaration
    for declaration in (
        GUIDED_DROPOUT,
        DROPOUT,
        GAUSSIAN_DROPOUT,
        L2_SP,
        R_DROP,
        KL_TO_BASE,
        FLAT_LORA,
        NEFTUNE,
        CHILD_TUNING,
        REINIT_TOP,
        MIXOUT,
        SMART,
        RECADAM,
        EXTRAPOLATION,
        TOKEN_WEIGHTING,
        TFEW,
        PRUNE_REWIND,
        RANK_SCHEDULE,
    )
}


def declaration(name: str) -> Declaration:
    """The declaration of a regularizer. Raises `UsageError` with the nearest known name."""
    if name not in REGULARIZERS:
        close = difflib.get_close_matches(name, REGULARIZERS, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(f"unknown regularizer {name!r}.", remedy=f"{hint}Known: none, {', '.join(REGULARIZERS)}.")
    return REGULARIZERS[name]


def named(text: str) -> list[tuple[Declaration, float | None]]:
    """The regularizers of ``guided-dropout,kl-to-base:0.1`` in order, each with its strength or None.

    Raises `UsageError` for an unknown name, one given twice, a strength out of range, or two that exclude each other.
    """
    if text == NONE:
        return []
    found: list[tuple[Declaration, float | None]] = []
    for part in text.split(","):
        name, _, written = part.strip().partition(":")
        declared = declaration(name)
        if any(declared is other for other, _ in found):
            raise UsageError(f"{name} is named twice.", remedy="Name it once, with one strength.")
        found.append((declared, _strength(declared, written) if written else None))
    _refuse_conflicts([declared for declared, _ in found])
    return found


def _strength(declared: Declaration, written: str) -> float:
    try:
        value = float(written)
    except ValueError:
        raise UsageError(
            f"{written!r} is not a strength of {declared.name}.", remedy=f"Write it like {declared.name}:0.1."
        ) from None
    parameter = declared.space[f"{declared.name}.{declared.strength}"]
    if isinstance(parameter, Number) and parameter.whole and value != round(value):
        raise UsageError(f"{declared.name}:{written} is no whole number.", remedy=f"Write it like {declared.name}:2.")
    return float(parameter.check(value))


def _refuse_conflicts(chosen: Sequence[Declaration]) -> None:
    names = [declared.name for declared in chosen]
    for declared in chosen:
        for other, why in declared.conflicts:
            if other in names:
                raise UsageError(f"{declared.name} and {other} cannot be used together: {why}")


def settings() -> tuple[Parameter, ...]:
    """The own settings of all regularizers; each is present only where ``regularizer`` names its owner."""
    return tuple(
        replace(parameter, condition=Mentions(SETTING, declared.name))
        for declared in REGULARIZERS.values()
        for parameter in declared.space.parameters
    )


def with_strengths(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` settings with the strengths in ``regularizer`` written to their own settings.

    Raises `UsageError` as `named` does, and where a strength and its setting contradict each other.
    """
    complete = dict(given)
    for declared, strength in named(str(given.get(SETTING, NONE))):
        key = f"{declared.name}.{declared.strength}"
        if strength is None:
            continue
        if key in given and float(given[key]) != strength:
            raise UsageError(
                f"{declared.name}:{strength:g} and {key} = {given[key]} contradict each other.",
                remedy="Leave out one of them; they are the same setting.",
            )
        complete[key] = strength
    return complete


def check(config: Mapping[str, Any], *, disables_to_base: bool = True) -> None:
    """Refuse, with the fix, regularizers that cannot work in a complete configuration. Raises `UsageError`.

    ``disables_to_base`` is the method's promise of that name.
    """
    method = str(config.get("method", "lora"))
    for declared, _ in named(str(config.get(SETTING, NONE))):
        if not fits_method(declared, method, disables_to_base=disables_to_base):
            raise UsageError(f"{declared.name} does not work with the method {method}.", remedy=declared.fix)
        if declared.name in DROPOUTS and config.get(f"{method}.dropout"):
            raise UsageError(
                f"{declared.name} sets the dropout of the adapter itself, and {method}.dropout is "
                f"{config[f'{method}.dropout']:g}.",
                remedy=f"Leave {method}.dropout at 0.",
            )
    low, high = config.get("guided-dropout.low"), config.get("guided-dropout.high")
    if low is not None and high is not None and low > high:
        raise UsageError(
            f"guided-dropout.low = {low:g} is above guided-dropout.high = {high:g}.",
            remedy="Give the lowest rate below the highest; schedule=reversed turns the ranking round.",
        )


def check_kind(text: str, kind: str, *, regression: bool = False, quantized: bool = False) -> None:
    """Refuse regularizers that do not work with a kind of model or task. Raises `UsageError`."""
    for declared, _ in named(text):
        if kind not in declared.kinds:
            raise UsageError(f"{declared.name} does not work with an {kind}.", remedy=declared.fix)
        if regression and declared.name in ("r-drop", "smart"):
            raise UsageError(
                f"{declared.name} compares class probabilities, and a regression has none.",
                remedy="Use dropout, guided-dropout or l2-sp.",
            )
        if quantized and declared.name == "flat-lora":
            raise UsageError(
                "flat-lora adds noise to the base's weights, and 4-bit weights cannot take it.",
                remedy="Load the base without --quantize, or use dropout.",
            )


def fits_method(declared: Declaration, method: str, *, disables_to_base: bool) -> bool:
    """Whether a regularizer works with a method."""
    return (not declared.methods or method in declared.methods) and (disables_to_base or not declared.needs_base)


def menu(method: str, kind: str, *, disables_to_base: bool = True) -> Choice:
    """What a search may draw for ``regularizer`` with a method and a kind of model; ``none`` comes first."""
    words = [
        word
        for declared in REGULARIZERS.values()
        for word in declared.menu
        if all(
            fits_method(one, method, disables_to_base=disables_to_base) and kind in one.kinds for one, _ in named(word)
        )
    ]
    return Choice(SETTING, (NONE, *words), NONE, about="What keeps the run from forgetting or over-fitting.")
