"""The report of ``foretune select``: one HTML file that shows what was kept, offline, with nothing but its own text.

Facts come from `selection.portrait` as plain JSON; this module only shows them. It says nothing about whether training
on the rows is better: a study does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from foretune.catalogue.selection import declaration, names_in
from foretune.report.charts import canvas, figure
from foretune.report.html import POLICY, STYLE
from foretune.report.markup import Markup, join, tag
from foretune.report.scales import Scale, padded
from foretune.report.tables import Column, definitions, shown, table, words
from foretune.units import format_duration, format_share

MEASURES = {
    "coverage": "how near the nearest kept row is, over all rows",
    "redundancy": "how near the nearest other kept row is, over the kept rows",
    "relevance": "how near the nearest target row is, over the kept rows",
}
_HEIGHT = 420
_COLOURS = {"dropped": "var(--curve)", "kept": "var(--c0)", "target": "var(--c2)"}
_RADIUS = {"dropped": 2.0, "kept": 3.0, "target": 3.0}


def render(name: str, manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The whole page as HTML text."""
    style = resources.files("foretune.report").joinpath(STYLE).read_text(encoding="utf-8")
    title = f"Selection: {manifest['selection']} on {name}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    sections = [_measures(facts), _sources(facts), _map(facts), _examples(facts), _manifest(manifest)]
    body = tag(
        "body",
        tag("header", tag("p", tag("strong", "Selection report"), class_="masthead"), tag("h1", summary(facts)),
            tag("p", cost_sentence(manifest), class_="lead")),
        tag("main", *(section for section in sections if section is not None)),
    )  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


MAY_BE_LOST = (
    "What the earlier rows cover was left out, so a model trained on these may forget it (2.6 nats a token in our "
    "study): compare it with its base on them by `foretune evaluate`; some of them among these rows keep it."
)
"""Of rows that were chosen for what earlier ones lack (`selection:continual`, docs/selection.md)"""


def summary(facts: Mapping[str, Any]) -> str:
    """How much was kept, in rows and in answer tokens."""
    tokens = facts["answer_tokens"]
    return (
        f"{facts['kept']:,} of {facts['rows']:,} rows kept ({format_share(facts['row_share'])}), "
        f"with {format_share(tokens['kept_share'])} of the answer tokens"
    )


def cost_sentence(manifest: Mapping[str, Any]) -> str:
    """What choosing took, and what could not be chosen."""
    counted = manifest["counted"]
    seconds = manifest["seconds"]
    told = [f"Choosing takes {format_duration(seconds) if seconds >= 1 else 'less than a second'}."]
    if counted.get("blocks_reused"):
        blocks, saved = counted["blocks_reused"], format_duration(counted.get("reused_s", 0.0))
        told.append(f"{blocks:,} blocks of scores, {saved} of it, were found from before.")
    if counted.get("without_answer"):
        told.append(f"{counted['without_answer']} rows without an answer were set aside.")
    if manifest.get("cut_rows"):
        told.append(f"{manifest['cut_rows']} rows were cut to fit the context, the first at {manifest['first_cut']}.")
    looks = any(declaration(name).uses_previous for name in names_in(manifest["selection"]))
    if looks and manifest.get("previous_rows"):
        told.append(MAY_BE_LOST)
    return " ".join(told)


def measure_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """(measure, kept, random) as text, lengths included; shared by page and terminal."""
    tokens = facts["answer_tokens"]
    rows = [["mean answer tokens", f"{tokens['kept_mean']:.1f}", f"{tokens['random_mean']:.1f}"]]
    for name in MEASURES:
        if name in facts:
            one = facts[name]
            rows.append([name, f"{one['kept']:.3f}", f"{one['random']:.3f} ± {one['random_sd']:.3f}"])
    return rows


def _section(title: str, *body: Markup | None) -> Markup:
    return tag("section", tag("h2", title), *body)


def _measures(facts: Mapping[str, Any]) -> Markup:
    columns = [Column("measure"), Column("kept", number=True), Column("random rows", number=True)]
    about = definitions((name, said) for name, said in MEASURES.items() if name in facts)
    note = tag("p", f"Similarity is the cosine of TF-IDF vectors of the texts, over {facts['compared_rows']:,} rows.")
    return _section("Against random rows", table("Measures", columns, measure_rows(facts)), about, note)


def _sources(facts: Mapping[str, Any]) -> Markup | None:
    if not facts["sources"]:
        return None
    columns = [Column("source"), Column("rows", True), Column("kept", True), Column("share kept", True)]
    rows = [
        [name, f"{one['rows']:,}", f"{one['kept']:,}", format_share(one["kept"] / one["rows"])]
        for name, one in facts["sources"].items()
    ]
    return _section("By source", table("Sources", columns, rows))


def _map(facts: Mapping[str, Any]) -> Markup | None:
    dots = facts.get("map", {}).get("dots")
    if not dots:
        return None
    across, down = padded([dot[0] for dot in dots]), padded([dot[1] for dot in dots])

    def draw(width: int) -> Markup:
        x = Scale(*across, 8.0, width - 8.0)
        y = Scale(*down, _HEIGHT - 8.0, 8.0)
        ordered = sorted(dots, key=lambda dot: list(_COLOURS).index(dot[2]))
        points = [
            tag("circle", cx=x.at(dot[0]), cy=y.at(dot[1]), r=_RADIUS[dot[2]], fill=_COLOURS[dot[2]], opacity="0.75")
            for dot in ordered
        ]
        return canvas(width, _HEIGHT, "Rows on a plane, those kept marked", *points)

    legend = join(
        (tag("span", f"● {name}  ", style=f"color:{colour}") for name, colour in _COLOURS.items() if _has(dots, name)),
    )
    sampled = " A sample of the rows is shown." if facts["map"]["sampled"] else ""
    said = "The plane of the two leading singular vectors of the texts; distances are rough." + sampled
    caption = join([tag("div", legend), said])
    return _section("Map of the rows", figure(draw, caption))


def _has(dots: Sequence[Sequence[Any]], name: str) -> bool:
    return any(dot[2] == name for dot in dots)


def _examples(facts: Mapping[str, Any]) -> Markup:
    body: list[Markup] = []
    for title, key in (("Kept first", "kept"), ("Dropped, drawn at random", "dropped")):
        rows = facts["examples"][key]
        if not rows:
            continue
        places = [one["place"] for one in rows]
        told = "" not in places and len(set(places)) == len(places)  # all rows of a JSON list stand in one line
        columns = [Column("row"), Column("question"), Column("answer")]
        cells = [
            [one["place"] if told else f"row {one['row'] + 1}", one["prompt"], one["answer"]] for one in rows
        ]  # fmt: skip
        if any(one["score"] is not None for one in rows):
            columns.append(Column("score", True))
            cells = [
                [*cell, "" if one["score"] is None else f"{one['score']:.4g}"]
                for cell, one in zip(cells, rows, strict=True)
            ]
        body += [tag("h3", title), table(title, columns, cells)]
    return _section("Examples", *body)


def _manifest(manifest: Mapping[str, Any]) -> Markup:
    """Every fact that is not zero; what selectors counted stands under their names."""
    pairs = [(words(key), _told(value)) for key, value in manifest.items() if key != "counted"]
    pairs += [(words(key), _told(value)) for key, value in manifest["counted"].items()]
    return _section("How it was made", tag("div", definitions(pairs), class_="profile"))


def _told(value: Any) -> str | None:
    """A value in a line; None for what says nothing."""
    if value in (None, {}, [], 0):
        return None
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {_told(item) or shown(item)}" for key, item in value.items())
    return shown(value)
