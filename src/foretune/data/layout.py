"""How a tokenizer lays out a conversation, found by probing its chat template with a sentinel question and answer.

A chat template is a program, and templates differ in everything that matters to a target mask: whether the prompt
they render for inference is a prefix of what they render for training, what they write between the two, which
token ends a turn, whether there is a system role. None of it is declared, so all of it is measured here, once per
tokenizer, before any row is rendered. A template that cannot give an exact mask is refused with the reason.

Models without a chat template (or ``plain=True``) use the plain layout of `foretune.data.template`.

Whether a template knows tools is measured as well: it has to write the tools that are offered, a call and its result.
So is how it writes reasoning before an answer, and with which of its variables.

What this does not do: images, or repairing a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, Any, Literal

from jinja2.exceptions import TemplateError

from foretune.data.example import Call, Example, Turn
from foretune.data.reasoning import AS_TEXT, Reasoning, reasoning_as_text, without_reasoning
from foretune.data.tools import as_text, calling_turn
from foretune.data.tools import messages as with_calls
from foretune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    RecursionError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
)
"""What a template raises on a conversation it does not accept."""

_QUESTION = "foretune question"
_ANSWER = "foretune answer"
_SYSTEM = "foretune system"
_THOUGHT = "foretune reasoning"
_TOOL, _VALUE, _RESULT = "foretune_tool", "foretune value", "foretune result"
_TOOLS = json.dumps([{"type": "function", "function": {
    "name": _TOOL, "description": "Probe.",
    "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "Any."}},
                   "required": ["key"]},
}}])  # fmt: skip
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
"""Template variables tried in turn: hybrid reasoning models may open a reasoning block in the inference prompt that
an answer without reasoning does not have; their own switches turn it off."""
_THINKING: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"thinking": True})
"""Variables tried in turn for rows that reason."""
_REASONING_KEY = "reasoning_content"
"""The key by which published templates read reasoning."""
_FIXED_DATE = "01 Jan 2026"
"""Given to templates that write today's date, so that the same rows give the same tokens on every day."""
_PLAIN_REMEDY = "Use the plain layout (--plain), another model, or a corrected chat_template.jinja."


@dataclass(frozen=True)
class TurnLayout:
    """What the probe found."""

    style: Literal["chat", "plain"]
    end_id: int
    """The token that ends a trained turn."""
    end_in_template: bool = True
    """False: the template writes no end of turn and ``end_id`` (eos) is appended to the trained answer."""
    begin: tuple[int, ...] = ()
    """Ids that the tokenizer itself puts before a text (bos); used by the plain layout."""
    bos: int | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Template variables that every rendering is given."""
    blocks: bool = False
    """Contents are handed over as ``[{"type": "text", "text": …}]``."""
    system_role: bool = True
    """False: a system turn is written at the head of the first user turn."""
    markers: bool = False
    """The template marks what is generated with ``{% generation %}``, and the tokenizer knows character positions."""
    lead: str = ""
    """Text that the template writes between the inference prompt and the answer, such as an empty reasoning block.
    The model has to write it, so it is trained; `answer_text` takes it off."""
    closing: str = ""
    """Text that the template writes between the answer and ``end_id``, such as a space or an end of response."""
    tail: str = ""
    """All text that the template writes after the answer."""
    tools: bool = False
    """The template writes offered tools, calls and results; else they are put as text (`foretune.data.tools`)."""
    reasoning: Reasoning | None = AS_TEXT
    """How reasoning before an answer is written; None where the template mangles it, so that it is left out."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know."""

    def told(self, example: Example) -> Example:
        """A row as this layout takes it: tools and reasoning as such, or as text."""
        if self.reasoning is None:
            example = without_reasoning(example)
        elif not self.reasoning.key:
            example = reasoning_as_text(example)
        return example if self.tools else as_text(example)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens; no padding and no cutting, so a batch equals single calls."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [list(map(int, ids)) for ids in encoded["input_ids"]]


def single_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """``ids`` with at most one leading ``bos``: a template and a tokenizer may both have written one."""
    start = 0
    while bos is not None and len(ids) > start + 1 and ids[start] == bos and ids[start + 1] == bos:
        start += 1
    return list(ids[start:])


