"""The row formats: how each is recognised and how its rows become turns, targets and labels.

`FORMATS` is the registry and its order is the order of detection: formats whose column names say the most come
first, bare ``text`` last. Detection looks at a sample of rows and takes the layout that fits most of them, so one
odd row decides nothing; names may be written in capitals. What a format cannot express (images, preference pairs) is
refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from foretune.data import choices, label_sets
from foretune.data import usual_columns as usual
from foretune.data.columns import Columns, columns_of, has, value_of
from foretune.data.conversations import Draft, from_messages, is_asking, turns_of
from foretune.data.example import Turn
from foretune.data.problems import Refused
from foretune.data.reasoning import reasoned
from foretune.data.row_label import asked
from foretune.data.strict_json import described
from foretune.data.tools import calling_turn, calls_of, looks_like_calls, offered

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A format with the columns that hold its parts in this file."""

    format: str
    turns: str | None = None
    prompt: str | None = None
    context: str | None = None
    answer: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    choices: str | None = None
    system: str | None = None
    tools: str | None = None
    reasoning: str | None = None

    def named(self, own: Mapping[str, str]) -> Layout:
        """The same with columns by their names in the file, where ``own`` has them."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "format"}
        return replace(self, **{part: own.get(name, name) for part, name in parts.items()})

    def used(self) -> set[str]:
        """The columns that are read."""
        names = (getattr(self, field.name) for field in fields(self) if field.name != "format")
        return {name for name in names if name is not None}

    def text_columns(self) -> tuple[str, ...]:
        """The columns that hold text, in which numbers are accepted only if all rows have numbers."""
        return tuple(n for n in (self.prompt, self.context, self.answer, self.text, self.pair) if n)


@dataclass(frozen=True)
class Format:
    """One row format: what it looks like, how it is found in a row, and how a row of it is converted."""

    about: str
    find: Callable[[Raw, Columns], Layout | None]
    convert: Callable[[Raw, Layout], Draft]


ONE_LABEL, LABEL_SETS = "text-label", "text-labels"
TRANSLATIONS = ("translation", "source-target")
"""Formats whose rows are a text and its translation"""


def first_column(row: Raw, said: str | None, names: Sequence[str]) -> str | None:
    """The column that was said, or the first usual one; None where the row has it not."""
    if said is not None:
        return said if has(row, said) else None
    return next((name for name in names if name in row), None)


def _find_turns(row: Raw, columns: Columns, speaker: str) -> str | None:
    """The column of a conversation whose turns name their ``speaker`` so; said as the answer, one with its question."""
    if any((columns.text, columns.pair, columns.label)) or (columns.prompt and not columns.answer):
        return None
    for name in (columns.answer,) if columns.answer else usual.TURN_COLUMNS:
        value = value_of(row, name)
        if not isinstance(value, list) or (value and not (isinstance(value[0], Mapping) and speaker in value[0])):
            continue
        if columns.answer is None or any(is_asking(turn) for turn in value):
            return name
    return None


def _find_messages(row: Raw, columns: Columns) -> Layout | None:
    name = _find_turns(row, columns, "role")
    return Layout("messages", turns=name) if name else None


def _find_sharegpt(row: Raw, columns: Columns) -> Layout | None:
    name = _find_turns(row, columns, "from")
    return Layout("sharegpt", turns=name) if name else None


def _find_translation(row: Raw, columns: Columns) -> Layout | None:
    pair = row.get("translation")
    if not isinstance(pair, Mapping) or columns.text or columns.pair or columns.label:
        return None
    languages = list(pair)
    source, target = _bare(columns.prompt), _bare(columns.answer)
    if source is None and target is None and columns.languages is not None:
        source, target = (_of_language(languages, code) for code in columns.languages)
        if source is None or target is None:
            return None
    if source is None and target is None:
        if len(languages) != 2:
            return None
        source, target = languages
    else:
        source = source or next((name for name in languages if name != target), None)
        target = target or next((name for name in languages if name != source), None)
    if source not in pair or target not in pair or source == target:
        return None
    return Layout("translation", prompt=f"translation.{source}", answer=f"translation.{target}")


def _of_language(names: Sequence[str], code: str) -> str | None:
    """The name among those of a row's languages that means ``code``: itself, or with a region (``de-AT``)."""
    regional = [name for name in names if name.lower().replace("_", "-").split("-")[0] == code]
    return code if code in names else (regional[0] if regional else None)


