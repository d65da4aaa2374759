"""Arms against their control over test rows: a paired bootstrap that keeps the runs of all seeds of a row together.

Seeds answer whether a difference repeats when training is repeated; rows answer whether it repeats on other test rows.
Both are needed for a claim about the task, so each block's differences carry both. One test covers all seeds of a
block: a test row is drawn with its answers from every seed (`evaluation.compare` with rows as groups), and the
outcome is computed again on every draw (corpus chrF and BLEU as themselves, as sacreBLEU's paired test does).

What was compared is kept in ``row-tests.json``, so that a report of an unchanged study computes nothing again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from foretune.evaluation.base import Direction
from foretune.evaluation.compare import Comparison, compare
from foretune.files import fingerprint, read_json, write_json
from foretune.study.results import Line, block_of
from foretune.study.row_scores import RowScores
from foretune.study.statistics import Block

FILE = "row-tests.json"
RowTests = Mapping[tuple[Block, str], Comparison]
"""By block and arm"""


def row_tests(
    lines: Sequence[Line], families: Mapping[str, Collection[str]], root: Path
) -> dict[tuple[Block, str], Comparison]:
    """Every arm against its control in every block where both have scores of the same seeds.

    ``families`` holds the arms of every control (`GridSpec.families`). ``lines`` are `results.views`: every test set is
    a block of its own. ``root`` is the study's folder, which keeps what was compared. Runs whose row scores were lost
    have no such tests.
    """
    path = root / FILE
    known: dict[str, dict[str, object]] = read_json(path) if path.is_file() else {}
    runs = {(block_of(e), e["arm"], e["seed"]): e for e in lines if e["scores"].get("test")}
    scores = RowScores(root)
    found: dict[tuple[Block, str], Comparison] = {}
    fresh: dict[str, dict[str, object]] = {}
    against = {arm: control for control, arms in families.items() for arm in arms if arm != control}
    for block, arm in dict.fromkeys((block, arm) for block, arm, _ in runs if arm in against):
        control = against[arm]
        seeds = [s for b, a, s in runs if (b, a) == (block, arm) and (block, control, s) in runs]
        pairs = [(runs[block, arm, seed], runs[block, control, seed]) for seed in seeds]
        if not pairs:
            continue
        key = fingerprint([block[-1], [[a["cell"], b["cell"]] for a, b in pairs]])
        if key in known:
            fresh[key] = known[key]
        elif all(scores.keep(entry) for pair in pairs for entry in pair):
            fresh[key] = _compared(pairs, scores).to_json()
        else:
            continue
        found[block, arm] = Comparison(**fresh[key])  # type: ignore[arg-type]
    if fresh != known:
        write_json(path, fresh)
    return found


def _compared(pairs: Sequence[tuple[Line, Line]], scores: RowScores) -> Comparison:
    (a, groups), (b, _) = (scores.of([pair[side] for pair in pairs]) for side in (0, 1))
    direction: Direction = pairs[0][0]["direction"]
    return compare(a, b, kind="bootstrap", direction=direction, groups=groups)
