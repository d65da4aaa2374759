"""``foretune plan DATA``: fits or not, time, memory, disk and money with intervals, the recommended configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.cli.options import AsJson, Plugins
from foretune.cli.setting_options import EVERY, takes
from foretune.errors import BudgetError
from foretune.units import format_bytes, format_count, format_duration, format_share

if TYPE_CHECKING:
    from foretune.cost.interval import Interval
    from foretune.fit.plan import Plan


@takes(*EVERY)
def plan(
    data: Annotated[str | None, typer.Argument(help="A file, a folder, or the name of a data set.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as YAML, or the resolved.yaml of a run.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="One setting, like training.lora.rank=32.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Load the model and measure a few steps first.")] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Say before a fit whether it fits, what it will take, and what is recommended. Nothing is trained.

    Takes the options of `foretune fit` that set settings.

    Ends with exit code 5 when the model does not fit this machine.
    """
    from foretune.cost.placement import refuse_if_too_large
    from foretune.fit.history import known_history
    from foretune.fit.plan import plan as make_plan
    from foretune.fit.probe_plan import measure
    from foretune.fit.strategy import earlier_runs
    from foretune.plugins import load as load_plugins

    load_plugins(plugin or ())
    history, outcomes = known_history()
    runs = earlier_runs()

    answer = make_plan(
        data,
        config=config,
        sets=sets or (),
        options=settings,
        probe=measure if probe else None,
        history=history,
        outcomes=outcomes,
        runs=runs,
    )
    if as_json:
        typer.echo(json.dumps(answer.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        raise typer.Exit(0 if answer.fits else BudgetError.exit_code)
    for line in lines(answer):
        typer.echo(line)
    refuse_if_too_large(answer.placement)


def _between(interval: Interval, show: Callable[[float], str]) -> str:
    """``value (low to high)``, or the value alone where there is no doubt left after rounding."""
    low, value, high = show(interval.low), show(interval.value), show(interval.high)
    return value if low == high else f"{value} ({low} to {high})"


def _trials(count: Interval) -> str:
    from foretune.cost.forecast import one_alone

    if one_alone(count):
        return "1: one configuration, and nothing to compare it with but the base"
    return f"{_between(count, '{:.0f}'.format)}, the default LoRA included"


def lines(answer: Plan) -> list[str]:
    """The plan as plain text, one fact a line."""
    shapes, layout, forecast = answer.model.shapes, answer.placement.layout, answer.forecast
    rows, row = answer.rows, answer.rows.count.row
    verdict = "fits" if answer.fits else "DOES NOT FIT"
    text = [
        f"model      {answer.model.source}: {shapes.kind}, {format_count(shapes.parameters)} parameters",
        f"data       {rows.path}: {rows.format}, {rows.task}; {format_count(rows.train)} training,"
        f" {format_count(rows.validation)} validation, {format_count(rows.test)} test rows",
        f"rows       {row.prompt:.0f} + {row.answer:.0f} tokens (prompt + answer), longest {row.longest};"
        f" {rows.count.how}",
        f"machine    {_machine(answer)}",
        "",
        f"memory     {verdict}: {_between(forecast.memory_bytes, format_bytes)}"
        f" of {format_bytes(answer.placement.room_bytes)} free",
        f"layout     {layout.dtype}{', 4-bit base' if layout.quantize == '4bit' else ''},"
        f" micro-batches of {layout.micro_batch_tokens} tokens"
        f"{', gradient checkpointing' if layout.gradient_checkpointing else ''}",
        f"disk       {_between(forecast.disk_bytes, format_bytes)}",
        f"time       {_between(forecast.seconds, format_duration)}",
    ]
    if forecast.money is not None:
        text.append(f"money      {_between(forecast.money, '{:.2f}'.format)}")
    text += [
        f"speed      {_between(forecast.units.train_tokens_per_s, '{:.0f}'.format)} tokens/s trained,"
        f" {_between(forecast.units.score_tokens_per_s, '{:.0f}'.format)} scored",
        f"           from {forecast.source}",
        f"trials     {_trials(forecast.trials)}; a full run is {format_count(forecast.steps_per_run)} steps",
        "",
    ]
    text += [f"  {phase.name:<18} {_between(phase.seconds, format_duration)}" for phase in forecast.phases]
    text += ["", f"recommended  {answer.why}"]
    text += [f"  {name:<18} {value}{_chosen(answer, name)}" for name, value in answer.config.items()]
    text.append(
        f"  trains {format_count(answer.trainable)} parameters, {format_share(answer.trainable / shapes.parameters)}"
    )
    text += ["", f"search     {answer.outlook.search}"] if answer.outlook.search else []
    text += proposed(answer)
    text += [f"rule {number}: {citation}" for number, citation in enumerate(rules(answer), start=1)]
    text += [
        f"rule: not used here, since a study measured otherwise: {published.statement} ({published.source})"
        for published, _ in answer.advice.replaced
    ]
    text += [f"note: {note}" for note in answer.notes]
    return text


def proposed(answer: Plan) -> list[str]:
    """The configurations that a search would try first, with what experience expects of them."""
    if not answer.outlook.proposals:
        return []
    text = ["", f"by experience  {answer.outlook.experience}; loss below the base's at the end of a run, 90 % interval"]
    for place, each in enumerate(answer.outlook.proposals, start=1):
        low, value, high = each.loss_below_base
        differs = ", ".join(f"{key} {item:.3g}" if isinstance(item, float) else f"{key} {item}"
                            for key, item in each.differs.items())  # fmt: skip
        text.append(
            f"  {place}. {100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f} %),"
            f" {each.seconds_factor:.2g} times the default LoRA's time, odds of failure {100 * each.p_fail:.0f} %"
        )
        text.append(f"     {differs or 'the default LoRA itself'}")
        text.append(f"     {by_number(each.why, rules(answer))}")
    return text


def rules(answer: Plan) -> tuple[str, ...]:
    """The rules that a search takes advice from, in the order of their numbers."""
    return tuple(rule.citation for rule in answer.advice.cited if rule.advice or rule.avoid)


def by_number(why: str, citations: Sequence[str]) -> str:
    """A reason with the rules it cites as the numbers they have in the plan."""
    short = why
    for number, citation in enumerate(citations, start=1):
        short = short.replace(citation, str(number))
    return re.sub(r"by the rule: (\d+)((?:; \d+)*)(?=,|$)", _numbers, short)


def _numbers(found: re.Match[str]) -> str:
    more = found[2].replace(";", ",")
    return f"by rule{'s' if more else ''} {found[1]}{more}"


def _chosen(answer: Plan, name: str) -> str:
    item = answer.resolution.values.get(f"training.{name}")
    return "" if item is None or item.origin == "recommended" else f"   (yours: {item.origin})"


def _machine(answer: Plan) -> str:
    machine = answer.machine
    if answer.placement.layout.device == "cuda":
        return ", ".join(f"{gpu.name} ({format_bytes(gpu.memory_bytes)})" for gpu in machine.accelerators)
    bf16 = "bfloat16" if machine.bf16 else "no bfloat16"
    return f"{machine.processor}, {machine.cores} cores ({machine.threads} threads), {bf16}"
