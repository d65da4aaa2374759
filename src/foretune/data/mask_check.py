"""The self-check of encoded rows, run before any training: what is wrong here never shows in a loss curve.

Every row is compared with what it was made from, by another route than the one that made it: the prompt is
rendered and tokenized again as inference does it, the trained tokens are decoded and read as the answer. One
failing row stops the run, with its place in the file and its tokens coloured by mask.

*Documented white space:* a decoded answer counts as equal when it equals the answer apart from white space
(templates trim answers; sentence-piece tokenizers drop or add a space at the front), or when the tokenizer itself
cannot give the answer back (lower-casing, unknown characters); both are counted and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.catalogue.models import ModelKind
from foretune.data.coloured import coloured
from foretune.data.encode import EncodedRow, inference_ids
from foretune.data.example import Example, Turn
from foretune.data.layout import TurnLayout, control_texts, encode_texts, layout_of, single_bos
from foretune.data.reasoning import AS_TEXT, REASONING_LEFT_OUT, any_reasoning, reasoning_as_text
from foretune.data.row_label import LABELLED, as_conversation, is_text, label_number, where
from foretune.data.template import bare_answer
from foretune.data.tools import as_text, parts_of_calls, said_before, uses_tools
from foretune.errors import DataError
from foretune.units import format_count, format_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_LIMIT = 0.01
"""Share of unknown tokens above which the report warns: the model cannot read that part of the data."""
TOOLS_AS_TEXT = (
    "the chat template has no place for tools where calls end as answers do: tools, calls and results are written as "
    "text (offered in the system turn, results as the user's); serve the model with the same text"
)
_SHOWN_PROBLEMS = 5
_SHOWN_CHARACTERS = 1500
"""Of a failing row, in an error: enough to see a template around a short text."""


@dataclass
class MaskReport:
    """What the check counted. All counts are rows unless they say tokens."""

    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest: int = 0
    """Tokens of the longest row"""
    longest_target: int = 0
    """Most trained tokens in one row"""
    truncated: int = 0
    truncated_tokens: int = 0
    cut_answers: int = 0
    """Answers longer than the context: cut on the right, their end of turn is not trained"""
    cut_tokens: int = 0
    empty_answers: int = 0
    unknown_tokens: int = 0
    whitespace: int = 0
    """Rows whose decoded answer differs from the answer in white space"""
    lossy: int = 0
    """Rows whose answer the tokenizer cannot give back"""
    control: int = 0
    """Rows whose prompt holds a control token (such as an end of turn) as text"""
    untrained_turns: int = 0
    """Earlier answers left out of the mask because later in the conversation they are written in other tokens"""
    notes: list[str] = field(default_factory=list)

    @property
    def unknown_share(self) -> float:
        """Unknown tokens among all tokens."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with the unknown share."""
        return {**asdict(self), "unknown_share": self.unknown_share}

    def lines(self) -> list[str]:
        """The report for a reader: what was counted, then notes."""
        return self.counted() + self.notes

    def counted(self) -> list[str]:
        """Totals, then only those counts that are worth knowing."""
        said = [
            f"{format_count(self.rows)} rows, {format_count(self.tokens)} tokens, of which "
            f"{format_count(self.target_tokens)} are trained; longest row {format_count(self.longest)} tokens"
        ]
        counted = (
            (self.truncated, f"rows with a shortened prompt ({format_count(self.truncated_tokens)} tokens cut)"),
            (self.cut_answers, f"answers cut at the context's end ({format_count(self.cut_tokens)} tokens): "
             "their end of turn is not trained"),
            (self.empty_answers, "empty answers"),
            (self.whitespace, "answers that differ from the data in white space"),
            (self.lossy, "answers that the tokenizer cannot give back unchanged"),
            (self.control, "prompts that hold a control token as text"),
            (self.untrained_turns, "earlier answers not trained: in later turns they are written differently"),
        )  # fmt: skip
        return said + [f"{format_count(number)} {text}" for number, text in counted if number]


