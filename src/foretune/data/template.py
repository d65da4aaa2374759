"""From a conversation to token ids with its trained spans, such that training and inference see the same prefix.

*Chat layout.* For every trained turn k the template renders the inference prompt ``P = turns[:k]`` with its
generation prompt, and the training text ``F = turns[:k+1]``. ``F`` must begin with ``P``; the ids of the row are
``ids(P)`` followed by the ids of the rest of ``F`` up to and including the end of the turn. Usually ``ids(F)``
begins with ``ids(P)`` and that is all. Where the tokenizer merges across the boundary, the row keeps ``ids(P)``,
because that is what a server feeds, and the rest is tokenized as its continuation (the text is checked to be the
same). What a template writes after the end of a turn belongs to the next prompt and is dropped after the last.
An earlier trained turn is trained only where its own inference prefix and its own ids stand unchanged in the row:
templates that strip reasoning from earlier turns lose those turns from the mask, not the exactness.
``{% generation %}`` markers, where a template has them, take unmarked tokens inside a turn out of the mask.

*Plain layout*, for models without a chat template: ``bos`` if the tokenizer writes one, then per turn
``{system}\\n\\n``, ``{user}\\n``, ``{assistant}\\n\\n``, and for the last trained turn ``{assistant}<eos>``. Each
turn is tokenized on its own, which makes every boundary exact.

What this does not do: decide lengths (`foretune.data.truncate`), labels, encoders (`foretune.data.encode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foretune.data.example import Example, Turn
from foretune.data.layout import (
    RENDER_ERRORS,
    TurnLayout,
    encode_texts,
    given,
    layout_of,
    messages_of,
    render,
    single_bos,
)
from foretune.data.row_label import asked, label_text, where
from foretune.data.tools import as_text
from foretune.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_BREAK = "\n\n"
"""Plain layout: what follows a system turn or an answer that is not the last."""
ANSWER_BREAK = "\n"
"""Plain layout: what stands between a question and its answer."""
_ANCHORS = ("", "\n", ".", "a")
"""Texts before which a continuation is tokenized when a boundary merges: alone a sentence-piece tokenizer would
put a space before it."""


@dataclass(frozen=True)
class Rendered:
    """One row before it is fitted into a context."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]
    """[start, end) of every trained turn; the last one ends the row."""
    turns: tuple[int, ...]
    """The turn that each span is, in the same order."""
    holes: tuple[int, ...] = ()
    """Positions within the spans that the template marks as not generated."""

    @property
    def prompt_length(self) -> int:
        """Tokens before the last trained turn: what inference feeds."""
        return self.spans[-1][0]


def _turn_text(turn: Turn) -> str:
    return turn.content + (ANSWER_BREAK if turn.role == "user" else TURN_BREAK)


def _prompt_turns(example: Example) -> tuple[Turn, ...]:
    """What stands before the answer: all turns when there is none yet."""
    return example.turns[: example.targets[-1]] if example.targets else example.turns


def render_rows(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, layout: TurnLayout
) -> list[Rendered | None]:
    """Render conversations in one batch. None for a row without a target turn. Raises `DataError` with the place."""
    for index, example in enumerate(examples):
        if 0 in example.targets:
            raise _no_question(example, index)
    if layout.style == "plain":
        return [_render_plain(row, parts, layout) for row, parts in _plain_parts(examples, tokenizer)]
    rows = [_chat_texts(example, index, tokenizer, layout) for index, example in enumerate(examples)]
    flat = [text for row in rows for pair in row for text in pair]
    ids = iter(encode_texts(tokenizer, flat))
    rendered: list[Rendered | None] = []
    for index, (example, row) in enumerate(zip(examples, rows, strict=True)):
        pieces = [(pair, single_bos(next(ids), layout.bos), single_bos(next(ids), layout.bos)) for pair in row]
        rendered.append(_assemble(example, index, pieces, tokenizer, layout) if pieces else None)
    return _with_holes(examples, rendered, tokenizer, layout) if layout.markers else rendered


def _plain_parts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Example, list[tuple[list[int], list[int]]]]]:
    """For every turn its ids alone and its ids with what follows it."""
    flat = [text for row in examples for turn in row.turns for text in (turn.content, _turn_text(turn))]
    ids = iter(encode_texts(tokenizer, flat))
    return [(row, [(next(ids), next(ids)) for _ in row.turns]) for row in examples]


