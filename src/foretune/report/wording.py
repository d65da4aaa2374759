"""The words and numbers that the report, the model card and the terminal share: above all the one-sentence verdict.

A verdict speaks of the rows that were tested and of nothing else, names the interval, and says "no evidence" where
the interval holds zero. Numbers carry as many decimals as their standard error supports. Plain text only; whoever
shows it escapes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from foretune.report.record import (
    AnswerPair,
    BudgetInfo,
    Comparison,
    Difference,
    ForecastRow,
    Forgetting,
    Measure,
    MetricInfo,
    RunRecord,
)
from foretune.units import format_bytes, format_duration

Outcome = Literal["better", "worse", "no evidence", "not compared", "failed"]
Change = Literal["improved", "worsened", "still right", "still wrong", "not judged"]

POINTS_PER_SHARE = 100.0
MAX_DECIMALS = 4
DEFAULT_DECIMALS = 3  # where no standard error says better
NOT_MEASURED = "–"
FEW_SEEDS = 5  # below this a result speaks of its rows only

_NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STATUS_WORDS = {
    "ok": "finished",
    "paused": "stopped early",
    "stopped": "stopped early",
    "diverged": "diverged",
    "oom": "out of memory",
    "crashed": "crashed",
    "timeout": "timed out",
    "refused": "refused",
}


def number_word(count: int) -> str:
    """``1`` → "one"; digits from eleven on."""
    return _NUMBER_WORDS[count] if 0 <= count < len(_NUMBER_WORDS) else f"{count:,}"


def counted(count: int, noun: str) -> str:
    """``"1 row"``, ``"3 rows"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def status_word(status: str) -> str:
    """A trial's status in words."""
    return _STATUS_WORDS.get(status, status)


def _decimals(info: MetricInfo, spread: float | None) -> int:
    """Decimals that show one significant digit of the standard error (two where no per cent sign follows)."""
    if not spread:
        return 1 if info.share else DEFAULT_DECIMALS
    place = -math.floor(math.log10(abs(spread)))
    return max(0, min(MAX_DECIMALS, place if info.share else place + 1))


def _scale(info: MetricInfo) -> float:
    return POINTS_PER_SHARE if info.share else 1.0


def _fixed(number: float, decimals: int, *, sign: bool = False) -> str:
    """Halves are rounded up: 65.5 - 35 is +31 beside 66, not the even +30."""
    exact = Decimal(f"{number:.12g}").quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    text = f"{exact:{'+' if sign else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def _unit(info: MetricInfo) -> str:
    return f" {info.unit}" if info.unit else ""


def value_text(info: MetricInfo, measure: Measure | None, *, error: bool = False, unit: bool = True) -> str:
    """``"62 %"``, or with its standard error ``"62 ± 4 %"``; a dash for what was not measured.

    An error of 0 (one row, or all rows right) is left out: it does not mean that another sample would say the same.
    """
    if measure is None:
        return NOT_MEASURED
    scale = _scale(info)
    spread = scale * measure.standard_error if measure.standard_error else None
    decimals = _decimals(info, spread)
    text = _fixed(scale * measure.value, decimals)
    if error and spread is not None:
        text += f" ± {_fixed(spread, decimals)}"
    return text + (" %" if info.share else _unit(info)) if unit else text


def difference_text(info: MetricInfo, difference: Difference | None, *, unit: bool = True) -> str:
    """``"+58 points [50, 66]"``; a dash when it was not computed."""
    if difference is None:
        return NOT_MEASURED
    scale = _scale(info)
    decimals = _decimals(info, scale * (difference.high - difference.low) / 4)  # an interval spans four errors
    value, low, high = (scale * number for number in (difference.value, difference.low, difference.high))
    middle = (" points" if info.share else _unit(info)) if unit else ""
    return f"{_fixed(value, decimals, sign=True)}{middle} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def p_text(p: float | None) -> str:
    """``"p < 0.001"`` or ``"p = 0.03"``; empty when there is none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"  # the customary smallest p that is spelled out


def quantity_text(unit: str, number: float | None) -> str:
    """A forecast quantity in its unit."""
    if number is None:
        return NOT_MEASURED
    if unit == "s":
        return format_duration(number)
    if unit == "bytes":
        return format_bytes(number)
    text = f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
    return f"{text} {unit}".strip()


def forecast_verdict(row: ForecastRow) -> str:
    """Whether the measured value lies in the forecast's interval."""
    if row.measured is None:
        return "not measured"
    if row.low <= row.measured <= row.high:
        return "inside"
    return "above" if row.measured > row.high else "below"


def budget_text(budget: BudgetInfo) -> str:
    """``"28 min 10 s of 30 min 00 s"``, ``"12 of 12 trials"``, ``"$4.20 of $5.00"``."""
    if budget.kind == "time":
        return f"{format_duration(budget.used)} of {format_duration(budget.total)}"
    if budget.kind == "cost":
        return f"{budget.currency}{budget.used:,.2f} of {budget.currency}{budget.total:,.2f}"
    return f"{budget.used:,.0f} of {budget.total:,.0f} {budget.kind}"


