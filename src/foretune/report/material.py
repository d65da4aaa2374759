"""The sections of the report to look things up in: answers, settings, data, trials, use, environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.report.commands import usage_commands
from foretune.report.markup import Markup, join, link_id, tag
from foretune.report.record import AnswerPair, RunRecord, Setting, Trial
from foretune.report.tables import Column, Section, clipped, definitions, folded, nested, shown, table, words
from foretune.report.wording import NOT_MEASURED, change_of, choose_examples, counted, status_word
from foretune.units import format_count, format_duration, format_share

MOST_EXAMPLES = 12
LONGEST_ANSWER = 3000  # characters of a prompt or an answer that are shown
_SHOWN_ELSEWHERE = ("task", "rows", "log10_rows", "fingerprint")
_ONE_LINE = 4  # numbers of a profile that stand on one line
_WHOLE = 0.01  # rounding within which shares add up to one
_CHANGE_MARK = {"improved": "▲ ", "worsened": "▼ ", "still right": "● ", "still wrong": "○ ", "not judged": ""}


def _direction(record: RunRecord) -> str:
    compared = record.comparison
    return compared.info(compared.metric).direction if compared else "higher"


def examples(record: RunRecord) -> Section | None:
    """Answers before and after, failures included."""
    if not record.examples:
        return None
    direction = _direction(record)
    chosen = choose_examples(record.examples, MOST_EXAMPLES, direction)
    counts = Counter(change_of(pair, direction) for pair in chosen)
    split = record.comparison.split if record.comparison else "test"
    lead = (
        f"{counted(len(chosen), f'{split} row')}, taken in turn from every kind of change and not by looks: "
        + ", ".join(f"{count} {kind}" for kind, count in counts.items())
        + "."
    )
    return Section("Answers before and after", lead, tuple(_example(pair, direction) for pair in chosen))


def _example(pair: AnswerPair, direction: str) -> Markup:
    change = change_of(pair, direction)
    scores = None
    if pair.score_before is not None and pair.score_after is not None:
        scores = tag("small", f"score {pair.score_before:.3g} → {pair.score_after:.3g}")
    return tag(
        "article",
        tag("p", tag("span", _CHANGE_MARK[change], change, class_=f"mark {link_id(change)}"), scores, class_="change"),
        _quote("Prompt", pair.prompt, "prompt"),
        tag(
            "div",
            _quote("Reference", pair.reference, "reference"),
            _quote("Before", pair.before, "before", pair.correct_before),
            _quote("After", pair.after, "after", pair.correct_after),
            class_="answers",
        ),
        class_="example",
    )


def _quote(title: str, content: str, kind: str, correct: bool | None = None) -> Markup:
    judged = (
        None
        if correct is None
        else tag("span", "right" if correct else "wrong", class_="right" if correct else "wrong")
    )
    body = clipped(content, LONGEST_ANSWER) if content.strip() else tag("em", "(empty)")
    return tag("div", tag("h3", title, judged), tag("div", body, class_="quote", dir="auto", tabindex="0"), class_=kind)


def settings(record: RunRecord) -> Section | None:
    """Every resolved setting with its origin."""
    if not record.settings:
        return None
    origins = Counter(_origin(setting) for setting in record.settings)
    lead = (
        f"{counted(len(record.settings), 'setting')}: " + ", ".join(f"{n} {o}" for o, n in origins.most_common()) + "."
    )
    columns = [Column("setting"), Column("value"), Column("origin"), Column("why")]
    decided = [item for item in record.settings if _origin(item) != "default"]
    rest = [item for item in record.settings if _origin(item) == "default"]
    body = [table("Settings that were said or recommended", columns, _settings(decided)) if decided else None]
    if rest:
        body.append(
            folded(f"{counted(len(rest), 'setting')} at the default", table("Defaults", columns, _settings(rest)))
        )
    return Section("Settings", lead, tuple(body))


def _origin(setting: Setting) -> str:
    return setting.origin.split(":")[0].split(" ")[0].lower() or "unknown"


def _settings(items: Sequence[Setting]) -> list[list[Markup | str]]:
    """Their rows; a reason that is the one of the row above is not repeated."""
    above = [None, *items[:-1]]
    return [
        _setting(item, "as above" if before and item.evidence and item.evidence == before.evidence else item.evidence)
        for before, item in zip(above, items, strict=True)
    ]


def _setting(item: Setting, why: str) -> list[Markup | str]:
    value = nested(item.value) if isinstance(item.value, dict | list | tuple) else tag("code", _exact(item.value))
    origin = tag("span", item.origin, class_=f"origin {link_id(_origin(item))}")
    return [tag("code", item.key), value, origin, clipped(why)]


def _exact(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else clipped(str(value))


def data(record: RunRecord) -> Section:
    """The data file: what was read, how it was split, what it looks like."""
    item = record.data
    kept = sum(item.rows.values())
    lead = f"{item.name}: {counted(item.read or kept, 'row')} read as {item.format}, task {words(item.task)}."
    pairs = [
        *((f"{name} rows", f"{count:,}") for name, count in item.rows.items()),
        ("quarantined", f"{item.quarantined:,}" if item.quarantined else None),
        ("languages", ", ".join(item.languages) or None),
        ("fingerprint", tag("code", item.fingerprint)),
        ("SHA-256", tag("code", item.sha256, class_="hash")),
    ]
    body = [definitions(pairs)]
    tokens = (*item.encoding, *item.template)
    for title, lines in (("Split", item.split_report), ("Problems", item.problems), ("Tokens", tokens)):
        if lines:
            body += [tag("h3", title), tag("ul", *(tag("li", clipped(entry)) for entry in lines))]
    if record.selection is not None:
        said = [record.selection.sentence(), record.selection.limits()]
        body += [tag("h3", "Rows kept"), *(tag("p", line) for line in said)]
        if counted_facts := {k: v for k, v in record.selection.manifest.items() if v not in (None, {}, 0)}:
            body.append(nested(counted_facts))
    profile = _tidy(item.profile)
    if profile:
        body += [tag("h3", "Profile"), tag("div", nested(profile), class_="profile")]
    return Section("Data", lead, tuple(body))


def _tidy(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The profile without what stands elsewhere or is empty; shares as per cent, small tables on one line."""
    tidy: dict[str, Any] = {}
    for name, value in profile.items():
        if name in _SHOWN_ELSEWHERE or value is None or value in ({}, [], ""):
            continue
        tidy[name] = _tidy_value(name, value)
    return tidy


