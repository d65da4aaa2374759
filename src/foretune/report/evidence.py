"""The sections of the report that carry the verdict: comparison, learning curves, budget and forecast."""

from __future__ import annotations

from foretune.report.charts import (
    budget_chart,
    calibration_chart,
    comparison_chart,
    difference_chart,
    figure,
    forecast_chart,
)
from foretune.report.curves import curves_chart
from foretune.report.markup import Markup, join, tag
from foretune.report.record import Comparison, Forgetting, MetricInfo, RunRecord, SystemResult
from foretune.report.tables import Column, Section, folded, table
from foretune.report.wording import (
    FEW_SEEDS,
    NOT_MEASURED,
    budget_text,
    counted,
    difference_text,
    forecast_verdict,
    forgetting_text,
    number_word,
    p_text,
    quantity_text,
    value_text,
)
from foretune.units import format_duration

SECONDS_PER_HOUR = 3600.0

_VERDICT_MARK = {"better": "▲ better", "worse": "▼ worse", "no evidence": "◦ no evidence"}


def comparison(record: RunRecord) -> Section | None:
    """The systems on the same test rows, the paired differences, forgetting and calibration."""
    compared = record.comparison
    if compared is None:
        return None
    seeds = f"{number_word(compared.seeds)} training seed{'' if compared.seeds == 1 else 's'}"
    lead = (
        f"All answered the same {counted(compared.rows, f'{compared.split} row')}, which were not used before. "
        f"Intervals are 95 %; there is {seeds} behind them"
        + (", so they speak of these rows and not of other training runs." if compared.seeds < FEW_SEEDS else ".")
    )
    scores = comparison_chart(compared, compared.metric)
    differences = difference_chart(compared, compared.metric)
    body = [
        figure(scores, "Dots are means, whiskers 95 % intervals; the dashed line is the base model.")
        if scores
        else None,
        _scores(compared),
        tag("h3", "The fine-tuned model minus the others, row by row") if differences else None,
        figure(differences, "Paired on the same rows: an interval that leaves out zero is evidence.")
        if differences
        else None,
        _differences(compared),
        _transitions(compared),
        _forgetting(record.forgetting),
        _forgetting(record.forgetting_previous),
        *_calibration(compared),
    ]
    return Section("Comparison", lead, tuple(body))


def _metric_names(compared: Comparison) -> list[str]:
    names = [compared.metric, *(info.name for info in compared.metrics)]
    measured = {name for system in compared.systems for name in system.metrics}
    return [name for name in dict.fromkeys(names) if name in measured]


def _scores(compared: Comparison) -> Markup:
    names = _metric_names(compared)
    infos = [compared.info(name) for name in names]
    arrows = {"higher": "↑", "lower": "↓"}
    columns = [Column("system"), *(Column(_heading(info, arrows[info.direction]), number=True) for info in infos)]
    rows = [
        [
            _system_name(system),
            *(value_text(info, system.metrics.get(info.name), error=True, unit=False) for info in infos),
        ]
        for system in compared.systems
    ]
    classes = ["winner" if system.role == "winner" else "" for system in compared.systems]
    return table("Scores with standard errors (↑ higher is better, ↓ lower is better)", columns, rows, classes)


def _heading(info: MetricInfo, arrow: str) -> str:
    unit = ", %" if info.share else f", {info.unit}" if info.unit else ""
    return f"{info.label}{unit} {arrow}"


def _system_name(system: SystemResult) -> Markup:
    return join([system.name, tag("small", system.about) if system.about else None])


def _differences(compared: Comparison) -> Markup | None:
    winner = compared.system("winner")
    if winner is None or not winner.differences:
        return None
    names = {system.role: system.name for system in compared.systems}
    rows = []
    for item in winner.differences:
        info = compared.info(item.metric)
        verdict = tag("span", _VERDICT_MARK[item.verdict], class_=f"mark {item.verdict.replace(' ', '-')}")
        how = " · ".join(part for part in (item.method, p_text(item.p)) if part)
        rows.append([names.get(item.against, item.against), info.label, difference_text(info, item), verdict, how])
    columns = [
        Column("against"),
        Column("metric"),
        Column("difference [95 %]", number=True),
        Column("verdict"),
        Column("test"),
    ]
    return folded("All paired differences", table("Paired differences of the fine-tuned model", columns, rows))


def _transitions(compared: Comparison) -> Markup | None:
    counts = compared.transitions
    if counts is None:
        return None
    parts = [
        tag("strong", f"{counts.improved:,}"),
        " answers became right, ",
        tag("strong", f"{counts.worsened:,}"),
        f" became wrong, {counts.both_right:,} stayed right and {counts.both_wrong:,} stayed wrong.",
    ]
    return tag("p", *parts)


def _forgetting(item: Forgetting | None) -> Markup | None:
    if item is None:
        return None
    about = f"Loss on {item.sample}" + (f" ({counted(item.rows, 'row')})" if item.rows else "")
    values = f"{item.before:.3f} → {item.after:.3f} nats per token, difference {forgetting_text(item)}."
    return join([tag("h3", f"Forgetting: {item.sample}"), tag("p", f"{about}: {values} Lower is better.")])


