"""What a fit settled when it was begun, and keeps when it is resumed with another budget or a longer history.

How many rows are evaluated and which rankings are offered are advised by the time there is and by what earlier runs
took. Both decide which runs can be compared, so a resumed fit goes on with what it began with: more time buys more
runs, not others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from foretune.config.resolve import Resolved
from foretune.fit.plan import Plan

ROWS = "evaluation.max_rows"


def with_rows_as_begun(plan: Plan, remember: Callable[[str, Callable[[], Any]], Any]) -> Plan:
    """``plan`` with the number of evaluated rows that was advised at first; one that a person chose stays."""
    if plan.resolution.chosen(ROWS):
        return plan
    kept = remember("recommended", lambda: {ROWS: vars(plan.resolution.values[ROWS])})
    return replace(plan, resolution=plan.resolution.kept({key: Resolved(**item) for key, item in kept.items()}))


def with_offers_as_begun(plan: Plan, remember: Callable[[str, Callable[[], Any]], Any]) -> Plan:
    """``plan`` with the rankings that ``--keep auto`` could afford at first."""
    if not plan.keeping:
        return plan
    kept = remember("offers", lambda: [offer.selection for offer in plan.keeping if offer.affordable])
    return replace(plan, keeping=tuple(replace(offer, affordable=offer.selection in kept) for offer in plan.keeping))