def _tidy_value(name: str, value: Any) -> Any:
    if isinstance(value, float) and name.endswith("share") and 0 <= value <= 1:
        return format_share(value)
    if not isinstance(value, Mapping) or not all(isinstance(v, int | float) for v in value.values()):
        return value
    if all(isinstance(v, float) for v in value.values()) and abs(sum(value.values()) - 1) < _WHOLE:
        return ", ".join(f"{part} {format_share(share)}" for part, share in value.items())
    if len(value) <= _ONE_LINE and any(isinstance(v, float) for v in value.values()):
        return ", ".join(f"{words(str(part))} {shown(number)}" for part, number in value.items())
    return value


def trials(record: RunRecord) -> Section | None:
    """Every configuration that was tried and how it ended."""
    if not record.trials:
        return None
    counts = Counter(status_word(trial.status) for trial in record.trials)
    lead = f"{counted(len(record.trials), 'trial')}: " + ", ".join(f"{n} {s}" for s, n in counts.most_common()) + "."
    common = _common(record.trials)
    columns = [
        Column("trial"),
        Column("status"),
        Column("validation loss", number=True),
        Column("best step", number=True),
        Column("weights", number=True),
        Column("time", number=True),
        Column("configuration"),
    ]
    rows = [_trial(number, trial, common) for number, trial in enumerate(record.trials, 1)]
    classes = ["winner" if t.is_winner else "muted" if t.failed else "" for t in record.trials]
    shared = ", ".join(f"{name} = {_exact(value)}" for name, value in common.items())
    note = tag("p", "The same in all trials: ", tag("code", shared), class_="note") if shared else None
    return Section("Trials", lead, (table("All trials", columns, rows, classes), note))