def _calibration(compared: Comparison) -> list[Markup | None]:
    winner = compared.system("winner")
    if winner is None or winner.calibration is None:
        return []
    errors = [
        f"{system.name} {100 * system.calibration.error:.1f} points"
        for system in compared.systems
        if system.calibration
    ]
    draw = calibration_chart(winner.calibration)
    chart = figure(draw, "The fine-tuned model; on the dashed diagonal confidence equals accuracy.") if draw else None
    return [tag("h3", "Calibration"), tag("p", f"Expected calibration error: {', '.join(errors)}."), chart]


def curves(record: RunRecord) -> Section | None:
    """The learning curves of all trials and the finalists' second look."""
    unit = record.comparison.info("loss").unit if record.comparison else ""
    draw = curves_chart(record.trials, record.base_validation, unit or "nats per token")
    if draw is None:
        return None
    legend = tag(
        "span",
        *(
            tag("span", tag("i", class_=f"key {kind}"), name)
            for kind, name in (
                ("winner", "winner with 95 % band, ring at its best step"),
                ("default", "default LoRA"),
                ("other", "other trials"),
            )
        ),
        tag("span", "× failed"),
        tag("span", "○ stopped early"),
        class_="legend",
    )
    lead = "Validation loss of every trial, a line each. The numbers are those of the trials table."
    return Section("Learning curves", lead, (figure(draw, legend), _candidates(record)))


def _candidates(record: RunRecord) -> Markup | None:
    if not record.candidates:
        return None
    numbers = {trial.run: number for number, trial in enumerate(record.trials, 1)}
    compared = record.comparison
    chosen_by = record.candidates[0].metric
    info = compared.info(chosen_by) if compared else MetricInfo(chosen_by, chosen_by)
    columns = [Column("finalist"), Column(info.label, number=True), Column("")]
    rows: list[list[object]] = []
    for item in record.candidates:
        cells = [value_text(info, item.score, error=True)]
        if chosen_by != "loss":
            cells.append(f"{item.loss.value:.3f}" if item.loss else NOT_MEASURED)
        rows.append([f"trial {numbers.get(item.run, item.run)}", *cells, "exported" if item.chosen else ""])
    if chosen_by != "loss":
        columns.insert(2, Column("validation loss", number=True))
    classes = ["winner" if item.chosen else "" for item in record.candidates]
    return join(
        [
            tag("h3", "Finalists, evaluated again on all validation rows"),
            table("Finalists on all validation rows", columns, rows, classes),
        ]
    )


def budget(record: RunRecord) -> Section | None:
    """Where the budget went."""
    item = record.budget
    spent = sum(phase.seconds for phase in item.phases)
    if spent <= 0:
        return None
    rows = []
    for index, phase in enumerate(item.phases):
        name = join([tag("i", class_=f"key c{index % 8}"), phase.name])
        rows.append([name, format_duration(phase.seconds), f"{100 * phase.seconds / spent:.0f} %"])
    classes = [""] * len(rows)
    if item.kind == "time" and item.total > spent:
        rows.append([join([tag("i", class_="key unspent"), "not used"]), format_duration(item.total - spent), ""])
    rows.append(["total", format_duration(spent), "100 %"])
    classes += ["muted"] * (len(rows) - 1 - len(classes)) + ["total"]
    money = ""
    if item.price_per_hour is not None:
        cost = spent / SECONDS_PER_HOUR * item.price_per_hour
        money = f" At {item.currency}{item.price_per_hour:,.2f} an hour that is {item.currency}{cost:,.2f}."
    columns = [Column("phase"), Column("time", number=True), Column("share", number=True)]
    lead = f"Used: {budget_text(item)}.{money}"
    return Section("Budget", lead, (figure(budget_chart(item), ""), table("Time by phase", columns, rows, classes)))


def forecast(record: RunRecord) -> Section | None:
    """What was forecast before the run, and what came."""
    if not record.forecast:
        return None
    measured = [row for row in record.forecast if row.measured is not None]
    inside = sum(forecast_verdict(row) == "inside" for row in measured)
    lead = f"{inside} of {len(measured)} measured values fell inside the forecast interval."
    rows = [
        [
            row.quantity,
            quantity_text(row.unit, row.value),
            f"{quantity_text(row.unit, row.low)} to {quantity_text(row.unit, row.high)}",
            quantity_text(row.unit, row.measured),
            tag("span", forecast_verdict(row), class_=f"mark {forecast_verdict(row).replace(' ', '-')}"),
        ]
        for row in record.forecast
    ]
    columns = [
        Column("quantity"),
        *(Column(name, number=True) for name in ("forecast", "interval", "measured")),
        Column("interval"),
    ]
    draw = forecast_chart(record.forecast)
    legend = tag(
        "span",
        tag("span", tag("i", class_="key interval"), "forecast interval"),
        tag("span", "◆ measured"),
        tag("span", "◇ measured, outside the interval"),
        class_="legend",
    )
    return Section(
        "Forecast and truth", lead, (figure(draw, legend) if draw else None, table("Forecast and truth", columns, rows))
    )
