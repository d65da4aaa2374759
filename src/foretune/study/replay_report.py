"""What a replay found: means over tasks with intervals, wins, curves; as JSON, Markdown and one page of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foretune import __version__
from foretune.files import write_text
from foretune.report.charts import figure
from foretune.report.html import document
from foretune.report.markup import Markup, join, tag
from foretune.report.tables import Column, Section, table
from foretune.report.text import markdown_table
from foretune.report.xy import Chart, Dot, Series, legend, xy_chart
from foretune.search.replay.regret import FIRST_SHARE, GRID, SHARES, Interval, over_tasks
from foretune.search.replay.world import World

Lines = Sequence[Mapping[str, Any]]
OURS = "transfer"
TIE = 0.01
HALF = round((GRID - 1) * (1 - math.log(0.5) / math.log(FIRST_SHARE)))
"""The point of a regret curve at half the budget"""
CURVES = 8
"""Curves in the chart: ours and the best others at a fifth of the budget."""


def summarised(lines: Lines, worlds: Mapping[str, World], reason: str) -> dict[str, Any]:
    """The JSON summary: settings first, then every contestant under every setting."""
    noise = [world.noise for world in worlds.values() if not math.isnan(world.noise)]
    settings: dict[str, dict[str, Any]] = {}
    for workers, asking in sorted({(line["workers"], line["asking_time"]) for line in lines}):
        own = [line for line in lines if (line["workers"], line["asking_time"]) == (workers, asking)]
        name = f"W={workers}{', asking takes time' if asking else ''}"
        settings[name] = {who: _contestant(own, who) for who in dict.fromkeys(line["contestant"] for line in own)}
    first = next(iter(settings.values()), {})
    return {
        "reason": reason,
        "tasks": len(worlds),
        "configurations": sum(len(world.entries) for world in worlds.values()),
        "scored_by_test": sum(world.has_test for world in worlds.values()),
        "noise_floor": float(np.median(noise)) if noise else None,
        "shares": list(SHARES),
        "regret": {who: {f"{share:.0%}": value["at"][k][0] for k, share in enumerate(SHARES)}
                   for who, value in first.items()},
        "settings": settings,
    }  # fmt: skip


def _contestant(lines: Lines, who: str) -> dict[str, Any]:
    own = [line for line in lines if line["contestant"] == who]
    ours = [line for line in lines if line["contestant"] == OURS]
    at = [over_tasks(_by_task(own, lambda score, k=k: score["at"][k])) for k in range(len(SHARES))]
    tasks = {line["task"] for line in own}
    curve = np.mean([line["score"]["curve"] for line in own], axis=0)
    return {
        "at": [interval.to_json() for interval in at],
        "first": over_tasks(_by_task(own, lambda score: _number(score["first"]))).to_json(),
        "area": over_tasks(_by_task(own, lambda score: float(np.mean(score["curve"])))).to_json(),
        "asked_s": round(float(np.mean([line["score"]["asked_s"] for line in own])), 3),
        "cost_error": [_middle([_number(line["score"]["cost_errors"][k]) for line in own]) for k in (0, 1)],
        "covered": over_tasks(_by_task(own, lambda score: _number(score.get("covered")))).to_json(),
        "half": over_tasks(_by_task(own, lambda score: score["curve"][HALF])).to_json(),
        "against_ours": _wins(ours, own),
        "ours_minus": [over_tasks(_ours_minus(ours, own, k)).to_json() for k in range(len(SHARES))],
        "searches": len(own),
        "ours_takes": _time_to([line for line in ours if line["task"] in tasks], float(curve[-1])),
        "curve": [round(float(value), 4) for value in curve],
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _middle(values: Sequence[float]) -> float | None:
    """The median of what is known; None where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return round(float(np.median(known)), 3) if known else None


def _by_task(lines: Lines, value: Any) -> list[float]:
    """The mean of ``value`` over the seeds of each task."""
    return list(_task_means(lines, value).values())


def _task_means(lines: Lines, value: Any) -> dict[str, float]:
    grouped: dict[str, list[float]] = {}
    for line in lines:
        number = value(line["score"])
        if not math.isnan(number):
            grouped.setdefault(str(line["task"]), []).append(number)
    return {task: float(np.mean(values)) for task, values in grouped.items()}


def _ours_minus(ours: Lines, other: Lines, place: int) -> list[float]:
    """Differences of regret at ``SHARES[place]``, one a task that both searched."""
    mine, theirs = (_task_means(lines, lambda score: score["at"][place]) for lines in (ours, other))
    return [mine[task] - theirs[task] for task in mine if task in theirs]