def _bare(name: str | None) -> str | None:
    return None if name is None else name.removeprefix("translation.")


def find_unanswered_choices(row: Raw, columns: Columns) -> Layout | None:
    """Multiple choice, whichever is right: the layout without an answer."""
    if columns.text or columns.pair or columns.label:
        return None
    question, name = first_column(row, columns.prompt, choices.QUESTIONS), first_column(row, None, choices.COLUMNS)
    if question is None or name is None or choices.Choices.of(row[name]) is None:
        return None
    context = next((each for each in choices.CONTEXTS if each in row and each != question), None)
    return Layout("multiple-choice", prompt=question, context=context, choices=name)


def _find_choices(row: Raw, columns: Columns) -> Layout | None:
    found = find_unanswered_choices(row, columns)
    if found is None:
        return None
    answers = [columns.answer] if columns.answer else choices.ANSWERS
    offered_here = _choices(row, found)
    answer = next((each for each in answers if offered_here.right(value_of(row, each)) is not None), None)
    return None if answer is None else replace(found, answer=answer)


def _find_pair(
    name: str, prompts: Sequence[str], answers: Sequence[str], contexts: Sequence[str] = ()
) -> Callable[[Raw, Columns], Layout | None]:
    def find(row: Raw, columns: Columns) -> Layout | None:
        if (
            columns.label is not None
            or columns.pair is not None
            or (columns.text is not None and columns.answer is None)
        ):
            return None
        prompt = first_column(row, columns.prompt or columns.text, prompts)
        answer = first_column(row, columns.answer, answers)
        if prompt is None or answer is None or prompt == answer:
            return None
        context = next((c for c in contexts if c in row and c not in (prompt, answer)), None)
        return Layout(name, prompt=prompt, answer=answer, context=context)

    return find


def _find_one_of(name: str, pairs: Sequence[tuple[str, str]]) -> Callable[[Raw, Columns], Layout | None]:
    def find(row: Raw, columns: Columns) -> Layout | None:
        found = (_find_pair(name, (source,), (target,))(row, columns) for source, target in pairs)
        return next((layout for layout in found if layout is not None), None)

    return find


def _find_labelled(row: Raw, columns: Columns) -> Layout | None:
    if columns.answer is not None:
        return None
    text, pair = _find_text_pair(row, columns)
    labels = (*usual.LABELS, *usual.PAIR_LABELS) if pair else usual.LABELS
    label = first_column(row, columns.label, [name for name in labels if name not in (text, pair)])
    if label is None and columns.label is None and len(named := _named_labels(row)) == 1:
        label = named[0]
    return Layout(ONE_LABEL, text=text, pair=pair, label=label) if text and label else None


def _find_label_sets(row: Raw, columns: Columns) -> Layout | None:
    found = _find_labelled(row, columns)
    several = found is not None and isinstance(value_of(row, found.label or ""), list)
    return replace(found, format=LABEL_SETS) if found is not None and several else None


def _named_labels(row: Raw) -> list[str]:
    """The columns that call themselves somebody's label (``topic_label``), in lower case."""
    names = dict.fromkeys(name.strip().lower() for name in row)
    return [name for name in names if name.endswith(usual.LABEL_ENDINGS)]


