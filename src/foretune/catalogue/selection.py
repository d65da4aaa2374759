"""The small language of a selection, how much is kept, and what a selector declares; nothing here imports torch.

A selection is a word: ``none``, a selector's name, or a chain of stages from left to right:

    ifd                      the rows with the highest scores
    ifd:60%+k-centre         first the best 60 % by one selector, then another among those
    ifd&longest              the two rankings fused (mean rank)

``keep`` says how much the last stage leaves: a share (``30%``), rows (``500``) or answer tokens (``200k tokens``).
In a trial configuration the word is the setting ``selection``, the share the setting ``keep``, and a selector's own
settings stand under its name (``ifd.ratio``). The declarations themselves are in `catalogue.selectors`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from foretune.catalogue.space import Mentions, Number, Space, Text
from foretune.errors import UsageError
from foretune.units import parse_count, parse_share

NONE = "none"
_NAME = r"[a-z][a-z0-9-]*"
_STAGE = rf"{_NAME}(&{_NAME})*(:[0-9.]+%?)?"
PATTERN = rf"{_STAGE}(\+{_STAGE})*"
"""The whole word (``none`` is of the form of a name)."""
ENTRY_POINTS = "foretune.selectors"
"""The group under which another package offers selectors: each entry is a `Selector` with a ``declaration``."""

SELECTION = Space(
    (
        Text("selection", NONE, PATTERN, about="Rows to train on: none (all), or selectors like ifd:60%+delift."),
        Number("keep", 1e-6, 1.0, 1.0, unit="share", about="Share of the training rows that the selection keeps."),
    )
)  # fmt: skip
"""The two settings of every trial configuration."""

READS_ANSWERS = frozenset({"pointwise", "pairwise", "gradient"})
"""Families that score rows by the likelihood of their answers, or by its gradient."""

Moment = Literal["before", "during", "either", "filter"]
"""When rows are chosen. ``either``: by a ranking before a training, or in it, as in a trial. ``filter``: the ranking is
made before, and the training keeps to it for a while."""


@dataclass(frozen=True)
class Pool:
    """The sizes that a selector's work follows from."""

    rows: int
    count: int
    """Rows wanted"""
    prompt_tokens: float
    """Mean tokens before the answer"""
    answer_tokens: float
    target_rows: int = 0
    previous_rows: int = 0
    width: int = 0
    """Hidden width of the model"""

    @property
    def row_tokens(self) -> float:
        """Mean tokens of a row."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Work:
    """What a selector has to do, before it is turned into seconds."""

    scored_tokens: float = 0.0
    """Tokens of forward passes"""
    trained_tokens: float = 0.0
    """Tokens of forward and backward passes with an adapter"""
    comparisons: float = 0.0
    """Multiplications of comparing rows with each other"""
    memory_bytes: float = 0.0
    """Beside the loaded model"""
    disk_bytes: float = 0.0
    """Scores kept so that the selection can be resumed"""

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(
            self.scored_tokens + other.scored_tokens,
            self.trained_tokens + other.trained_tokens,
            self.comparisons + other.comparisons,
            max(self.memory_bytes, other.memory_bytes),
            self.disk_bytes + other.disk_bytes,
        )


@dataclass(frozen=True)
class SelectorDeclaration:
    """What is known of a selector without loading it."""

    name: str
    about: str
    family: Literal["baseline", "pointwise", "pairwise", "embedding", "gradient", "iterative", "stream"]
    space: Space
    """Its settings, named ``<selector>.<setting>``"""
    work: Callable[[Pool, Mapping[str, Any]], Work]
    cost: str
    """In words and O(·), for tables"""
    source: str
    needs_model: bool = True
    needs_target: bool = False
    uses_previous: bool = False
    nested: bool = True
    """Whether the choice of k rows begins every larger choice, so that one ranking serves every count"""
    moment: Moment = "before"
    """When it chooses"""
    seeded: bool = False
    """Whether what it scores depends on the seed, so that every seed pays for it"""
    draws: bool = False
    """Whether it draws by the seed what costs nothing to speak of"""

    @property
    def follows_seed(self) -> bool:
        """Whether another seed takes other rows."""
        return self.seeded or self.draws


@dataclass(frozen=True)
class Keep:
    """How much of a pool is kept."""

    kind: Literal["share", "rows", "tokens"]
    amount: float

    def rows(self, available: int) -> int:
        """Rows kept of ``available``; all of them for a budget in tokens, which is counted row by row."""
        if self.kind == "tokens":
            return available
        wanted = round(self.amount * available) if self.kind == "share" else int(self.amount)
        return min(max(0, wanted), available)

    def __str__(self) -> str:
        if self.kind == "share":
            return f"{100 * self.amount:g}%"
        return f"{self.amount:.0f} {'answer tokens' if self.kind == 'tokens' else 'rows'}"


def parse_keep(value: str | float | int) -> Keep:
    """``"30%"``, ``0.3``, ``500``, ``"500"`` or ``"200k tokens"``. Raises `UsageError` with the accepted forms."""
    forms = "Write a share (30% or 0.3), a number of rows (500), or answer tokens (200k tokens)."
    text = str(value).strip().lower()
    try:
        if (tokens := re.fullmatch(r"(.+?)\s*tok(?:en)?s?", text)) is not None:
            keep = Keep("tokens", parse_count(tokens[1]))
        elif text.endswith("%") or isinstance(value, float) or re.fullmatch(r"[0-9]*\.[0-9]+", text):
            keep = Keep("share", parse_share(text))
        else:
            keep = Keep("rows", parse_count(re.sub(r"\s*rows?$", "", text)))
    except UsageError as error:
        raise UsageError(f"{value!r} does not say how much to keep.", remedy=forms) from error
    if keep.amount <= 0:
        raise UsageError(f"{value!r} keeps nothing.", remedy=forms)
    return keep


@dataclass(frozen=True)
class Stage:
    """One stage of a chain: selectors whose rankings are fused, and what it leaves (None in the last one)."""

    names: tuple[str, ...]
    keep: Keep | None = None


def parse(text: str) -> tuple[Stage, ...]:
    """The stages of a selection; none for ``none``. Raises `UsageError` for what is not of its form or unknown."""
    if text == NONE:
        return ()
    if re.fullmatch(PATTERN, text) is None:
        raise UsageError(
            f"{text!r} is no selection.", remedy="Write selectors like ifd, ifd:60%+delift or ifd&longest."
        )
    stages = []
    for part in text.split("+"):
        names, _, amount = part.partition(":")
        stages.append(Stage(tuple(names.split("&")), parse_keep(amount) if amount else None))
    for stage in stages:
        for name in stage.names:
            declared = declaration(name)
            if declared.moment == "during" and (len(stages) > 1 or len(stage.names) > 1):
                raise UsageError(
                    f"{name} chooses rows while training, so it stands alone.", remedy="Leave out the rest."
                )
            if not declared.nested and len(stage.names) > 1:
                raise UsageError(
                    f"{name} chooses a set of rows and ranks none, so its ranks cannot be fused.",
                    remedy=f"Write it as a stage of its own, like {name}:60%+longest.",
                )
    if stages[-1].keep is not None:
        raise UsageError(f"the last stage of {text!r} has a share of its own.", remedy="Say it with keep.")
    if any(stage.keep is None for stage in stages[:-1]):
        raise UsageError(
            f"a stage of {text!r} does not say how much it leaves.", remedy="Write it like ifd:60%+delift."
        )
    return tuple(stages)


def names_in(text: str) -> tuple[str, ...]:
    """The selectors that a selection names, each once."""
    return tuple(dict.fromkeys(name for stage in parse(text) for name in stage.names))


def declaration(name: str) -> SelectorDeclaration:
    """The declaration of a selector, our own or another package's. Raises `UsageError` with the nearest name."""
    from foretune.catalogue.selectors import SELECTORS

    if name in SELECTORS:
        return SELECTORS[name]
    if (found := third_party(name)) is not None:
        declared: SelectorDeclaration = found.declaration
        return declared
    close = difflib.get_close_matches(name, SELECTORS, n=1, cutoff=0.5)
    remedy = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(SELECTORS)}."
    raise UsageError(f"unknown selector {name!r}.", remedy=remedy)