def _wins(ours: Lines, other: Lines) -> list[int] | None:
    """[tasks on which ours has the lower regret at a fifth of the budget, ties, losses]."""
    gaps = _ours_minus(ours, other, SHARES.index(0.2))
    if not gaps:
        return None
    return [sum(gap < -TIE for gap in gaps), sum(abs(gap) <= TIE for gap in gaps), sum(gap > TIE for gap in gaps)]


def _time_to(ours: Lines, regret: float) -> float | None:
    """The share of the budget at which the mean curve of ``ours`` first reaches ``regret``; None where it does not."""
    if not ours:
        return None
    mean = np.mean([line["score"]["curve"] for line in ours], axis=0)
    reached = np.flatnonzero(mean <= regret + 1e-9)
    shares = np.exp(np.linspace(math.log(FIRST_SHARE), 0.0, GRID))
    return round(float(shares[reached[0]]), 4) if len(reached) else None


HEADING = ("contestant", "first run", *(f"{share:.0%}" for share in SHARES), "area", "ours wins · ties · losses",
           "ours reaches its end at")  # fmt: skip


def rows(contestants: Mapping[str, Any]) -> Iterable[list[str]]:
    """A table's rows, lowest regret at a fifth of the budget first."""
    place = SHARES.index(0.2)
    for who, value in sorted(contestants.items(), key=lambda item: item[1]["at"][place][0]):
        wins = value["against_ours"]
        yield [
            who, _text(value["first"]), *(_text(each) for each in value["at"]), _text(value["area"]),
            "" if wins is None or who == OURS else " · ".join(map(str, wins)),
            "" if value["ours_takes"] is None or who == OURS else f"{value['ours_takes']:.0%}",
        ]  # fmt: skip


def _text(values: Sequence[float | None]) -> str:
    mean, low, high = (math.nan if value is None else value for value in values)
    return "" if math.isnan(mean) else Interval(mean, low, high).text()


def markdown(name: str, about: str, summary: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    lines = [f"# {name}", "", about, "", *(f"- {fact}" for fact in facts(summary)), ""]
    for setting, contestants in summary["settings"].items():
        lines += [f"## {setting}", "", markdown_table(HEADING, rows(contestants)), ""]
    return "\n".join(lines)


def facts(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on, in sentences."""
    floor = summary["noise_floor"]
    found = [
        f"{summary['tasks']} tasks with {summary['configurations']} configurations; {summary['reason']}.",
        "Regret: 0 is the whole run that is best on validation, 1 the median run; means over tasks with bootstrapped"
        " 95 % intervals, budget 20 whole runs.",
        f"{summary['scored_by_test']} of {summary['tasks']} tasks are scored on test rows, the others on validation.",
    ]
    if floor is not None:
        found.append(f"The same configuration with another seed differs by {floor:.3f} (median).")
    return found


def write_report(output: Path, name: str, about: str, summary: Mapping[str, Any]) -> None:
    """Write ``table.md`` and ``report.html``."""
    write_text(output / "table.md", markdown(name, about, summary))
    sections = [_section(setting, contestants) for setting, contestants in summary["settings"].items()]
    head = join([tag("h1", about or name), tag("ul", *(tag("li", fact) for fact in facts(summary)), class_="beside")])
    page = document(f"Replay {name}", head, sections, tag("p", f"Foretune {__version__}"), __version__)
    write_text(output / "report.html", page)


def _section(setting: str, contestants: Mapping[str, Any]) -> Section:
    place = SHARES.index(0.2)
    ranked = sorted(contestants, key=lambda who: (who != OURS, contestants[who]["at"][place][0]))
    shares = np.exp(np.linspace(math.log(FIRST_SHARE), 0.0, GRID))
    series = tuple(
        Series(who, tuple(Dot(float(x), float(y)) for x, y in zip(shares, contestants[who]["curve"], strict=True)))
        for who in ranked[:CURVES]
    )
    labels = {0.01: "1 %", 0.05: "5 %", 0.1: "10 %", 0.2: "20 %", 0.4: "40 %", 1.0: "100 %"}
    chart = Chart(series, "share of the budget", "normalised regret", log_x=True, zero=True, x_labels=labels)
    parts: list[Markup | None] = []
    if (draw := xy_chart(chart)) is not None:
        parts.append(figure(draw, join(["Mean regret over time. ", legend(chart)])))
    columns = [Column(title) for title in HEADING]
    parts.append(table(f"Regret, {setting}", columns, list(rows(contestants))))
    return Section(setting, "Regret by share of the budget, the lowest at a fifth of it first.", tuple(parts))
