"""The literal registry of selectors: what each does, its settings, what it costs, where it comes from.

`foretune.selection` holds the code of each; `catalogue.selection` the language that names them. Costs count rows n,
kept rows k, target rows m, mean row length L and the model's width d.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretune.catalogue.selection import Pool, SelectorDeclaration, Work
from foretune.catalogue.space import Choice, Space, Text

Fields = Mapping[str, Any]
_MODEL = r"self|[A-Za-z0-9._/-]+"


def _nothing(pool: Pool, fields: Fields) -> Work:
    return Work()


def _losses_with_and_without(pool: Pool, fields: Fields) -> Work:
    return Work(scored_tokens=pool.rows * (pool.row_tokens + pool.answer_tokens + 1), disk_bytes=32 * pool.rows)


RANDOM = SelectorDeclaration(
    name="random",
    about="Rows drawn uniformly: what every selector has to beat.",
    family="baseline",
    space=Space(),
    work=_nothing,
    cost="nothing",
    source="the control of every study",
    needs_model=False,
)
LONGEST = SelectorDeclaration(
    name="longest",
    about="The rows with the longest answers.",
    family="baseline",
    space=Space((Choice("longest.unit", ("tokens", "characters"), "tokens", about="What length counts."),)),
    work=_nothing,
    cost="tokenising",
    source="Zhao et al. 2024, 'Long Is More for Alignment' (2402.04833)",
    needs_model=False,
)
IFD = SelectorDeclaration(
    name="ifd",
    about="Instruction-following difficulty: rows whose question helps least with the answer, but does help.",
    family="pointwise",
    space=Space(
        (
            Choice(
                "ifd.ratio", ("perplexity", "loss"), "perplexity", about="Ratio of perplexities, or of mean losses."
            ),
            Text("ifd.scorer", "self", _MODEL, about="Model that scores: self, or a smaller one by name or folder."),
        )
    ),
    work=_losses_with_and_without,
    cost="2 forward passes over every answer: O(n·L)",
    source="Li et al. 2023, 'From Quantity to Quality' (2308.12032); small scorers: Superfiltering (2402.00530)",
)

SELECTORS: dict[str, SelectorDeclaration] = {
    declared.name: declared
    for declared in (
        RANDOM,
        LONGEST,
        IFD,
    )
}