def _common(trials: tuple[Trial, ...]) -> dict[str, object]:
    """The settings that all configurations share, which the table need not repeat."""
    if len(trials) < 2:
        return {}
    first = trials[0].config
    return {
        name: value
        for name, value in first.items()
        if all(name in t.config and t.config[name] == value for t in trials)
    }


def _short(name: str, trial: Trial) -> str:
    """The last part of a setting's name where no other setting of the trial ends in it."""
    name = name.removesuffix(".name")
    last = name.rpartition(".")[2]
    return name if sum(n.rpartition(".")[2] == last for n in trial.config) > 1 else last


def _trial(number: int, trial: Trial, common: dict[str, object]) -> list[Markup | str]:
    best = trial.best
    loss = NOT_MEASURED
    if best is not None and best.loss is not None:
        loss = f"{best.loss.value:.3f}" + (f" ± {best.loss.standard_error:.3f}" if best.loss.standard_error else "")
    seconds = max((point.seconds for point in trial.curve), default=None)
    role = "winner" if trial.is_winner else "default LoRA" if trial.is_default else ""
    if trial.is_winner and trial.is_default:
        role = "winner, default LoRA"
    config = ", ".join(f"{_short(n, trial)} {_exact(value)}" for n, value in trial.config.items() if n not in common)
    return [
        join([str(number), tag("small", role) if role else None]),
        join([status_word(trial.status), tag("small", clipped(trial.detail, 160)) if trial.detail else None]),
        loss,
        NOT_MEASURED if best is None else f"{best.step:,}",
        NOT_MEASURED if trial.trainable_parameters is None else format_count(trial.trainable_parameters),
        NOT_MEASURED if seconds is None else format_duration(seconds),
        tag("div", tag("code", config), tag("small", trial.why), class_="config"),
    ]


def usage(record: RunRecord) -> Section | None:
    """Commands that use what was exported."""
    if not record.exports:
        return None
    checks = []
    for item in record.exports:
        state = {True: "answers as evaluated", False: "check failed", None: "not checked"}[item.verified]
        detail = f" ({item.detail})" if item.detail else ""
        checks.append(tag("li", f"{item.kind} in ", tag("code", item.folder), f": {state}{detail}"))
    commands = [
        join([tag("h3", title), tag("pre", tag("code", command), tabindex="0")])
        for title, command in usage_commands(record)
    ]
    return Section("Using the result", "", (tag("ul", *checks), *commands))


def environment(record: RunRecord) -> Section:
    """Machine, versions, seeds, the model's identity, notes."""
    model = record.model
    pairs = [
        ("model", model.source),
        ("parameters", format_count(model.parameters)),
        ("compute type", model.dtype),
        ("quantization", model.quantize if model.quantize != "none" else None),
        ("license", model.license or "not stated"),
        ("weights SHA-256", tag("code", model.weights_sha256, class_="hash") if model.weights_sha256 else None),
        ("started", record.started),
        ("finished", record.finished),
        *(
            (words(name), nested(value) if isinstance(value, dict | list) else shown(value))
            for name, value in record.environment.items()
        ),
        *((f"seed: {name}", str(seed)) for name, seed in record.seeds.items()),
    ]
    notes = [tag("h3", "Notes"), tag("ul", *(tag("li", note) for note in record.notes))] if record.notes else []
    return Section("Environment", "", (definitions(pairs), *notes))
