"""Fact paraphrases that ship with Foretune: one fact, ten phrasings to train on, one to validate, one to test.

The protocol is that of Strangmann et al. 2024 (2411.01195): what is tested is whether a fact was learnt, in words that
were not trained on. ``facts.jsonl`` is the fact set of the demo; ``fact-families.jsonl`` adds further kinds of facts.
Each kind is a task of its own (``facts-currency-code``). ``scripts/make_facts.py`` writes both files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import FACT_FAMILIES
from foretune.packages import Progress

FACTS = Path(__file__).parent / "facts.jsonl"
MORE_FACTS = Path(__file__).parent / "fact-families.jsonl"


def build(folder: Path, progress: Progress) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of every kind of fact."""
    by_family: dict[str, list[dict[str, Any]]] = {f"facts-{family}": [] for family in FACT_FAMILIES}
    for path in (FACTS, MORE_FACTS):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            by_family[f"facts-{row['group'].partition(':')[0]}"].append(row)
    return by_family
