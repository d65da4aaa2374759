"""``--keep auto``: the search finds out on how many of the rows, and on which, training is best.

Beside all rows it compares a few shares of a selection that was named, or half of the rows by three that differ in
what they look at: the answers' lengths, the model's embeddings of rows, and how hard it finds them (or, for encoders,
how far rows lie from each other). Selections are offered, cheapest first, as long as ranking the rows by all of them
is forecast to take at most a tenth of the time budget; that is done once, before the trials, which share it. All runs
have equally many steps, so fewer rows are seen more often: what is compared is rows, not amounts of training. Rungs
decide as for any other setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from foretune.catalogue.selection import NONE, check_kind, declaration, names_in
from foretune.config.spec import FitSpec
from foretune.cost.phases import UnitTimes, selection_seconds
from foretune.cost.request import SelectionWork
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.fit.planned_rows import PlannedRows
from foretune.fit.selected import selection_work
from foretune.units import format_duration, format_share

AUTO = "auto"
RANKING_SHARE = 0.1
"""All rankings together may take this share of a time budget: what they take is not trained."""
SHARES = (0.3, 0.5, 0.7)
"""Shares compared of a selection that was named."""
HALF = 0.5
"""The share of a selection that was not: more arms than these would leave each too little."""
MENU = ("longest", "delift-se", "ifd")
ENCODER_MENU = ("longest", "delift-se", "k-centre")
"""Offered when none was named. An encoder writes no answers that `ifd` could find hard."""


@dataclass(frozen=True)
class Offer:
    """A selection that a search may try."""

    selection: str
    shares: tuple[float, ...]
    work: SelectionWork
    """Ranking the rows,"""
    seconds: float
    """and its forecast"""
    affordable: bool

    @property
    def arms(self) -> tuple[dict[str, Any], ...]:
        """The settings that it stands for; none where ranking is too dear."""
        return tuple({"selection": self.selection, "keep": share} for share in self.shares if self.affordable)

    def sentence(self) -> str:
        """What is compared, or why it is not."""
        taking = (
            f"ranking takes about {format_duration(self.seconds)}" if self.seconds >= 1 else "ranking takes no time"
        )
        if not self.affordable:
            room = f"{RANKING_SHARE:.0%} of the time budget"
            return f"{self.selection} is not tried: {taking}, and all rankings together may take {room}."
        shares = ", ".join(map(format_share, self.shares))
        return f"runs on {shares} of the rows by {self.selection} are compared with runs on all; {taking}."


def offers(
    spec: FitSpec, shapes: ModelShapes, rows: PlannedRows, units: UnitTimes, time_s: float | None
) -> tuple[Offer, ...]:
    """What ``--keep auto`` lets the search try, cheapest first; nothing without it. Raises `UsageError`."""
    if spec.search.keep != AUTO:
        return ()
    named = str(spec.training.get("selection", NONE))
    menu = ENCODER_MENU if shapes.kind == "encoder" else MENU
    listed, shares = (menu, (HALF,)) if named == NONE else ((named,), SHARES)
    priced = []
    for text in listed:
        _check(text, shapes.kind)
        config = {**spec.training, "selection": text, "keep": max(shares)}
        work = selection_work(config, rows, shapes.width) or SelectionWork()
        priced.append((selection_seconds(work, units).value, text, work))
    found, left_s = [], math.inf if time_s is None else RANKING_SHARE * time_s
    for seconds, text, work in sorted(priced, key=itemgetter(0)):
        found.append(Offer(text, shares, work, seconds, seconds <= left_s))
        left_s -= seconds
    if named != NONE and not found[0].affordable:
        raise UsageError(
            f"with --keep auto, {found[0].sentence()}",
            remedy="Give more --time, a share like --keep 30%, or another --select.",
        )
    return tuple(found)


def _check(text: str, kind: str) -> None:
    check_kind(text, kind)
    if any(declaration(name).moment != "before" or not declaration(name).nested for name in names_in(text)):
        raise UsageError(
            f"--keep auto compares shares of one ranking, and {text} makes none.",
            remedy="Say a share, like --keep 30%.",
        )


def ranked(found: tuple[Offer, ...]) -> SelectionWork | None:
    """The work of all rankings that are made; None where nothing is scored."""
    made = sum((offer.work for offer in found if offer.affordable), SelectionWork())
    return None if made == SelectionWork() else made


def variants(found: tuple[Offer, ...]) -> tuple[tuple[Mapping[str, Any], str], ...]:
    """(settings, why) of the runs that try the offers."""
    return tuple(
        (arm, f"on {format_share(arm['keep'])} of the rows by {arm['selection']}, seen more often")
        for offer in found
        for arm in offer.arms
    )