def _find_text_pair(row: Raw, columns: Columns) -> tuple[str | None, str | None]:
    """The column of the text that is labelled, and that of a second text."""
    text = columns.text or columns.prompt
    if columns.pair is not None:
        firsts = [first for first, second in usual.TEXT_PAIRS if second == columns.pair]
        found = first_column(row, text, [name for name in (*firsts, *usual.TEXTS) if name != columns.pair])
        return found, columns.pair if has(row, columns.pair) else None
    if text is not None:
        return (text if has(row, text) else None), None
    for first, second in usual.TEXT_PAIRS:
        if first in row and second in row:
            return first, second
    return first_column(row, None, usual.TEXTS), None


def _find_text(row: Raw, columns: Columns) -> Layout | None:
    if columns.answer or columns.label or columns.prompt or columns.pair:
        return None
    if columns.text is None and _named_labels(row):
        return None  # several labels: which one is meant has to be said, else the texts alone would be learnt
    text = first_column(row, columns.text, ("text",))
    return Layout("text", text=text) if text else None


def plain(row: Raw, name: str, *, optional: bool = False) -> str:
    """The text in column ``name``; numbers are written as JSON writes them. Raises `Refused` when there is none."""
    value = value_of(row, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if value != value:
            value = None
        else:
            return repr(value)
    if value is None and not has(row, name):
        if optional:
            return ""
        raise Refused(f"there is no {name!r}; this row has {', '.join(map(repr, columns_of([row])))}")
    if value is not None and not isinstance(value, str):
        raise Refused(f"{name!r} holds {described(value)}, not text")
    if not optional and not (value or "").strip():
        raise Refused(f"{name!r} is empty")
    return value or ""


def _convert_turns(row: Raw, layout: Layout) -> Draft:
    assert layout.turns is not None
    draft = from_messages(turns_of(row, layout.turns))
    return _with_system(draft, row, layout)


def _convert_pair(row: Raw, layout: Layout) -> Draft:
    assert layout.prompt is not None and layout.answer is not None
    prompt, answer = value_of(row, layout.prompt), value_of(row, layout.answer)
    if (
        isinstance(prompt, list)
        and isinstance(answer, list)
        and all(isinstance(t, Mapping) for t in (*prompt, *answer))
    ):
        return _with_system(from_messages([*prompt, *answer], trained_from=len(prompt)), row, layout)
    text = _prompt_with_context(row, layout)
    if layout.tools and looks_like_calls(answer):
        said = calling_turn("", calls_of(answer))
    else:
        said = reasoned(Turn("assistant", _answer(row, layout.answer)))
    said = _with_reasoning(said, row, layout)
    return _with_system(Draft((Turn("user", text), said), targets=(1,)), row, layout)


def _convert_choices(row: Raw, layout: Layout) -> Draft:
    assert layout.answer is not None
    right = choices.answered(_choices(row, layout), value_of(row, layout.answer), layout.answer)
    said = _with_reasoning(Turn("assistant", right), row, layout)
    return _with_system(Draft((ask_choices(row, layout), said), targets=(1,)), row, layout)


def ask_choices(row: Raw, layout: Layout) -> Turn:
    """The question with its context and its choices. Raises `Refused` where there are none."""
    return Turn("user", _choices(row, layout).asked(_prompt_with_context(row, layout)))


def _choices(row: Raw, layout: Layout) -> choices.Choices:
    assert layout.choices is not None
    found = choices.Choices.of(value_of(row, layout.choices))
    if found is None:
        raise Refused(f"{layout.choices!r} holds no choices")
    return found


def _with_reasoning(turn: Turn, row: Raw, layout: Layout) -> Turn:
    """``turn`` with what a column of its own says before it; reasoning in front of the answer itself goes first."""
    before = plain(row, layout.reasoning, optional=True).strip() if layout.reasoning else ""
    return replace(turn, reasoning=before) if before and not turn.reasoning else turn


def _prompt_with_context(row: Raw, layout: Layout) -> str:
    assert layout.prompt is not None
    text = plain(row, layout.prompt)
    context = plain(row, layout.context, optional=True) if layout.context else ""
    if not context.strip():
        return text
    return f"{text}\n\n{context}" if layout.format == "alpaca" else f"{context}\n\n{text}"


def _answer(row: Raw, name: str) -> str:
    """The answer; of several accepted answers (a list, or ``{"text": [...]}``) the first is trained on."""
    value = value_of(row, name)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if isinstance(value, list):
        if not value:
            raise Refused(f"{name!r} is an empty list: the row has no answer")
        return plain({name: value[0]}, name)
    return plain(row, name)


def _convert_labelled(row: Raw, layout: Layout) -> Draft:
    assert layout.text is not None and layout.label is not None
    text = plain(row, layout.text)
    label = value_of(row, layout.label)
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if label is None or label != label or (isinstance(label, str) and not label.strip()):
        raise Refused(f"{layout.label!r} is empty: the row has no label")
    if not isinstance(label, str | int | float):
        raise Refused(f"{layout.label!r} holds {described(label)}, not one label")
    texts = (text,) if layout.pair is None else (text, plain(row, layout.pair))
    return _with_system(Draft(tuple(Turn("user", text) for text in texts), label=label), row, layout)


def _convert_label_set(row: Raw, layout: Layout) -> Draft:
    assert layout.text is not None and layout.label is not None
    texts = (layout.text,) if layout.pair is None else (layout.text, layout.pair)
    turns = asked([Turn("user", plain(row, name)) for name in texts])
    said = Turn("assistant", label_sets.written(value_of(row, layout.label), layout.label))
    return _with_system(Draft((*turns, said), targets=(len(turns),)), row, layout)


def _convert_text(row: Raw, layout: Layout) -> Draft:
    assert layout.text is not None
    return Draft((Turn("text", plain(row, layout.text)),), targets=(0,))


def _with_system(draft: Draft, row: Raw, layout: Layout) -> Draft:
    if layout.tools:
        draft = replace(draft, tools=offered(row.get(layout.tools), layout.tools))
    text = plain(row, layout.system, optional=True) if layout.system else ""
    if not text.strip() or draft.turns[0].role == "system":
        return draft
    return replace(draft, turns=(Turn("system", text), *draft.turns), targets=tuple(t + 1 for t in draft.targets))


FORMATS: dict[str, Format] = {
    "messages": Format('{"messages": [{"role": "user", "content": …}, …]}', _find_messages, _convert_turns),
    "sharegpt": Format('{"conversations": [{"from": "human", "value": …}, …]}', _find_sharegpt, _convert_turns),
    "translation": Format('{"translation": {"en": …, "de": …}}', _find_translation, _convert_pair),
    "multiple-choice": Format('{"question": …, "choices": […, …], "answer": …}', _find_choices, _convert_choices),
    "alpaca": Format(
        '{"instruction": …, "input": …, "output": …}',
        _find_pair("alpaca", ("instruction",), usual.ALPACA_ANSWER, usual.ALPACA_CONTEXT),
        _convert_pair,
    ),
    "prompt-completion": Format(
        '{"prompt": …, "completion": …}',
        _find_pair("prompt-completion", usual.PROMPTS, usual.COMPLETIONS),
        _convert_pair,
    ),
    "question-answer": Format(
        '{"question": …, "answer": …}',
        _find_pair("question-answer", usual.QUESTIONS, usual.QUESTION_ANSWER, usual.QUESTION_CONTEXT),
        _convert_pair,
    ),
    "source-target": Format('{"source": …, "target": …}', _find_one_of("source-target", usual.PAIRS), _convert_pair),
    "summary": Format('{"document": …, "summary": …}', _find_one_of("summary", usual.SUMMARIES), _convert_pair),
    ONE_LABEL: Format('{"text": …, "label": …}, or two texts and a label', _find_labelled, _convert_labelled),
    LABEL_SETS: Format('{"text": …, "labels": […, …]}', _find_label_sets, _convert_label_set),
    "text": Format('{"text": …}', _find_text, _convert_text),
}
