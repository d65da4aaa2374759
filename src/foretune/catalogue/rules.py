"""Rules of thumb for choosing method and budget: the literature's, and those a study on your own data has measured.

A rule says in which situation (`When`) what is advised (`advice`, settings of a configuration), on what evidence. The
literature's rules (`LITERATURE`) carry source and strength. A measured rule carries an estimate with an interval. It
counts only where that interval excludes zero, and only inside its scope; it replaces a literature rule on the same
quantity where the interval excludes the sign that the literature claims, and stands beside it where it agrees.

Numbers are starting points: the search tests them. Whoever sets a value keeps it (`config.resolve`). This module
decides nothing about how a configuration is completed; `fit.plan` and the cold start of the search do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foretune.catalogue.models import ModelKind

Strength = Literal["strong", "medium", "weak", "measured"]
RANKS: dict[Strength, int] = {"measured": 0, "strong": 1, "medium": 2, "weak": 3}
TRAINABLE = "trainable"
"""In a rule's advice: the share of the parameters to train, which a method's own knob is set to."""
TRANSLATION = "translation"
"""Stands among the tasks of a situation for rows of source and target."""

KEEP, REMOVE = "keep abilities", "remove behaviour"
"""Goals that a caller may state; nothing guesses them."""
NEAR, FAR = 0.2, 0.38
"""Distances (`catalogue.distances`) up to which a target counts as near to the source, and from which as far: English
to Swedish, German and Spanish lie below the first, to Hungarian, Korean, Japanese and Turkish beyond the second."""
FEW_ROWS = 2000
"""Rows up to which little data is meant; weakly known, a study measures it."""
FEW_LABELLED_ROWS = 1000
SMALL_ENCODER = 300_000_000


@dataclass(frozen=True)
class Situation:
    """What is known about a job before it is trained; None is unknown."""

    kind: ModelKind
    task: str
    rows: int
    """Training rows"""
    parameters: int
    translation: bool = False
    distance: float | None = None
    """Between source and target language"""
    model: str = ""
    goal: str = ""
    """What is wanted beside a good score: `KEEP` or `REMOVE`"""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names under which a rule may mean this task."""
        return (self.task, TRANSLATION) if self.translation else (self.task,)


@dataclass(frozen=True)
class When:
    """Conditions of a rule; all that are given must hold. A range of None is open."""

    kinds: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    goals: tuple[str, ...] = ()
    rows: tuple[float | None, float | None] = (None, None)
    parameters: tuple[float | None, float | None] = (None, None)
    distance: tuple[float | None, float | None] = (None, None)

    def holds(self, at: Situation) -> bool:
        """Whether the rule speaks of ``at``; what is unknown fulfils no condition on it."""
        named = (
            (self.kinds, (at.kind,)),
            (self.tasks, at.tasks),
            (self.models, (at.model,)),
            (self.goals, (at.goal,)),
        )
        ranges = ((self.rows, at.rows), (self.parameters, at.parameters), (self.distance, at.distance))
        return all(not wanted or set(wanted) & set(given) for wanted, given in named) and all(
            _within(value, limits) for limits, value in ranges
        )


def _within(value: float | None, limits: tuple[float | None, float | None]) -> bool:
    low, high = limits
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


@dataclass(frozen=True)
class Measured:
    """An estimate with its interval and what it rests on."""

    value: float
    low: float
    high: float
    unit: str
    runs: int
    confidence: float = 0.95

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def contradicts(self, claim: Literal["negative", "positive"]) -> bool:
        """Whether the interval excludes the claimed sign."""
        return self.low > 0 if claim == "negative" else self.high < 0


