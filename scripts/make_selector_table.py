"""Write the table of selectors in ``docs/selection.md`` from the catalogue.

python scripts/make_selector_table.py            # writes the table
python scripts/make_selector_table.py --check    # exits with 1 when the committed page differs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foretune.catalogue.selection import SelectorDeclaration
from foretune.catalogue.selectors import SELECTORS
from foretune.files import write_text
from foretune.report.text import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "selection.md"
START, END = "<!-- selectors:start -->", "<!-- selectors:end -->"
HEADING = ("selector", "what it keeps", "needs", "when", "cost", "source")
MOMENTS = {"before": "before", "during": "while training", "either": "before, or while training", "filter": "both"}


def row(declared: SelectorDeclaration) -> list[str]:
    """One line of the table."""
    needs = [word for word, needed in (("model", declared.needs_model), ("target", declared.needs_target)) if needed]
    return [f"`{declared.name}`", declared.about, ", ".join(needs) or "–", MOMENTS[declared.moment], declared.cost,
            declared.source]  # fmt: skip


def page(text: str) -> str:
    """``text`` with the table between the marks made anew."""
    table = markdown_table(HEADING, map(row, SELECTORS.values()))
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    text = PAGE.read_text(encoding="utf-8")
    made = page(text)
    if parser.parse_args().check:
        if made != text:
            print(f"{PAGE} is not what the catalogue says: run python scripts/make_selector_table.py", file=sys.stderr)
        return int(made != text)
    write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