def third_party(name: str) -> Any | None:
    """The selector that another installed package offers under ``name``, or None."""
    from importlib.metadata import entry_points

    found = list(entry_points(group=ENTRY_POINTS, name=name))
    return found[0].load() if found else None


def config_part() -> Space:
    """Selection, share, and every selector's settings; these are there only where ``selection`` names the selector."""
    from foretune.catalogue.selectors import SELECTORS

    own = tuple(
        replace(parameter, condition=Mentions("selection", name))
        for name, declared in SELECTORS.items()
        for parameter in declared.space.parameters
    )
    return Space(SELECTION.parameters + own)


def selection_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a trial configuration that decides which rows are trained on."""
    names = names_in(str(config.get("selection", NONE)))
    return {
        key: value
        for key, value in config.items()
        if key in ("selection", "keep") or key.partition(".")[0] in names
    }  # fmt: skip


def check(config: Mapping[str, Any]) -> None:
    """Refuse a selection that cannot be carried out: unknown selectors, a share without a selector."""
    text, keep = str(config.get("selection", NONE)), float(config.get("keep", 1.0))
    parse(text)
    if text == NONE and keep < 1.0:
        raise UsageError(
            f"keep is {keep:g}, but no selection says which rows.", remedy="Set selection, if only to random."
        )


def check_kind(text: str, kind: str) -> None:
    """Refuse selectors that read how likely an answer is under a kind of model that writes none."""
    for name in names_in(text):
        if kind == "encoder" and declaration(name).family in READS_ANSWERS:
            raise UsageError(
                f"{name} reads how likely answers are, and an encoder writes none.",
                remedy="Choose random, longest, k-centre, herding or rds-plus.",
            )


def kept_rows(config: Mapping[str, Any], rows: int) -> int:
    """How many of ``rows`` training rows a configuration trains on in one epoch; at least one."""
    if str(config.get("selection", NONE)) == NONE:
        return rows
    return max(1, min(rows, Keep("share", float(config.get("keep", 1.0))).rows(rows)))


def work_of(text: str, pool: Pool, fields: Mapping[str, Any], keep: Keep) -> Work:
    """The work of a whole selection: every stage on what the one before leaves."""
    total, rows = Work(), pool.rows
    for stage in parse(text):
        count = (stage.keep or keep).rows(rows)
        here = replace(pool, rows=rows, count=count)
        for name in stage.names:
            total = total + declaration(name).work(here, with_defaults(name, fields))
        rows = count
    return total


def with_defaults(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A selector's settings by their short names: ``fields`` where they say something, its defaults elsewhere.

    Raises `UsageError` for a setting that it does not have or a bad value.
    """
    space = declaration(name).space
    own = {key: value for key, value in fields.items() if key.startswith(f"{name}.")}
    complete = {**space.defaults(), **space.check(own)}
    return {key.partition(".")[2]: value for key, value in complete.items()}


def needed(names: Sequence[str]) -> tuple[bool, bool]:
    """(whether any of the selectors needs a model, whether any needs a target)."""
    declared = [declaration(name) for name in names]
    return any(one.needs_model for one in declared), any(one.needs_target for one in declared)