def check_encoding(
    examples: Sequence[Example],
    rows: Sequence[EncodedRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: ModelKind,
    task: str,
    labels: Sequence[str] = (),
    context_tokens: int,
    plain: bool = False,
    vocabulary: int | None = None,
) -> MaskReport:
    """Check every row of ``encode_rows(examples, …)`` (same settings) and count.

    ``vocabulary`` is the number of rows of the model's embedding, if known; the tokenizer's size otherwise. Raises
    `DataError` that names the first failing rows and shows the first one's tokens.
    """
    if len(examples) != len(rows):
        raise DataError(f"{len(examples)} examples but {len(rows)} encoded rows.")
    layout = layout_of(tokenizer, plain=plain) if kind == "causal" else None
    checker = _Checker(tokenizer, kind, task, labels, context_tokens, layout, vocabulary or len(tokenizer))
    failures: list[tuple[int, str]] = []
    for index, (example, row) in enumerate(zip(examples, rows, strict=True)):
        if problem := checker.problem(example, index, row):
            failures.append((index, problem))
    if failures:
        raise _failure(examples, rows, failures, tokenizer)
    report = checker.report
    if layout is not None:
        report.notes += layout.notes
        if not layout.tools and any(map(uses_tools, examples)):
            report.notes.append(TOOLS_AS_TEXT)
    if any(map(any_reasoning, examples)):
        reasoning = AS_TEXT if layout is None else layout.reasoning
        usual = {} if layout is None else layout.variables
        report.notes.append(REASONING_LEFT_OUT if reasoning is None else reasoning.note(usual))
    if report.unknown_share > UNKNOWN_LIMIT:
        report.notes.append(f"{format_share(report.unknown_share)} of the tokens are unknown to the tokenizer")
    return report


def _failure(
    examples: Sequence[Example],
    rows: Sequence[EncodedRow],
    failures: Sequence[tuple[int, str]],
    tokenizer: PreTrainedTokenizerBase,
) -> DataError:
    index, problem = failures[0]
    others = "".join(f"\n  {where(examples[i], i)}: {text}" for i, text in failures[1:_SHOWN_PROBLEMS])
    more = f"\n{len(failures)} of {len(rows)} rows fail; the first ones:{others}" if others else ""
    shown = coloured(rows[index], tokenizer, colour=False, characters=_SHOWN_CHARACTERS)
    return DataError(
        f"the encoded row fails its check: {problem}{more}\n{shown}\n",
        place=where(examples[index], index),
        remedy="Nothing was trained. Correct the row or take it out of the file.",
    )


class _Checker:
    """Checks rows one by one and counts as it goes."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kind: ModelKind,
        task: str,
        labels: Sequence[str],
        context_tokens: int,
        layout: TurnLayout | None,
        vocabulary: int,
    ) -> None:
        self.tokenizer, self.kind, self.task, self.labels = tokenizer, kind, task, labels
        self.context_tokens, self.layout, self.vocabulary = context_tokens, layout, vocabulary
        self.control = control_texts(tokenizer)
        self.report = MaskReport()

    def problem(self, example: Example, index: int, row: EncodedRow) -> str | None:
        """What is wrong with a row, or None; counts it when nothing is."""
        labelled = as_conversation(example) if self.task in LABELLED and self.kind != "encoder" else example
        labelled = as_text(reasoning_as_text(labelled)) if self.layout is None else self.layout.told(labelled)
        problem = self._shape(row) or self._label(example, index, row)
        if problem is None and self.kind == "causal" and self.layout is not None:
            problem = self._text(labelled, row) if is_text(labelled) else self._answer(labelled, row, self.layout)
        elif problem is None:
            problem = self._encoder_input(example, row)
            if problem is None and row.decoder_ids is not None:
                problem = self._decoder(labelled, row)
        if problem is None:
            self.report.untrained_turns += max(0, len(example.targets) - len(labelled.targets))
            self._count(labelled, row)
        return problem

    def _shape(self, row: EncodedRow) -> str | None:
        """Lengths, positions and ids that hold for every kind of row."""
        parts = [row.ids] if row.decoder_ids is None else [row.ids, row.decoder_ids]
        for ids in parts:
            if len(ids) == 0:
                return "it has no tokens."
            if int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary:
                return f"it has the token id {int(ids.max())}, but the vocabulary has {self.vocabulary} entries."
            if len(ids) > self.context_tokens:
                return f"it has {len(ids)} tokens, but the context has {self.context_tokens}."
        if len(row.target_mask) != len(row.ids):
            return f"{len(row.target_mask)} mask entries for {len(row.ids)} tokens."
        if row.target_mask[0]:
            return "its first token is a target, but nothing predicts it."
        if self.kind != "encoder" and row.targets == 0:
            return "no token is trained."
        bos = self.tokenizer.bos_token_id
        if len(single_bos(row.ids.tolist(), bos)) != len(row.ids):
            return "it begins with two beginning-of-text tokens."
        return None

    def _label(self, example: Example, index: int, row: EncodedRow) -> str | None:
        expected = label_number(example, index, self.task, self.labels)
        return None if expected == row.label else f"its label is {row.label}, but the data says {expected}."

    def _answer(self, example: Example, row: EncodedRow, layout: TurnLayout) -> str | None:
        """A conversation: prefix, end of turn, and that what is trained is what the data says."""
        start = row.prompt_length
        if not 0 < start < len(row.ids) or not row.target_mask[start:].any():
            return "cutting took the whole answer."
        if not self._earlier_answers(example, row, layout):
            return "tokens of the prompt are trained that are no earlier answer."
        limit = start if row.truncated else None
        fed = inference_ids(example, self.tokenizer, context_tokens=limit, layout=layout)
        if not np.array_equal(fed, row.ids[:start]):
            return f"training and inference see different prompts ({_difference(row.ids[:start], fed)})."
        target = [int(t) for t in row.ids[start:]]
        stops = {layout.end_id, int(self.tokenizer.eos_token_id or layout.end_id)}
        if row.cut == 0:
            if target[-1] != layout.end_id or not row.target_mask[-1]:
                return "the end of the turn is not trained."
            target.pop()
        inside = next((token for token in target if token in stops), None)
        if inside is not None:
            name = self.tokenizer.convert_ids_to_tokens(inside)
            return f"its answer holds {name!r} as text: generation would stop there."
        if not row.target_mask[start]:
            return "the first token of the answer is not trained."
        if not layout.markers and not row.target_mask[start:].all():
            return "a token inside the answer is not trained."
        trained = [token for token, mask in zip(target, row.target_mask[start:], strict=False) if mask]
        problem = self._same_text(_said(example.turns[example.targets[-1]], layout), trained, row, layout)
        return None if problem and self._calls(example.turns[example.targets[-1]], trained) else problem

    def _earlier_answers(self, example: Example, row: EncodedRow, layout: TurnLayout) -> bool:
        """Whether every trained stretch of the prompt is an earlier answer with its end; counts what is not trained.

        In rows that were not cut, each of them must also begin exactly where its own inference prompt ends.
        """
        mask = np.concatenate([[False], row.target_mask[: row.prompt_length], [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(mask)).reshape(-1, 2)
        answers = [_said(example.turns[turn], layout) for turn in example.targets[:-1]]
        answers += [self._decode(ids) for ids in encode_texts(self.tokenizer, answers)] if len(edges) else []
        expected = {_bare(answer) for answer in answers}
        ends = layout.style == "chat" and layout.end_in_template
        starts = self._starts(example, row, layout) if len(edges) and not row.truncated else None
        found, stretch = 0, list[int]()
        for start, end in edges:
            if not stretch and starts is not None and int(start) not in starts:
                return False
            stretch += row.ids[start:end].tolist()  # markers may have split one answer into several stretches
            if ends and stretch[-1] != layout.end_id:
                continue
            text = bare_answer(self._decode(stretch[:-1] if ends else stretch), layout)
            earlier = (example.turns[turn] for turn in example.targets[:-1])
            if _bare(text) not in expected and not any(self._calls(turn, stretch) for turn in earlier):
                return False
            found, stretch = found + 1, []
        if not row.truncated:
            self.report.untrained_turns += len(example.targets) - 1 - found
        return not stretch

    def _starts(self, example: Example, row: EncodedRow, layout: TurnLayout) -> set[int]:
        """Where the earlier answers of an uncut row may begin: the ends of those inference prompts that it holds."""
        prompts = (
            inference_ids(replace(example, targets=(turn,)), self.tokenizer, layout=layout)
            for turn in example.targets[:-1]
        )
        return {len(prompt) for prompt in prompts if np.array_equal(prompt, row.ids[: len(prompt)])}

    def _same_text(self, answer: str, target: Sequence[int], row: EncodedRow, layout: TurnLayout | None) -> str | None:
        text = self._decode(target)
        if layout is not None:
            text = bare_answer(text, layout)
        if text == answer:
            return None
        expected, found = _bare(answer), _bare(text)
        back = _bare(self._decode(encode_texts(self.tokenizer, [answer])[0]))
        if row.cut and (expected.startswith(found.rstrip("\ufffd")) or back.startswith(found.rstrip("\ufffd"))):
            return None
        if found == expected:
            self.report.whitespace += text.strip() != answer.strip()
            return None
        if found == back:
            self.report.lossy += 1
            return None
        return f"what is trained reads {_short(text)!r}, but the answer is {_short(answer)!r}."

    def _calls(self, turn: Turn, ids: Sequence[int]) -> bool:
        """Whether the tokens hold a turn's calls in a template's own words: what it says, names, keys and values."""
        text = _bare(self._decode(ids))
        return bool(turn.calls) and all(_bare(part) in text for part in parts_of_calls(turn))

    def _text(self, example: Example, row: EncodedRow) -> str | None:
        """Plain text: everything but the first token is trained, and reads as the text."""
        if not row.target_mask[1:].all():
            return "plain text with tokens that are not trained."
        body = [int(token) for token in row.ids[len(self.layout.begin) if self.layout else 0 :]]
        if row.cut == 0:
            if body[-1] != self.tokenizer.eos_token_id:
                return "the end of the text is not trained."
            body.pop()
        return self._same_text(example.turns[0].content, body, row, None)

    def _encoder_input(self, example: Example, row: EncodedRow) -> str | None:
        if row.target_mask.any():
            return "encoder tokens are marked as targets."
        limit = self.context_tokens if row.truncated else None
        fed = inference_ids(example, self.tokenizer, kind=self.kind, context_tokens=limit)
        if not np.array_equal(fed, row.ids):
            return f"training and inference see different inputs ({_difference(row.ids, fed)})."
        return None

    def _decoder(self, example: Example, row: EncodedRow) -> str | None:
        target = [] if row.decoder_ids is None else [int(token) for token in row.decoder_ids]
        if row.cut == 0 and self.tokenizer.eos_token_id not in target[-2:]:
            return "the end of the answer is not trained."
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        return self._same_text(example.answer, [token for token in target if token not in special], row, None)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _count(self, example: Example, row: EncodedRow) -> None:
        report, unknown = self.report, self.tokenizer.unk_token_id
        every = row.ids if row.decoder_ids is None else np.concatenate([row.ids, row.decoder_ids])
        report.rows += 1
        report.tokens += len(every)
        report.target_tokens += row.targets
        report.longest = max(report.longest, len(row.ids))
        report.longest_target = max(report.longest_target, row.targets)
        report.truncated += row.truncated > 0
        report.truncated_tokens += row.truncated
        report.cut_answers += row.cut > 0
        report.cut_tokens += row.cut
        report.empty_answers += self.kind != "encoder" and row.answer_bytes == 0
        if unknown is not None and unknown != self.tokenizer.eos_token_id:
            report.unknown_tokens += int((every == unknown).sum())
        prompt = "\n".join(said_before(turn) for turn in example.turns)
        report.control += any(text in prompt for text in self.control)


def _said(turn: Turn, layout: TurnLayout) -> str:
    """What a trained turn has to read: its answer, behind its reasoning as the template writes that."""
    return turn.content if layout.reasoning is None else layout.reasoning.written(turn)


def _bare(text: str) -> str:
    return "".join(text.split())


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _difference(row: np.ndarray[Any, Any], fed: np.ndarray[Any, Any]) -> str:
    common = min(len(row), len(fed))
    differing = np.flatnonzero(row[:common] != fed[:common])
    return f"from token {int(differing[0]) if len(differing) else common} on; {len(row)} and {len(fed)} tokens"
