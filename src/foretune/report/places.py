"""The picture of a rates file: a cell for every place, a row for every layer, darker where more is dropped."""

from __future__ import annotations

from importlib import resources

from foretune.regularization.places.rates import PlaceRate, RatesFile, by_layer
from foretune.report.charts import canvas, text
from foretune.report.html import POLICY, STYLE
from foretune.report.markup import Markup, join, tag

KINDS = {
    "embedding": "embeddings",
    "attention": "attention probabilities",
    "attention_output": "attention output",
    "mlp_output": "feed-forward output",
}
LEFT, CELL, ROW, TOP = 150.0, 150.0, 24.0, 34.0  # pixels
FAINTEST = 0.06
"""Opacity of a cell that drops nothing, so that it is still seen to be a place."""


def picture(rates: RatesFile) -> Markup:
    """The places of a model as an SVG image; its numbers stand in the cells."""
    kinds = [kind for kind in KINDS if any(place.kind == kind for place in rates.places)]
    most = max(place.rate for place in rates.places) or 1.0
    pieces = [text(LEFT + CELL * (n + 0.5), 20, KINDS[kind], "axis-title", "middle") for n, kind in enumerate(kinds)]
    layers = by_layer(rates)
    for row, (label, places) in enumerate(layers):
        y = TOP + ROW * row
        pieces.append(text(LEFT - 10, y + 16, label, "name", "end"))
        for place in _in_order(places, kinds):
            pieces.append(_cell(place, LEFT + CELL * kinds.index(place.kind), y, most, rates.aggregation))
    label = f"Dropout rates of {rates.model}, {rates.low:g} to {rates.high:g}, by layer and kind of place"
    return canvas(LEFT + CELL * len(kinds) + 6, TOP + ROW * len(layers) + 6, label, *pieces)


def _in_order(places: object, kinds: list[str]) -> list[PlaceRate]:
    return sorted(places, key=lambda place: kinds.index(place.kind))  # type: ignore[call-overload, no-any-return]


def _cell(place: PlaceRate, x: float, y: float, most: float, aggregation: str) -> Markup:
    opacity = FAINTEST + (1 - FAINTEST) * place.rate / most
    about = f"{place.name}: rate {place.rate:.4f}, Fisher {place.scores[aggregation]:.3g}"
    box = tag(
        "rect", x=x + 2, y=y + 2, width=CELL - 4, height=ROW - 4, rx=3, fill="currentColor",
        fill_opacity=round(opacity * 0.7, 3),
    )  # fmt: skip
    return tag("g", box, text(x + CELL / 2, y + 16, f"{place.rate:.3f}", "value", "middle"), tag("title", about),
               class_="winner")  # fmt: skip


def page(rates: RatesFile) -> str:
    """A page of its own with the picture and the table; no script, nothing from outside."""
    style = resources.files(__package__).joinpath(STYLE).read_text(encoding="utf-8")
    heading = ["place", "kind", "layer", "Fisher", "rate"]
    rows = [
        tag("tr", *(tag("td", cell) for cell in (
            place.name, KINDS[place.kind], "" if place.layer is None else place.layer,
            f"{place.scores[rates.aggregation]:.4g}", f"{place.rate:.4f}",
        )))
        for place in rates.places
    ]  # fmt: skip
    facts = (
        f"{rates.variant}, {rates.samples} samples of {rates.text}; {rates.schedule} from {rates.high:g} to "
        f"{rates.low:g} by {rates.aggregation}. Weights {rates.weights}."
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Dropout rates of {rates.model}"),
        tag("style", Markup(style)),
    )
    table = tag("table", tag("thead", tag("tr", *(tag("th", name) for name in heading))), tag("tbody", join(rows)))
    body = tag(
        "body",
        tag(
            "main", tag("h1", f"Dropout rates of {rates.model}"), tag("p", facts), tag("figure", picture(rates)), table
        ),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'
