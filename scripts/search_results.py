"""What replays found, written into docs/search.md: tables with intervals over tasks, and the bars that were aimed at.

    python scripts/search_results.py NAME=FOLDER… [--docs]

A folder is the output of ``foretune study run search:replay`` (or of another replay); NAME is what stands above its
table. Without ``--docs`` the Markdown is printed. Everything comes from ``summary.json``; nothing is chosen by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from foretune.files import read_json, write_text
from foretune.report.text import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "search.md"
START, END = "<!-- replay:start -->", "<!-- replay:end -->"
SHARES = (0.1, 0.2, 0.4)
OURS = "transfer"
BARS = {0.1: 0.05, 0.2: 0.03, 0.4: 0.015}
"""Regret above the noise floor that was aimed at."""
FLIPPED = 0.01
COVERED = (0.85, 0.95)
COST = (0.35, 0.12)
"""Relative error of forecast seconds before the first run, and after one"""


def main() -> int:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replays", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--docs", action="store_true", help="write into docs/search.md")
    arguments = parser.parse_args()
    parts = [f"Written by `scripts/search_results.py` on {date.today().isoformat()}."]
    for item in arguments.replays:
        name, _, folder = item.partition("=")
        parts.append("\n".join(section(name, read_json(Path(folder) / "summary.json"))))
    text = "\n\n".join(parts)
    if not arguments.docs:
        print(text)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    write_text(PAGE, f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")
    return 0


def section(name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    """The table of one replay and its bars, for one worker without asking time where that was run."""
    setting = "W=1" if "W=1" in summary["settings"] else next(iter(summary["settings"]))
    found, places = summary["settings"][setting], [summary["shares"].index(share) for share in SHARES]
    floor = summary["noise_floor"]
    yield f"### {name}"
    yield ""
    noise = "no seed repeated" if floor is None else f"another seed moves the regret by {floor:.2f} (median)"
    yield (f"{summary['tasks']} tasks, {summary['configurations']} configurations, {summary['scored_by_test']} tasks "
           f"scored on test rows of their own; {noise}. {setting}; {summary['reason']}.")  # fmt: skip
    yield ""
    rows = []
    for who in sorted(found, key=lambda who: found[who]["at"][places[1]][0]):
        cells = [found[who]["first"], *(found[who]["at"][place] for place in places), found[who]["area"]]
        paired = [text(found[who]["ours_minus"][place]) if who != OURS else "" for place in places]
        rows.append([who, *map(text, cells), *paired])
    at = [f"{share:.0%} of B" for share in SHARES]
    ours = [f"{OURS} minus it, {share:.0%}" for share in SHARES]
    yield markdown_table(["contestant", "first whole run", *at, "area", *ours], rows)
    yield ""
    yield from bars(found, places, floor or 0.0)


def bars(found: Mapping[str, Any], places: list[int], floor: float) -> Iterator[str]:
    """What was aimed at, and what came of it."""
    if OURS not in found:
        return
    ours = found[OURS]
    if "portfolio-1" in found:
        one, other = ours["first"][0], found["portfolio-1"]["first"][0]
        yield f"- Regret after the first run, against that of the best single configuration: {one:.2f}, {other:.2f}."
    for share, place in zip(SHARES, places, strict=True):
        above = max(0.0, ours["at"][place][0] - floor)
        yield f"- Above the noise floor at {share:.0%} of B: {above:.3f} (aim {BARS[share]})."
    if "portfolio-halving" in found and found["portfolio-halving"]["against_ours"]:
        wins, ties, losses = found["portfolio-halving"]["against_ours"]
        yield f"- Against portfolio and halving at 20 %: {wins} wins, {ties} ties, {losses} losses (aim: 60 % won)."
    if "flipped-sign" in found and "no-transfer" in found:
        more = found["flipped-sign"]["half"][0] - found["no-transfer"]["half"][0]
        yield f"- Experience of flipped sign against none, at 50 %: {more:+.3f} (aim at most +{FLIPPED})."
    for who in ("random", "dehb", "optuna-tpe", "quick-tune"):
        if who in found:
            takes = found[who]["ours_takes"]
            said = "never reached" if takes is None else f"reached at {takes:.0%} of the budget"
            yield f"- Final regret of {who}: {said}."
    if ours["covered"][0] is not None:
        aim = f"{COVERED[0]:.0%} to {COVERED[1]:.0%}"
        yield f"- 90 % intervals before any run hold {ours['covered'][0]:.0%} of whole runs (aim {aim})."
    first, later = ours["cost_error"]
    if first is not None and later is not None:
        aim = f"{COST[0]:.0%}, {COST[1]:.0%}"
        yield f"- Forecast seconds off by {first:.0%} before the first run, by {later:.0%} after it (aim {aim})."


def text(values: list[float | None]) -> str:
    """``0.12 [0.08, 0.17]``."""
    mean, low, high = values
    return "" if mean is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