def _render_plain(example: Example, parts: list[tuple[list[int], list[int]]], layout: TurnLayout) -> Rendered | None:
    if not example.targets:
        return None
    last = example.targets[-1]
    ids = list(layout.begin)
    spans, turns = [], []
    for position in range(last):
        content, followed = parts[position]
        if position in example.targets and content and followed[: len(content)] == content:
            spans.append((len(ids), len(ids) + len(content)))
            turns.append(position)
        ids += followed
    start = len(ids)
    ids += [*parts[last][0], layout.end_id]
    return Rendered(ids, (*spans, (start, len(ids))), (*turns, last))


def _chat_texts(
    example: Example, index: int, tokenizer: PreTrainedTokenizerBase, layout: TurnLayout
) -> list[tuple[str, str]]:
    """For every trained turn the inference prompt and the training text."""
    pairs = []
    for target in example.targets:
        try:
            more: Any = {"tools": example.tools, "reasons": bool(example.turns[target].reasoning)}
            prompt = render(tokenizer, example.turns[:target], layout, prompt=True, **more)
            full = render(tokenizer, example.turns[: target + 1], layout, prompt=False, **more)
        except RENDER_ERRORS as error:
            raise _refused(example, index, error) from error
        if not layout.end_in_template and layout.tail:
            full = full.removesuffix(layout.tail)
        pairs.append((prompt, full))
    return pairs


def _no_question(example: Example, index: int) -> DataError:
    return DataError("the first turn is an answer: there is nothing to answer.", place=where(example, index))


def _refused(example: Example, index: int, error: Exception) -> DataError:
    roles = " ".join(turn.role for turn in example.turns)
    return DataError(
        f"the chat template refuses this conversation ({roles}): {error}.",
        place=where(example, index),
        remedy="Bring its roles into the order the model knows, or use the plain layout (--plain).",
    )


Piece = tuple[tuple[str, str], list[int], list[int]]


def _assemble(
    example: Example, index: int, pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, layout: TurnLayout
) -> Rendered:
    """The ids of the last piece with the spans of those earlier pieces that stand in it unchanged."""
    answers = [_answer_ids(piece, tokenizer, layout) for piece in pieces]
    prompt_ids, last = pieces[-1][1], answers[-1]
    if last is None:
        raise DataError(
            "the chat template writes the prompt differently once the answer follows, so training and inference "
            "would not see the same prefix.",
            place=where(example, index),
            remedy="Look at the row for text that the template treats specially (such as <think>), or use --plain.",
        )
    ids = [*prompt_ids, *last, *([] if layout.end_in_template else [layout.end_id])]
    spans, turns = [], []
    for turn, (_, prefix, _), answer in zip(example.targets[:-1], pieces[:-1], answers[:-1], strict=True):
        start, end = len(prefix), len(prefix) + len(answer or ())
        if answer and ids[:start] == prefix and ids[start:end] == answer and end <= len(prompt_ids):
            spans.append((start, end))
            turns.append(turn)
    return Rendered(ids, (*spans, (len(prompt_ids), len(ids))), (*turns, example.targets[-1]))