def outcome(record: RunRecord) -> Outcome:
    """What the run showed about the fine-tuned model against the base model."""
    comparison = record.comparison
    if record.winner is None and (comparison is None or comparison.system("winner") is None):
        return "failed"
    if comparison is None:
        return "not compared"
    winner = comparison.system("winner")
    difference = winner.difference(comparison.metric, "base") if winner else None
    return "not compared" if difference is None else difference.verdict


def verdict(record: RunRecord) -> str:
    """The run in one sentence."""
    result = outcome(record)
    if result == "failed":
        return f"No trial produced a usable result{_failures(record)}."
    comparison = record.comparison
    winner = comparison.system("winner") if comparison else None
    if comparison is None or winner is None:
        return "The fine-tuned model was not compared with the base model."
    info = comparison.info(comparison.metric)
    value = value_text(info, winner.metrics.get(comparison.metric))
    rows = _rows(comparison)
    difference = winner.difference(comparison.metric, "base")
    if difference is None:
        return f"On {rows}: {info.label} {value}; it was not compared with the base model."
    base = comparison.system("base")
    against = value_text(info, base.metrics.get(comparison.metric)) if base else NOT_MEASURED
    facts = (
        f"{info.label} {value} against {against} for the base model, difference {difference_text(info, difference)}."
    )
    if difference.verdict == "better":
        return f"On {rows}: {facts}"
    if difference.verdict == "worse":
        return f"It is worse than the base model: on {rows}, {facts}"
    return f"No evidence that it is better than the base model: on {rows}, {facts}"


def _rows(comparison: Comparison) -> str:
    seeds = f"{number_word(comparison.seeds)} seed{'' if comparison.seeds == 1 else 's'}"
    return f"these {counted(comparison.rows, f'{comparison.split} row')}, {seeds}"


def _failures(record: RunRecord) -> str:
    counts = Counter(status_word(trial.status) for trial in record.trials if trial.failed)
    if not counts:
        return ""
    return ": " + ", ".join(f"{count} {word}" for word, count in counts.most_common())


def qualifications(record: RunRecord) -> list[str]:
    """What belongs beside the verdict: the default LoRA, the base with examples, and forgetting, a sentence each."""
    sentences = []
    comparison = record.comparison
    winner = comparison.system("winner") if comparison else None
    if comparison is not None and winner is not None:
        for role in ("default", "examples"):
            system = comparison.system(role)
            difference = winner.difference(comparison.metric, role)
            if system is not None and difference is not None:
                name = f"the {system.name}" if role == "default" else system.name
                sentences.append(_against(comparison, name, difference))
    if record.winner is not None and record.winner.is_default:
        sentences.append("The search found nothing better than the default LoRA, which is what was exported.")
    forgotten = (record.forgetting, record.forgetting_previous)
    return sentences + [_forgetting(item) for item in forgotten if item is not None]


def _against(comparison: Comparison, name: str, difference: Difference) -> str:
    facts = difference_text(comparison.info(comparison.metric), difference)
    if difference.verdict == "no evidence":
        return f"No evidence of a difference from {name}: {facts}."
    return f"{difference.verdict.capitalize()} than {name}: {facts}."


def forgetting_text(forgetting: Forgetting) -> str:
    """The change of the loss, with its interval."""
    change = Difference(
        "loss", "base", forgetting.difference, forgetting.low, forgetting.high, "no evidence"
    )  # only its numbers are shown
    return difference_text(MetricInfo("loss", "loss", "lower", unit="nats per token"), change)


def _forgetting(item: Forgetting) -> str:
    text = forgetting_text(item)
    if item.low > 0:
        return f"It forgot something: the loss on {item.sample} rose: {text}."
    if item.high < 0:
        return f"The loss on {item.sample} fell: {text}."
    return f"No evidence of forgetting on {item.sample}: {text}."


def change_of(pair: AnswerPair, direction: str = "higher") -> Change:
    """What fine-tuning did to one answer, by its correctness or, where that has no meaning, by its score."""
    if pair.correct_before is not None and pair.correct_after is not None:
        if pair.correct_before == pair.correct_after:
            return "still right" if pair.correct_after else "still wrong"
        return "improved" if pair.correct_after else "worsened"
    if pair.score_before is None or pair.score_after is None or pair.score_before == pair.score_after:
        return "not judged"
    return "improved" if (pair.score_after > pair.score_before) == (direction == "higher") else "worsened"


def choose_examples(pairs: Iterable[AnswerPair], limit: int, direction: str = "higher") -> list[AnswerPair]:
    """At most ``limit`` answers, taken in turn from every kind of change so that failures are shown as well.

    Within a kind the order of the record is kept: nothing is picked for looking good. The result is grouped by kind.
    """
    kinds: dict[str, list[AnswerPair]] = {
        kind: [] for kind in ("improved", "worsened", "still wrong", "still right", "not judged")
    }
    for pair in pairs:
        kinds[change_of(pair, direction)].append(pair)
    taken = dict.fromkeys(kinds, 0)
    while sum(taken.values()) < limit:
        waiting = [kind for kind in kinds if taken[kind] < len(kinds[kind])]
        if not waiting:
            break
        for kind in waiting[: limit - sum(taken.values())]:
            taken[kind] += 1
    return [pair for kind in kinds for pair in kinds[kind][: taken[kind]]]
