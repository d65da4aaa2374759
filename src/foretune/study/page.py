"""``report.html`` of a study: one file with tables and charts, in the style of a fit's report, without scripts.

What was found comes first, then every comparison, then what it rests on: charts, learning rates, runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foretune import __version__
from foretune.report.charts import figure
from foretune.report.html import document
from foretune.report.markup import Markup, join, tag
from foretune.report.tables import Column, Section, folded, table
from foretune.report.xy import Chart, legend, xy_chart
from foretune.study import plots
from foretune.study.costs import HEADING as COSTS
from foretune.study.effects import Effect
from foretune.study.findings import findings
from foretune.study.gaps import by_method, gaps, reference_arm
from foretune.study.gates import HEADING as GATES
from foretune.study.gates import gate_rows
from foretune.study.margins import HEADING as STANDING
from foretune.study.margins import standing_tables, standings
from foretune.study.outputs import Results
from foretune.study.results import mixed
from foretune.study.rules import reference_is_full
from foretune.study.summary import Summary
from foretune.study.tables import HEADING, beside_tables, cost_tables, relative, remarks, tables, tested
from foretune.units import format_duration

MARKS = {"replicated": "better", "contradicted": "worse"}


def page(found: Results) -> str:
    """The whole page as HTML text."""
    sections = [
        section
        for section in (
            *(_findings(found, name) for name in found.seen),
            _rules(found),
            _comparisons(found.summary),
            *(_relative(found, name) for name in found.seen),
            _standings(found),
            _gates(found),
            *(section for name in found.seen for section in _charts(found, name)),
            _rates(found),
            _effects(found),
            _notes(found.summary),
        )
        if section is not None
    ]
    summary = found.summary
    title = f"Study {summary.name}"
    return document(title, _header(summary), sections, _footer(found), __version__)


def _header(summary: Summary) -> Markup:
    state = "Finished" if summary.complete else f"{summary.runs} of {summary.expected} runs"
    facts = [
        ("Runs", f"{summary.runs} of {summary.expected}", f"{len(summary.failed)} failed"),
        ("Models", str(len(summary.models)), ", ".join(summary.models)),
        ("Tasks", str(len({block.task for block in summary.blocks})), f"outcome: {summary.primary}"),
        ("Time", format_duration(summary.used_s), f"{summary.train_hours:.2g} run-hours"),
    ]
    cells = [tag("div", tag("dt", name), tag("dd", value, tag("small", note))) for name, value, note in facts]
    return join(
        [
            tag("p", tag("strong", "Study"), tag("span", summary.name, class_="bit"), class_="masthead"),
            tag("p", state, class_="badge"),
            tag("h1", summary.about or summary.name),
            tag("ul", tag("li", f"Learning rates: {summary.rates}."), class_="beside"),
            tag("dl", *cells, class_="facts"),
        ]
    )


def _footer(found: Results) -> Markup:
    root = found.material.folder.root.name
    return tag("p", f"Foretune {__version__} · made again by ", tag("code", f"foretune study report {root}"))


def _findings(found: Results, tested_on: str) -> Section | None:
    seen = found.seen[tested_on]
    judged = findings(found.material.grid, seen.lines, seen.ruling, seen.base)
    if not judged or not any("distance" in entry["covariates"] for entry in seen.lines):
        return None
    rows = [
        [f"({one.number})", one.claim, tag("span", one.judgement, class_=f"mark {MARKS.get(one.judgement, '')}"),
         one.evidence]
        for one in judged
    ]  # fmt: skip
    lead = "Findings of Üstün & Cooper Stickland (2022, arXiv 2205.11277), judged at the scale of this grid."
    columns = [Column("finding"), Column("claim"), Column("here"), Column("evidence")]
    return Section(f"Findings{tested(tested_on)}", lead, (table("Published findings", columns, rows),))


def _rules(found: Results) -> Section:
    ruled = found.ruling
    made = [
        [rule.id, rule.statement, _interval(rule.measured), ", ".join(f"{k} = {v}" for k, v in rule.advice.items())]
        for rule in ruled.rules
    ]
    columns = [Column("rule"), Column("statement"), Column("estimate"), Column("advice")]
    body = [
        table("Rules", columns, made) if made else tag("p", "No rule: nothing that was tried is resolved."),
        _list("What this grid does not resolve", ruled.unresolved),
    ]
    lead = (
        "A rule needs an interval that excludes zero and a p-value that holds after Holm's correction over everything "
        "that was tried. They are in priors.yaml, with their scope."
    )
    return Section("Rules", lead, tuple(body))


def _interval(measured: object) -> str:
    value, low, high, unit = (getattr(measured, name) for name in ("value", "low", "high", "unit"))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}] {unit}"


def _list(summary: str, items: Iterable[str]) -> Markup | None:
    listed = [tag("li", item) for item in items]
    return folded(f"{summary} ({len(listed)})", tag("ul", *listed, class_="items")) if listed else None


def _comparisons(summary: Summary) -> Section:
    made = [(caption, _compared(caption, rows)) for caption, rows in tables(summary)]
    over = [(caption, one) for caption, one in made if caption.startswith("over all tasks")]
    each = [(caption, one) for caption, one in made if not caption.startswith("over all tasks")]
    few = len(each) <= 4
    body = [part for caption, one in over for part in (tag("h3", caption), one)]
    for caption, one in each:
        body += [tag("h3", caption), one] if few else [folded(caption, one)]
    costs = [Column(name, number=place > 0) for place, name in enumerate(COSTS)]
    for caption, heading, rows in beside_tables(summary):
        others = [Column(name, number=place > 0) for place, name in enumerate(heading)]
        body.append(folded(caption, table(caption, others, rows)))
    body += [folded(caption, table(caption, costs, rows)) for caption, rows in cost_tables(summary)]
    controls = " or ".join(dict.fromkeys([summary.control, *(block.control for block in summary.blocks)]))
    lead = f"Every arm against {controls}, in pairs of the same rows, order and seed."
    return Section("Comparisons", lead, tuple(body))


def _compared(caption: str, rows: Sequence[Sequence[str]]) -> Markup:
    """A table of `tables`, as narrow as the page: the verdict beside the arm, an interval below its estimate."""
    arm, pairs, mean, difference, seeds, test_rows, wins, p_value, verdict = HEADING
    numbers = (p_value, _below(difference, seeds), test_rows, mean, wins, pairs)
    columns = [Column(arm), Column(verdict), *(Column(name, number=True) for name in numbers)]
    body = []
    for row in rows:
        found = dict(zip(HEADING, row, strict=True))
        estimate = _below(found[difference], found[seeds])
        body.append([found[arm], _verdict(found[verdict]), found[p_value], estimate,
                     *(found[name] for name in (test_rows, mean, wins, pairs))])  # fmt: skip
    return table(caption, columns, body)


def _below(value: str, note: str) -> Markup:
    return join([value, tag("br"), tag("small", note)]) if note else join([value])


def _verdict(claim: str) -> Markup:
    """The verdict in a word or two; the whole claim when pointed at, and in table.md."""
    word = claim.partition(" (")[0]
    kind = word.partition(" ")[0] if word.startswith(("better", "worse")) else ""
    return tag("span", word, title=claim if claim != word else None, class_=f"mark {kind}".strip())


def _relative(found: Results, tested_on: str) -> Section | None:
    heading, rows = relative(found.material.grid, found.seen[tested_on].lines, found.seen[tested_on].base)
    if not rows:
        return None
    columns = [Column(name, number=place > 0) for place, name in enumerate(heading)]
    lead = "100 % is the reference arm, 0 % the untouched base: the share of its gain that an arm reaches, by task."
    return Section(
        f"Relative to the reference{tested(tested_on)}", lead, (table("Relative to the reference", columns, rows),)
    )


def _standings(found: Results) -> Section | None:
    body = [
        table(caption, [Column(name, number=1 < place < 5) for place, name in enumerate(STANDING)], rows)
        for caption, rows in standing_tables(standings(found.material))
    ]
    lead = "The margin was fixed in the grid; as good means that the whole interval lies below it."
    return Section("As good as the control?", lead, tuple(body)) if body else None


def _gates(found: Results) -> Section | None:
    rows = gate_rows(found.material.lines)
    columns = [Column(name, number=place > 1) for place, name in enumerate(GATES)]
    lead = "How far the gates of the edits stood open on the test rows, from 0 to 1."
    return Section("Gates", lead, (table("Gates", columns, rows),)) if rows else None


def _drawn(chart: Chart, caption: str) -> Markup | None:
    draw = xy_chart(chart)
    return None if draw is None else figure(draw, join([caption, tag("br"), legend(chart)]))


def _charts(found: Results, tested_on: str) -> list[Section]:
    material, ruled, where = found.material, found.seen[tested_on].ruling, tested(tested_on)
    lines = list(found.seen[tested_on].lines)
    if not lines or mixed(lines):
        return []
    sections = []
    budgets = [_drawn(chart, f"{name}: means over tasks and seeds") for name, chart in plots.budget_charts(lines)]
    if budgets:
        lead = "The trained share on a logarithmic axis; full tuning as a band."
        sections.append(Section(f"Score by budget{where}", lead, tuple(budgets)))
    reference = reference_arm(material.grid)
    if reference_is_full(material.grid, reference):
        measured = gaps(lines, reference)
        distances = [
            _drawn(chart, f"{method}: a dot is a language pair, lines are the fitted model")
            for method in by_method(measured)
            if (chart := plots.distance_chart(method, measured, ruled.fits.get(method), str(lines[0]["primary"])))
        ]
        if distances:
            sections.append(Section(f"Gap by language distance{where}", "Above zero the arm is worse than full tuning.",
                                    tuple(distances)))  # fmt: skip
    sizes = [_drawn(chart, f"{name}: means over tasks and seeds") for name, chart in
             plots.size_charts(lines, ruled.crossings)]  # fmt: skip
    if sizes:
        lead = "Within the shaded range one overtakes the other (Fieller's interval); without it, nowhere resolved."
        sections.append(Section(f"Score by training rows{where}", lead, tuple(sizes)))
    parents = plots.parent_chart(lines)
    if parents is not None:
        sections.append(Section(f"Parents{where}", "The size of the model against its score, a line an arm.",
                                (_drawn(parents, "means over tasks, sizes and seeds"),)))  # fmt: skip
    return sections


def _rates(found: Results) -> Section | None:
    charts = [_drawn(chart, name) for name, chart in plots.rate_charts(found.material.swept)]
    if not charts:
        return None
    return Section("Learning rates", f"The sweep: {found.summary.rates}.", tuple(charts))


def _effects(found: Results) -> Section | None:
    effects = found.ruling.effects
    if not effects:
        return None
    columns = [Column("statement"), *(Column(name, number=True) for name in ("effect", "95 %", "p (Holm)", "units",
                                                                             "detectable"))]  # fmt: skip
    rows = [[name, *_effect(effect)] for name, effect in effects.items()]
    checks = [
        f"{method}: with token fertility held equal the product of share and distance is {fit.adjusted.value:+.3g} "
        f"[{fit.adjusted.low:+.3g}, {fit.adjusted.high:+.3g}]"
        for method, fit in found.ruling.fits.items()
        if fit.adjusted is not None
    ]
    return Section("Everything that was tried", "All statements, resolved or not, as Holm's correction counts them.",
                   (table("Effects", columns, rows), _list("Checks", checks)))  # fmt: skip


def _effect(effect: Effect) -> list[str]:
    return [
        f"{effect.value:+.3g}", f"{effect.low:+.3g} to {effect.high:+.3g}", f"{effect.p_holm:.3f}", str(effect.units),
        f"{effect.detectable:.2g}",
    ]  # fmt: skip


def _notes(summary: Summary) -> Section:
    return Section("Notes", "", (tag("ul", *(tag("li", line) for line in remarks(summary)), class_="items"),))