def messages_of(turns: Sequence[Turn], layout: TurnLayout) -> list[dict[str, Any]]:
    """The conversation as a chat template takes it."""
    if not layout.system_role and len(turns) > 1 and turns[0].role == "system" and turns[1].role == "user":
        turns = [Turn("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
    messages = with_calls(turns)
    if layout.reasoning is not None and layout.reasoning.key:
        for message, turn in zip(messages, turns, strict=True):
            message |= {layout.reasoning.key: turn.reasoning} if turn.reasoning else {}
    if layout.blocks:
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return messages


def given(layout: TurnLayout, tools: str, *, reasons: bool = False) -> dict[str, Any]:
    """What a template is given beside the conversation: its variables, those of reasoning where the answer
    ``reasons``, and the row's tools where there are some."""
    variables = layout.reasoning.variables if reasons and layout.reasoning is not None else layout.variables
    return {**variables, **({"tools": json.loads(tools)} if tools else {})}


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    layout: TurnLayout,
    *,
    prompt: bool,
    tools: str = "",
    reasons: bool = False,
) -> str:
    """The template's text for ``turns``; with ``prompt`` it ends where the model begins to write.

    ``reasons``: whether the answer that is asked for, or stands last, reasons before it.
    """
    return str(
        tokenizer.apply_chat_template(
            messages_of(turns, layout),
            tokenize=False,
            add_generation_prompt=prompt,
            **given(layout, tools, reasons=reasons),
        )
    )


def layout_of(tokenizer: PreTrainedTokenizerBase, *, plain: bool = False) -> TurnLayout:
    """Probe ``tokenizer``. Raises `ModelError` when no exact target mask is possible with its template."""
    begin = _begin_ids(tokenizer)
    bos = tokenizer.bos_token_id
    template = None if plain else _template_text(tokenizer)
    if template is None:
        why = "asked for" if plain else "the tokenizer has no chat template"
        return TurnLayout("plain", _eos(tokenizer), begin=begin, bos=bos, notes=(f"plain layout ({why})",))
    layout, prompt, full = _first_exact(tokenizer, template)
    lead, tail = full[len(prompt) :].split(_ANSWER, 1)
    bare = render(tokenizer, [Turn("user", _QUESTION)], layout, prompt=False)
    if bare == prompt and lead.strip():
        raise ModelError(
            f"the chat template has no generation prompt: it writes {lead!r} only together with an answer, so what "
            "a server feeds the model differs from what it was trained on.",
            remedy=_PLAIN_REMEDY,
        )
    end = _end_of_turn(tokenizer, tail)
    system_role = _has_system_role(tokenizer, layout)
    reasoning = _reasoning(tokenizer, layout)
    return TurnLayout(
        style="chat",
        end_id=_eos(tokenizer) if end is None else end,
        end_in_template=end is not None,
        begin=begin,
        bos=bos,
        variables=layout.variables,
        blocks=layout.blocks,
        system_role=system_role,
        markers=bool(tokenizer.is_fast) and _MARKERS.search(template) is not None,
        lead=lead,
        closing="" if end is None else tail.partition(str(tokenizer.convert_ids_to_tokens(end)))[0],
        tail=tail,
        tools=_knows_tools(tokenizer, layout, end),
        reasoning=reasoning,
        notes=tuple(_notes(tokenizer, template, layout, lead, end, system_role)),
    )


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            f"the tokenizer has several chat templates and none is the default: {error}", remedy=_PLAIN_REMEDY
        ) from error


def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text when it adds special tokens."""
    bare = encode_texts(tokenizer, [_QUESTION])[0]
    full = list(map(int, tokenizer(_QUESTION, add_special_tokens=True)["input_ids"]))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    raise ModelError("the tokenizer changes a text when it adds special tokens, so no prefix is stable.")


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end-of-text token, so no answer could ever end.",
            remedy="Name one as eos_token in its tokenizer_config.json.",
        )
    return int(tokenizer.eos_token_id)


def _first_exact(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[TurnLayout, str, str]:
    """The first way of calling the template whose inference prompt is a prefix of its training text."""
    problem = ""
    date = {"date_string": _FIXED_DATE} if "strftime_now" in template and "date_string" in template else {}
    question, answer = Turn("user", _QUESTION), Turn("assistant", _ANSWER)
    for blocks in (False, True):
        for variant in _VARIANTS:
            layout = TurnLayout("chat", end_id=-1, variables={**date, **variant}, blocks=blocks)
            try:
                prompt = render(tokenizer, [question], layout, prompt=True)
                full = render(tokenizer, [question, answer], layout, prompt=False)
            except RENDER_ERRORS as error:
                problem = problem or f"it fails on one question and one answer ({error})"
                continue
            if _QUESTION not in prompt:
                problem = problem or "it leaves the question out"
            elif full.count(_ANSWER) != 1:
                problem = problem or "it leaves the answer out or writes it twice"
            elif not full.startswith(prompt):
                problem = problem or (
                    f"what it renders for inference (ending in {prompt[-40:]!r}) is not how it begins a training row"
                )
            else:
                return layout, prompt, full
    raise ModelError(f"the chat template of this model gives no exact target mask: {problem}.", remedy=_PLAIN_REMEDY)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, tail: str) -> int | None:
    """The token that ends a turn, found in what the template writes after an answer.

    That is the end-of-text token if it is in the first unbroken run of control tokens there, else the last of that
    run: after ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`` a server waits for the second; in ``<|end|>``, line break,
    ``<|endoftext|>`` the first ends the turn. White-space tokens are not control tokens.
    """
    control = control_ids(tokenizer)
    ids = encode_texts(tokenizer, [tail])[0]
    after = dropwhile(lambda token: token not in control, ids)
    run = list(takewhile(lambda token: token in control, after))
    if tokenizer.eos_token_id in run:
        return int(tokenizer.eos_token_id)
    return run[-1] if run else None


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special and added tokens that are not mere white space."""
    added = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return frozenset(added | set(map(int, tokenizer.all_special_ids)))