@dataclass(frozen=True)
class Rule:
    """One rule; see the module's docstring."""

    id: str
    statement: str
    when: When
    advice: Mapping[str, Any] = field(default_factory=dict)
    avoid: tuple[str, ...] = ()
    """Methods not to be tried unless asked for"""
    strength: Strength = "medium"
    source: str = ""
    quantity: str = ""
    """What is claimed about: rules with the same quantity can contradict each other"""
    claim: Literal["negative", "positive"] | None = None
    """The sign the literature claims for ``quantity``"""
    measured: Measured | None = None

    @property
    def counts(self) -> bool:
        """Whether the rule may be used: a measured one only when its interval excludes zero."""
        return self.measured is None or self.measured.resolved

    @property
    def citation(self) -> str:
        """The rule with its evidence, in a sentence."""
        if self.measured is None:
            return f"{self.statement} ({self.strength}; {self.source})"
        m = self.measured
        interval = f"{m.value:.3g} [{m.low:.3g}, {m.high:.3g}] {m.unit}"
        return f"{self.statement} (measured: {interval}, {m.runs} runs; {self.source})"


LITERATURE: tuple[Rule, ...] = (
    Rule(
        "rate-before-budget",
        "LoRA and adapters start at ten times the rate of full tuning; (IA)³, norms and prompts at 1e-3 to 5e-3",
        When(kinds=("causal", "seq2seq")),
        strength="strong",
        source="Schulman et al. 2025, 'LoRA Without Regret'; public comparison of 63 runs on Llama-3.2-3B (peft)",
    ),
    Rule(
        "all-linear",
        "LoRA on all linear layers, never attention alone",
        When(kinds=("causal", "seq2seq")),
        advice={"lora.targets": "all-linear"},
        strength="strong",
        source="Schulman et al. 2025; Biderman et al. 2024 (2405.09673)",
    ),
    Rule(
        "few-rows",
        "with few rows parameter-efficient tuning is at least as good as full tuning",
        When(kinds=("causal", "seq2seq"), rows=(None, FEW_ROWS)),
        advice={"method": "lora"},
        strength="weak",
        source="Üstün & Cooper Stickland 2022 (2205.11277); the direction is strong, the number of rows is not",
        quantity="gap at few rows",
        claim="negative",
    ),
    Rule(
        "few-labelled-rows",
        "with at most a thousand labelled rows parameter-efficient tuning is at least as good as full tuning",
        When(kinds=("encoder",), tasks=("classification", "regression"), rows=(None, FEW_LABELLED_ROWS)),
        advice={"method": "lora"},
        strength="weak",
        source="He et al. 2021 (2106.03164); the direction is strong, the number of rows is not",
        quantity="gap at few rows",
        claim="negative",
    ),
    Rule(
        "near-target",
        "a target language near the source needs little: half a percent of the parameters",
        When(tasks=(TRANSLATION,), distance=(None, NEAR)),
        advice={TRAINABLE: 0.005},
        strength="weak",
        source="after Üstün & Cooper Stickland 2022 (2205.11277): direction strong, numbers heuristic",
        quantity="gap by budget and distance",
        claim="negative",
    ),
    Rule(
        "middle-target",
        "a target language at a middle distance: two percent of the parameters",
        When(tasks=(TRANSLATION,), distance=(NEAR + 1e-9, FAR - 1e-9)),
        advice={TRAINABLE: 0.02},
        strength="weak",
        source="after Üstün & Cooper Stickland 2022 (2205.11277): direction strong, numbers heuristic",
        quantity="gap by budget and distance",
        claim="negative",
    ),
    Rule(
        "far-target",
        "a distant target language needs more: eight percent of the parameters",
        When(tasks=(TRANSLATION,), distance=(FAR, None)),
        advice={TRAINABLE: 0.08},
        strength="weak",
        source="after Üstün & Cooper Stickland 2022 (2205.11277): direction strong, numbers heuristic",
        quantity="gap by budget and distance",
        claim="negative",
    ),
    Rule(
        "larger-parent",
        "a larger model with parameter-efficient tuning is better than a smaller one tuned in full, at equal memory",
        When(kinds=("causal", "seq2seq")),
        strength="strong",
        source="2205.11277; Zhang et al. 2024 (2402.17193); Yu et al. 2023 (2311.08572)",
        quantity="larger efficient minus smaller full",
        claim="negative",
    ),
    Rule(
        "no-prompts-for-translation",
        "prefix, prompt, VeRA and (IA)³ learn too little for translation; beside LoRA, try adapters and OFT",
        When(tasks=(TRANSLATION,)),
        avoid=("prefix", "prefix-tuning", "prompt", "prompt-tuning", "p-tuning", "vera", "ia3"),
        strength="strong",
        source="Üstün & Cooper Stickland 2022 (2205.11277); He et al. 2022 (2110.04366)",
    ),
    Rule(
        "keep-the-base",
        "to keep the base's abilities: LoRA or OFT at a moderate scale, and report forgetting beside the score",
        When(kinds=("causal",), goals=(KEEP,)),
        advice={"method": "lora", "lora.targets": "mlp"},
        strength="medium",
        source="Biderman et al. 2024 (2405.09673)",
    ),
    Rule(
        "remove-behaviour",
        "to remove behaviour: full tuning or a high rank, checked at several ranks",
        When(kinds=("causal", "seq2seq"), goals=(REMOVE,)),
        advice={"method": "full"},
        strength="medium",
        source="Das et al. 2024 (2405.18572)",
    ),
    Rule(
        "small-batches",
        "LoRA learns worse than full tuning at large batches: at most 32 rows an update",
        When(kinds=("causal", "seq2seq")),
        strength="medium",
        source="Schulman et al. 2025, 'LoRA Without Regret'",
    ),
    Rule(
        "small-encoders",
        "encoders up to 300 M parameters, where training time is the cost: full fine-tuning is worth trying",
        When(kinds=("encoder",), rows=(FEW_LABELLED_ROWS + 1, None), parameters=(None, SMALL_ENCODER)),
        strength="medium",
        source="2305.07491",
    ),
)
"""What published work supports. Rules without advice are cited where they explain what the defaults already do."""