def _answer_ids(piece: Piece, tokenizer: PreTrainedTokenizerBase, layout: TurnLayout) -> list[int] | None:
    """The ids after the prompt, up to and including the end of turn; None when the texts do not continue."""
    (prompt, full), prompt_ids, full_ids = piece
    if not full.startswith(prompt):
        return None
    if full_ids[: len(prompt_ids)] == prompt_ids:
        rest: list[int] | None = full_ids[len(prompt_ids) :]
    else:
        rest = _continuation(full[len(prompt) :], prompt_ids, full_ids, tokenizer)
    if rest is None or not layout.end_in_template or layout.end_id not in rest:
        return rest
    return rest[: len(rest) - rest[::-1].index(layout.end_id)]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _continuation(
    rest: str, prompt_ids: list[int], full_ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[int] | None:
    """Ids of ``rest`` that, after ``prompt_ids``, give the same text as ``full_ids``."""
    text = _decoded(tokenizer, full_ids)
    for anchor in _ANCHORS:
        head, both = encode_texts(tokenizer, [anchor, anchor + rest])
        if both[: len(head)] == head and _decoded(tokenizer, [*prompt_ids, *both[len(head) :]]) == text:
            return both[len(head) :]
    return None


def _with_holes(
    examples: Sequence[Example],
    rows: list[Rendered | None],
    tokenizer: PreTrainedTokenizerBase,
    layout: TurnLayout,
) -> list[Rendered | None]:
    """Take out what lies between two marked stretches of one turn: the template says it is not generated."""
    marked: list[Rendered | None] = []
    for example, row in zip(examples, rows, strict=True):
        if row is None:
            marked.append(None)
            continue
        full: Any = tokenizer.apply_chat_template(
            messages_of(example.turns[: example.targets[-1] + 1], layout),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **given(layout, example.tools, reasons=example.reasons),
        )
        extra = len(full["input_ids"]) - len(single_bos(full["input_ids"], layout.bos))
        ids, mask = full["input_ids"][extra:], full["assistant_masks"][extra:]
        common = row.ids if layout.end_in_template else row.ids[:-1]
        holes = _holes(row.spans, mask) if list(ids[: len(common)]) == common else ()
        marked.append(replace(row, holes=holes))
    return marked


def _holes(spans: Sequence[tuple[int, int]], mask: Sequence[int]) -> tuple[int, ...]:
    holes: list[int] = []
    for start, end in spans:
        inside = [position for position in range(start, min(end, len(mask))) if mask[position]]
        if inside:
            holes += [position for position in range(inside[0], inside[-1]) if not mask[position]]
    return tuple(holes)


def prompt_ids(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, layout: TurnLayout) -> list[list[int]]:
    """The ids that inference feeds for each conversation, uncut.

    For the chat layout this is transformers' own route (``apply_chat_template`` with tokenization), not the code
    that lays out training rows, so that comparing the two checks something.
    """
    if layout.style == "plain":
        texts = [[_turn_text(turn) for turn in _prompt_turns(row)] for row in examples]
        ids = iter(encode_texts(tokenizer, [text for row in texts for text in row]))
        return [[*layout.begin, *(token for _ in row for token in next(ids))] for row in texts]
    prompts = []
    for index, example in enumerate(examples):
        turns = _prompt_turns(example)
        if not turns:
            raise _no_question(example, index)
        try:
            ids_of_row = tokenizer.apply_chat_template(
                messages_of(turns, layout),
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **given(layout, example.tools, reasons=example.reasons),
            )
        except RENDER_ERRORS as error:
            raise _refused(example, index, error) from error
        prompts.append(single_bos([int(token) for token in ids_of_row], layout.bos))
    return prompts


def stop_ids(tokenizer: PreTrainedTokenizerBase, *, plain: bool = False) -> tuple[int, ...]:
    """The ids at which generation ends: the end of turn that is trained, and the end-of-text token."""
    end = layout_of(tokenizer, plain=plain).end_id
    eos = tokenizer.eos_token_id
    return (end,) if eos is None or int(eos) == end else (end, int(eos))


def answer_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, layout: TurnLayout) -> str:
    """The answer in generated ids: up to the first stop token, without reasoning, special tokens and template's lead.

    The lead goes first, because it may hold special tokens with text between them (``<|channel|>final<|message|>``).
    """
    stops = {layout.end_id, tokenizer.eos_token_id}
    length = next((position for position, token in enumerate(ids) if token in stops), len(ids))
    text = bare_answer(_decoded(tokenizer, ids[:length]), layout)
    text = text if layout.reasoning is None else layout.reasoning.answer_in(text)
    for special in tokenizer.all_special_tokens:
        text = text.replace(str(special), "")
    return text.strip()


def bare_answer(text: str, layout: TurnLayout) -> str:
    """``text`` without what the template itself writes around an answer."""
    if lead := layout.lead.strip():
        text = text.strip().removeprefix(lead)
    return text.removesuffix(layout.closing) if layout.closing else text


def prompt_with_examples(example: Example, shots: Sequence[Example]) -> Example:
    """``example`` after k solved examples: its system turn, then each shot's question and answer, then its own turns.

    The shots are context, never trained on. Raises `UsageError` for a shot without an answer and for plain text.
    """
    example, shots = as_text(example), [as_text(shot) for shot in shots]
    turns = list(example.turns)
    if any(row.turns and row.turns[0].role == "text" for row in (example, *shots)) and example.label is None:
        raise UsageError("plain text has no questions and answers to show in a prompt.")
    system = turns[:1] if turns and turns[0].role == "system" else []
    shown: list[Turn] = []
    for shot in shots:
        if not shot.targets and shot.label is None:
            raise UsageError("an example without an answer cannot be shown as solved.", place=shot.place)
        question = shot.turns[: shot.targets[-1]] if shot.targets else asked(shot.turns)
        shown += [turn for turn in question if turn.role != "system"]
        shown.append(Turn("assistant", label_text(shot.label) if not shot.targets else shot.answer))
    own = turns[len(system) :] if example.targets else asked(turns[len(system) :])
    return replace(
        example,
        turns=(*system, *shown, *own),
        targets=tuple(target + len(shown) for target in example.targets),
    )
