"""``report.html``: one file that tells the whole run, readable offline, on a phone, on paper and with a screen reader.

There is no script and no reference to anything outside the file, and its content security policy forbids both. The
verdict comes first; what supports it follows in the order in which a careful reader would ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from foretune import files
from foretune.report import evidence, material
from foretune.report.markup import Markup, join, link_id, tag
from foretune.report.record import RunRecord
from foretune.report.tables import Section
from foretune.report.wording import NOT_MEASURED, budget_text, outcome, qualifications, verdict
from foretune.units import format_count, format_share

REPORT = "report.html"
STYLE = "style.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_BADGES = {
    "better": "Better than the base model",
    "worse": "Worse than the base model",
    "no evidence": "No evidence of improvement",
    "not compared": "Not compared",
    "failed": "No usable result",
}


def render(record: RunRecord) -> str:
    """The whole page as HTML text."""
    sections = [
        section
        for section in (
            evidence.comparison(record),
            evidence.curves(record),
            evidence.budget(record),
            evidence.forecast(record),
            material.examples(record),
            material.settings(record),
            material.data(record),
            material.trials(record),
            material.usage(record),
            material.environment(record),
        )
        if section is not None
    ]
    return document(
        f"{record.id}: {_BADGES[outcome(record)].lower()}",
        join([_masthead(record), _verdict(record), _facts(record)]),
        sections,
        _footer(record),
        record.foretune_version,
    )


def document(title: str, header: Markup, sections: Sequence[Section], footer: Markup, version: str) -> str:
    """A whole page in the style of the reports: no script, nothing from outside the file."""
    style = resources.files(__package__).joinpath(STYLE).read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"Foretune {version}"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", class_="skip", href="#results"),
        tag("header", header),
        _contents(sections),
        tag("main", *map(_section, sections), id="results"),
        tag("footer", footer),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def write_report(folder: Path, record: RunRecord) -> Path:
    """Render ``record`` to ``report.html`` in the run folder; returns its path. Raises `OutputError`."""
    path = folder / REPORT
    files.write_text(path, render(record))
    return path


def _masthead(record: RunRecord) -> Markup:
    day = record.finished[:10]
    return tag(
        "p",
        tag("strong", "Fine-tuning report"),
        tag("span", record.model.source, class_="bit"),
        tag("span", f"on {record.data.name}", class_="bit"),
        tag("time", day, datetime=record.finished, class_="bit"),
        class_="masthead",
    )


def _verdict(record: RunRecord) -> Markup:
    result = outcome(record)
    beside = qualifications(record)
    return join(
        [
            tag("p", _BADGES[result], class_=f"badge {link_id(result)}"),
            tag("h1", verdict(record)),
            tag("ul", *(tag("li", sentence) for sentence in beside), class_="beside") if beside else None,
            _warnings(record.warnings),
        ]
    )


def _warnings(warnings: tuple[str, ...]) -> Markup | None:
    if not warnings:
        return None
    items = [tag("li", warning) for warning in warnings]
    return tag("div", tag("strong", "Please note"), tag("ul", *items), class_="warnings", role="note")


def _facts(record: RunRecord) -> Markup:
    winner = record.winner
    trainable = winner.trainable_parameters if winner else None
    share = format_share(trainable / record.model.parameters) if trainable and record.model.parameters else ""
    failed = sum(trial.failed for trial in record.trials)
    rows = record.data.rows
    facts = [
        ("Budget used", *_used(record)),
        ("Trials", f"{len(record.trials)}", f"{failed} failed" if failed else "none failed"),
        ("Trained weights", format_count(trainable) if trainable else NOT_MEASURED, share and f"{share} of the model"),
        (
            "Rows",
            f"{rows.get('train', 0):,} to train",
            f"{rows.get('validation', 0):,} validation, {rows.get('test', 0):,} test",
        ),
    ]
    cells = [tag("div", tag("dt", name), tag("dd", value, tag("small", note))) for name, value, note in facts]
    return tag("dl", *cells, class_="facts")


def _used(record: RunRecord) -> tuple[str, str]:
    used, _, total = budget_text(record.budget).partition(" of ")
    return used, f"of {total}"


def _contents(sections: Sequence[Section]) -> Markup:
    links = [tag("a", section.title, href=f"#{link_id(section.title)}") for section in sections]
    return tag("nav", join(links, between=" "), aria_label="Contents")


def _section(section: Section) -> Markup:
    name = link_id(section.title)
    lead = tag("p", section.lead, class_="lead") if section.lead else None
    return tag("section", tag("h2", section.title, id=f"{name}-title"), lead, *section.body, id=name)


def _footer(record: RunRecord) -> Markup:
    command = tag("p", "Made by ", tag("code", record.command)) if record.command else None
    seeds = ", ".join(f"{name} {seed}" for name, seed in record.seeds.items())
    line = f"Foretune {record.foretune_version} · run {record.id}" + (f" · seeds: {seeds}" if seeds else "")
    return join([command, tag("p", line)])