@dataclass(frozen=True)
class Advice:
    """What the rules say for one situation."""

    settings: Mapping[str, Any]
    """Advised settings of the configuration; a share under `TRAINABLE` is for the method's own knob"""
    avoid: tuple[str, ...]
    cited: tuple[Rule, ...]
    """The rules behind it, those that decided something first"""
    replaced: tuple[tuple[Rule, Rule], ...] = ()
    """(literature rule, measured rule that contradicts it)"""
    by: Mapping[str, Rule] = field(default_factory=dict)
    """The rule behind every setting"""


def advise(at: Situation, measured: Iterable[Rule] = ()) -> Advice:
    """The rules that speak of ``at``; measured ones first, then the literature's by strength.

    The first rule that names a setting decides it. Measured rules whose interval includes zero are left out.
    """
    local = [rule for rule in measured if rule.counts and rule.when.holds(at)]
    replaced = []
    standing = []
    for rule in LITERATURE:
        if not rule.when.holds(at):
            continue
        against = next((own for own in local if _overrides(own, rule)), None)
        if against is None:
            standing.append(rule)
        else:
            replaced.append((rule, against))
    ordered = sorted([*local, *standing], key=lambda rule: RANKS[rule.strength])
    settings: dict[str, Any] = {}
    by: dict[str, Rule] = {}
    for rule in ordered:
        for name, value in rule.advice.items():
            if name not in settings:
                settings[name], by[name] = value, rule
    deciding = [rule for rule in ordered if any(rule is one for one in by.values()) or rule.avoid]
    others = [rule for rule in ordered if not any(rule is one for one in deciding)]
    avoid = tuple(dict.fromkeys(name for rule in ordered for name in rule.avoid))
    return Advice(settings, avoid, (*deciding, *others), tuple(replaced), by)


def _overrides(own: Rule, literature: Rule) -> bool:
    """Whether a measured rule on the same quantity excludes the sign that the literature claims."""
    return (
        bool(literature.quantity)
        and literature.claim is not None
        and own.quantity == literature.quantity
        and own.measured is not None
        and own.measured.contradicts(literature.claim)
    )
