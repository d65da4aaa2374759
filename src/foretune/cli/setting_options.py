"""Options that set settings, as groups in a table: a line an option, shared by the commands that take a group.

`takes` gives a command the options of some groups; it receives what was said as one mapping by setting. So a new option
is a new line here and nothing else. What an option says wins over the settings file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from foretune.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., None])


@dataclass(frozen=True)
class SettingOption:
    """``--name`` sets ``key``."""

    name: str
    key: str
    help: str
    type: type = str

    def parameter(self, panel: str) -> inspect.Parameter:
        """The option as a parameter of a command."""
        flag = f"--{self.name.replace('_', '-')}"
        shown = typer.Option(flag, help=self.help, rich_help_panel=panel)
        annotation: Any = Annotated[bool, shown] if self.type is bool else Annotated[self.type | None, shown]
        unset = False if self.type is bool else None
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=unset, annotation=annotation)


@dataclass(frozen=True)
class Group:
    """Options that are shown together."""

    name: str
    options: tuple[SettingOption, ...]


_S = SettingOption
BUDGET = Group("Budget", (
    _S("time", "budget.time", "Time budget for everything, like 10m or 2h."),
    _S("trials", "budget.trials", "Budget in trials instead of time.", int),
    _S("steps", "budget.steps", "Budget in optimiser steps, instead of time.", int),
    _S("price_per_hour", "budget.price_per_hour", "Price of this machine for an hour, like $2."),
))  # fmt: skip
MODEL = Group("Model", (
    _S("model", "model.source", "A folder, a .gguf file, a hub id or a name of the catalogue."),
    _S("quantize", "model.quantize", "4bit: keep the frozen base in 4 bits."),
    _S("trust_remote_code", "model.trust_remote_code", "Run code that comes with the model.", bool),
))  # fmt: skip
METHOD = Group("What is trained", (
    _S("method", "training.method", "How the model is adapted; `foretune methods` lists all."),
    _S("trainable", "trainable", "Share of the parameters to train, like 0.5%."),
    _S("layers", "training.layers", "Layers adapted: all, last:8, or an expression."),
    _S("regularize", "training.regularizer", "Regularizers in order, like guided-dropout,kl-to-base:0.1."),
))  # fmt: skip
SELECTION = Group("Rows to train on", (
    _S("select", "training.selection", "Which rows to train on, like ifd or ifd:60%+k-centre."),
    _S("keep", "training.keep", "Share of the rows that --select keeps, like 30%; auto: the search compares."),
    _S("target", "data.target", "Rows like those to be good at; or: validation."),
    _S("previous", "data.previous", "Rows the model was trained on before; says what of them is lost."),
))  # fmt: skip
DATA = Group("Data", (
    _S("format", "data.format", "How rows are written; found when not given."),
    _S("prompt_column", "data.columns.prompt", "Column of the question or instruction."),
    _S("answer_column", "data.columns.answer", "Column of the answer that is trained on."),
    _S("label_column", "data.columns.label", "Column of the class name or number."),
    _S("text_column", "data.columns.text", "Column of plain text, or of the text to classify."),
    _S("pair_column", "data.columns.pair", "Column of the second text, where a label is about two."),
    _S("group_column", "data.columns.group", "Column whose equal values stay in one split."),
    _S("split_column", "data.columns.split", "Column that says train, validation or test."),
    _S("instruction", "data.instruction", "What to do with every question or text, said before it."),
    _S("task", "data.task", "What is learnt; found from the rows when not given."),
    _S("metric", "data.metric", "The primary metric; found from the task when not given."),
    _S("validation", "data.validation", "A file of validation rows."),
    _S("test", "data.test", "A file of test rows."),
    _S("on_bad_row", "data.on_bad_row", "error, or quarantine: write bad rows aside."),
))  # fmt: skip
SEARCH = Group("Search", (
    _S("workers", "search.workers", "Trials that run at the same time.", int),
    _S("processes_per_trial", "search.processes", "Processes that train one trial together.", int),
    _S("warm_start", "search.warm_start", "An earlier fit's folder, or a folder of them, to begin a run at."),
    _S("seed", "search.seed", "Seed of every random choice.", int),
    _S("deploy", "output.deploy", "How it will be served: adapter, merged or gguf."),
))  # fmt: skip
EVERY = (BUDGET, MODEL, METHOD, SELECTION, DATA, SEARCH)


def takes(*groups: Group) -> Callable[[Command], Command]:
    """A command with the options of ``groups``; its parameter ``settings`` gets what was said, by setting."""
    declared = {option.name: option for group in groups for option in group.options}

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        added = [option.parameter(group.name) for group in groups for option in group.options]
        kept = [parameter for name, parameter in own.parameters.items() if name != "settings"]

        def call(**given: Any) -> None:
            said = {option.key: given.pop(name) for name, option in declared.items()}
            chosen = {key: value for key, value in said.items() if value is not None and value is not False}
            command(**given, settings=_read(chosen))

        call.__doc__, call.__name__ = command.__doc__, command.__name__
        call.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def _read(said: dict[str, Any]) -> dict[str, Any]:
    """``said`` with the selection's options read together: each means nothing without the others."""
    keys = [option.key for option in SELECTION.options]
    chosen = selection_options(*(said.get(key) for key in keys))
    rest = {key: value for key, value in said.items() if key not in keys}
    return {**rest, **{key: value for key, value in chosen.items() if value is not None}}


def selection_options(
    select: str | None, keep: str | None, target: str | None = None, previous: str | None = None
) -> Mapping[str, Any]:
    """``--select``, ``--keep`` and their data as settings. Raises `UsageError` where one is missing or no share."""
    from foretune.catalogue.selection import NONE, parse, parse_keep

    if keep == "auto":
        parse(select or NONE)
        return {"search.keep": keep, "training.selection": select, "data.target": target, "data.previous": previous}
    if select is None or select == NONE:
        for option, value in (("keep", keep), ("target", target)):
            if value is not None:
                raise UsageError(
                    f"--{option} is for a selection, and there is none.", remedy="Add --select, if only random."
                )
        return {"training.selection": select, "data.previous": previous}  # what is lost of it is measured
    parse(select)
    if keep is None:
        raise UsageError("--select does not say how much to keep.", remedy="Add --keep, like --keep 30%.")
    share = parse_keep(keep)
    if share.kind != "share":
        raise UsageError(
            f"--keep {keep} is not a share: a fit keeps a share of its training rows.",
            remedy="Write it like 30%. foretune select takes rows and tokens as well.",
        )
    return {
        "training.selection": select,
        "training.keep": share.amount,
        "data.target": target,
        "data.previous": previous,
    }
