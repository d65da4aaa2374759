"""A selector of another package: found by its entry point, checked like ours, usable in chains and settings."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from foretune.catalogue.methods import resolve
from foretune.catalogue.selection import SelectorDeclaration, Work
from foretune.catalogue.space import Choice, Space
from foretune.errors import UsageError
from foretune.selection.base import Request, Selection
from foretune.selection.declared import Declared
from foretune.selection.run import select

from .conftest import rows


class Shortest(Declared):
    """The shortest questions first; ``broken`` makes it break its promises."""

    name = "shortest"
    declaration = SelectorDeclaration(
        name="shortest", about="Short questions.", family="baseline",
        space=Space((Choice("shortest.broken", ("no", "twice", "outside"), "no", about="For a test."),)),
        work=lambda pool, fields: Work(), cost="nothing", source="a test", needs_model=False,
    )  # fmt: skip

    def select(self, request, *, blocks):
        broken = request.settings(self.name)["broken"]
        if broken != "no":
            return Selection((0, 0) if broken == "twice" else (0, 99), self.name)
        return self.by_score(request, [-len(row.prompt) for row in request.examples])


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    point = EntryPoint("shortest", f"{__name__}:Shortest", "foretune.selectors")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Shortest())
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group, name: [point] if (group, name) == (point.group, point.name) else [],
    )


def test_it_selects_alone_and_in_a_chain():
    pool = rows(20)
    found = select(Request(pool, 5), "shortest")
    lengths = [len(pool[i].prompt) for i in found.indices]
    assert lengths == sorted(lengths) and found.scores == tuple(-float(n) for n in lengths)
    assert set(select(Request(pool, 3), "shortest:25%+random").indices) <= set(found.indices)


def test_a_trial_may_name_it():
    assert resolve({"selection": "shortest", "keep": 0.5})["selection"] == "shortest"
    with pytest.raises(UsageError, match="unknown selector 'shorter'"):
        resolve({"selection": "shorter"})


@pytest.mark.parametrize(("broken", "complaint"), [("twice", "names a row twice"), ("outside", "outside 0")])
def test_a_broken_promise_is_said(broken, complaint):
    with pytest.raises(UsageError, match=complaint):
        select(Request(rows(4), 2, fields={"shortest.broken": broken}), "shortest")