def control_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens and those added tokens that the chat template writes: what a text should not contain."""
    written = str(tokenizer.chat_template or "")
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return tuple(sorted(special | {text for text in added if text.strip() and text in written}))


def _has_system_role(tokenizer: PreTrainedTokenizerBase, layout: TurnLayout) -> bool:
    turns = [Turn("system", _SYSTEM), Turn("user", _QUESTION)]
    try:
        return _SYSTEM in render(tokenizer, turns, layout, prompt=True)
    except RENDER_ERRORS:
        return False


def _knows_tools(tokenizer: PreTrainedTokenizerBase, layout: TurnLayout, end: int | None) -> bool:
    """Whether the template writes tools, a call and its result, the call behind the prompt that inference feeds.

    A call has to end as an answer does: some templates end it with the opening of the result, which they write
    themselves, so that a trained call would have no end.
    """
    call = calling_turn("", [Call(_TOOL, json.dumps({"key": _VALUE}))])
    turns = [Turn("user", _QUESTION), call, Turn("tool", _RESULT), Turn("assistant", _ANSWER)]
    try:
        prompt = render(tokenizer, turns[:1], layout, prompt=True, tools=_TOOLS)
        called = render(tokenizer, turns[:2], layout, prompt=False, tools=_TOOLS)
        whole = render(tokenizer, turns, layout, prompt=False, tools=_TOOLS)
    except RENDER_ERRORS:
        return False
    behind = called[len(prompt) :]
    ended = end is None or end in encode_texts(tokenizer, [behind])[0]
    return (
        _TOOL in prompt and called.startswith(prompt) and _TOOL in behind and _VALUE in behind and ended
        and _RESULT in whole and _ANSWER in whole
    )  # fmt: skip


def _reasoning(tokenizer: PreTrainedTokenizerBase, layout: TurnLayout) -> Reasoning | None:
    """How the template writes reasoning: by its key, else as a part of the content, else not at all."""
    shared = {name: value for name, value in layout.variables.items() if name == "date_string"}
    thoughtful = Turn("assistant", _ANSWER, reasoning=_THOUGHT)
    for key in (_REASONING_KEY, ""):
        own = [{**shared, **thinking} for thinking in _THINKING] if key else []
        for variables in (dict(layout.variables), *own):
            tried = replace(layout, reasoning=Reasoning(key, variables, "", ""))
            turns = tried.told(Example((Turn("user", _QUESTION), thoughtful), targets=(1,))).turns
            try:
                prompt = render(tokenizer, turns[:1], tried, prompt=True, reasons=True)
                full = render(tokenizer, turns, tried, prompt=False, reasons=True)
            except RENDER_ERRORS:
                continue
            behind = full[len(prompt) :]
            if full.startswith(prompt) and behind.count(_THOUGHT) == behind.count(_ANSWER) == 1:
                opening, _, rest = behind.partition(_THOUGHT)
                return Reasoning(key, variables, opening, rest.partition(_ANSWER)[0])
    return None


def _notes(
    tokenizer: PreTrainedTokenizerBase, template: str, layout: TurnLayout, lead: str, end: int | None, system_role: bool
) -> list[str]:
    notes = []
    if end is None:
        notes.append(
            f"the template writes no end of turn: {tokenizer.eos_token!r} is appended to the trained answer as its end"
        )
    if lead.strip():
        notes.append(f"the template writes {lead!r} before an answer: it is trained as part of the answer")
    if not system_role:
        notes.append("the template has no system role: a system turn is written at the head of the first user turn")
    switches = {name: value for name, value in layout.variables.items() if name != "date_string"}
    if switches:
        notes.append(f"rendered with {switches}: serve it with the same chat template variables")
    if "date_string" in layout.variables:
        notes.append(f"the template writes the date: it is fixed to {_FIXED_DATE}")
    elif "strftime_now" in template:
        notes.append("the template writes today's date: prompts differ from day to day")
    return notes
