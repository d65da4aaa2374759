"""``foretune chat``: a conversation with a run, an adapter or a model, in the terminal or through a pipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foretune.catalogue.languages import parse_pair
from foretune.catalogue.models import DEFAULT_MODEL
from foretune.cli.options import Instruction, Plugins
from foretune.errors import ForetuneError, UsageError

if TYPE_CHECKING:
    from foretune.fit.conversation import Conversation, Reply

ANSWER_TOKENS = 256
"""Longest answer where neither the user nor the run's record says: people ask for more than a test does"""
CONTEXT_TOKENS = 4096
"""Longest prompt with its answer, at least: a conversation grows longer than a row"""
HELP = "/base asks the untouched base the same, /reset forgets what was said, /quit ends."


def chat(
    system: Annotated[
        str | None, typer.Argument(metavar="[RUN|FOLDER]", help="A run, adapter or model folder, or a model's name.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base of the adapter; alone, the model to talk to.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="An adapter folder.")] = None,
    system_turn: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system turn.")] = "",
    instruction: Instruction = None,
    task: Annotated[str | None, typer.Option(help="Which task answers, for an adapter of several.")] = None,
    languages: Annotated[
        str | None, typer.Option(help="Source and target of a translator, like en-de, if no run record says it.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; as in the run, at least 256.")] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt with its answer, in tokens; as in the run, at least 4096.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For a temperature above 0.")] = 0,
    plain: Annotated[
        bool | None, typer.Option("--plain/--no-plain", help="Without the chat template; as in the run.")
    ] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an answer.")] = False,
) -> None:
    """Talk to a fine-tuned model.

    Each line is a question in one conversation. /base asks the untouched base the last question again, /reset
    forgets what was said, /quit ends. Piped input is answered line by line.
    """
    from foretune.fit.conversation import Conversation
    from foretune.fit.known import known_answer_tokens, known_context, known_reasoning
    from foretune.fit.systems import Settings, instruction_of, opened, task_of
    from foretune.plugins import load as load_plugins

    load_plugins(plugin or ())
    name, base = system_of(system, model, adapter)
    settings = Settings(
        max_answer_tokens=max_tokens or known_answer_tokens(name, ANSWER_TOKENS),
        context_tokens=context or max(CONTEXT_TOKENS, known_context(name)), plain_template=plain,
        languages=None if languages is None else parse_pair(languages), instruction=instruction,
    )  # fmt: skip
    typed = _is_terminal()
    with opened(name, [], "generation", base=base, settings=settings) as (bench, adapted):
        number = None if task is None else task_of(adapted, task, name)
        conversation = Conversation(
            bench, adapted, system=system_turn, temperature=temperature, seed=seed, task=number,
            instruction=instruction_of(name, bench.task.model, bench.model, settings), reasons=known_reasoning(name),
        )  # fmt: skip
        if typed:
            typer.echo(f"{name}. {HELP}", err=True)
        _talk(conversation, _typed() if typed else _piped(), as_json=as_json, typed=typed)


def system_of(system: str | None, model: str | None, adapter: Path | None) -> tuple[str, str | None]:
    """What to open, and the base where one was named; raises `UsageError` when too much is named."""
    if system is not None and adapter is not None:
        raise UsageError("both a system and --adapter are given.", remedy="Name one of them.")
    if adapter is not None:
        if not adapter.is_dir():
            raise UsageError(f"there is no adapter folder {adapter}.")
        return str(adapter), model
    return system or model or DEFAULT_MODEL, model if system is not None else None


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _piped() -> Iterator[str]:
    yield from sys.stdin


def _typed() -> Iterator[str]:
    """Lines as they are typed, with the line editing of readline where there is one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it is what gives `input` its editing)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo(err=True)
            return


def _talk(conversation: Conversation, lines: Iterator[str], *, as_json: bool, typed: bool) -> None:
    """Answer every line; errors end a pipe and are told in a terminal."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        try:
            _answer(conversation, text, as_json=as_json, typed=typed)
        except ForetuneError as error:
            if not typed:
                raise
            typer.echo(error.paragraph(), err=True)
        except KeyboardInterrupt:
            if not typed:
                raise
            typer.echo("\n(stopped, and not remembered)", err=True)


def _answer(conversation: Conversation, text: str, *, as_json: bool, typed: bool) -> None:
    def stream(piece: str) -> None:
        typer.echo(piece, nl=False)
        sys.stdout.flush()

    show: Callable[[str], None] = stream if typed and not as_json else lambda piece: None
    if text == "/reset":
        conversation.reset()
    elif text == "/base":
        _tell(conversation.ask_base(show), as_json=as_json, typed=typed)
    elif text.startswith("/") and text[1:].isalpha():
        raise UsageError(f"there is no command {text}.", remedy=HELP)
    elif text:
        _tell(conversation.ask(text, show), as_json=as_json, typed=typed)


def _tell(reply: Reply, *, as_json: bool, typed: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(reply), ensure_ascii=False))
        return
    typer.echo("" if typed else reply.answer)
    notes = [f"cut at {reply.tokens} tokens"] if not reply.complete else []
    if reply.forgotten:
        notes.append(f"the {reply.forgotten} oldest exchanges no longer fit")
    if notes and typed:
        typer.echo(f"({', '.join(notes)})", err=True)
