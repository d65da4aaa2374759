"""How long the rows are in tokens: counted with the model's own tokenizer on a sample, or estimated from characters.

The chat template is rendered (in jinja's sandbox) around one short conversation; what it adds is added to every row.
It is rendered around some rows as well, to see how many tokens the rows of an update have in common at their
beginning: training computes those once. The tokenizer is the Rust one that ``tokenizer.json`` describes, so nothing
heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.catalogue.models import ModelKind
from foretune.cost.operations import RowTokens
from foretune.data.reasoning import reasoned_answer
from foretune.data.row_label import asked
from foretune.data.tools import as_text
from foretune.errors import ModelError, Place
from foretune.seeding import generator

if TYPE_CHECKING:
    from foretune.data.example import Example

SAMPLE_ROWS = 10_000
FERTILITY_ROWS = 1_000
_SAMPLE_CHARACTERS = 4_000_000  # what the tokenizer does in about a second on two cores
_CHARACTERS_PER_TOKEN = 4.0  # English under the usual vocabularies
_TEMPLATE_TOKENS = 24  # what a chat template adds to a row of two turns where it cannot be rendered
_LABEL_TOKENS = 1
_MOST_ANSWERS = 0.95
_SPECIAL_TOKENS = 2  # an encoder's first and last token
_HEAD_GROUPS, _HEAD_ROWS = 16, 16  # updates of rows whose common beginning is looked at, and rows in one
_QUESTION, _ANSWER = "What is it?", "It is a test."


@dataclass(frozen=True)
class RowCount:
    """The mean row, and how it was found."""

    row: RowTokens
    how: str
    sampled: int
    reasoned: int = 0
    """Tokens that 19 of 20 answers have at most, reasoning included; 0 where no row reasons before it answers"""


def count_tokens(
    examples: Sequence[Example], *, kind: ModelKind, tokenizer: Path | None, context_tokens: int, seed: int = 0
) -> RowCount:
    """Token statistics of ``examples`` (at least one), cut to ``context_tokens``.

    ``tokenizer`` is a ``tokenizer.json`` or None. Raises `ModelError` for a damaged one.
    """
    import numpy as np

    sample = [as_text(example) for example in _sample(examples, seed)]
    prompts = [_prompt(example) for example in sample]
    answers = [reasoned_answer(example) if example.targets else "" for example in sample]
    head = 0.0
    if tokenizer is None:
        read = [
            np.ceil(np.array([len(text) for text in texts]) / _CHARACTERS_PER_TOKEN) for texts in (prompts, answers)
        ]
        extra, how = float(_TEMPLATE_TOKENS), f"estimated: {_CHARACTERS_PER_TOKEN:g} characters a token"
        head = extra if kind == "causal" else 0.0
    else:
        counter = _load(tokenizer)
        read = [np.array([len(e.ids) for e in counter.encode_batch(texts, add_special_tokens=False)], dtype=float)
                for texts in (prompts, answers)]  # fmt: skip
        write = _writer(tokenizer.parent)
        extra, how = _template_tokens(write, counter), "counted with the model's tokenizer"
        head = _head_tokens(sample, write, counter, seed) if kind == "causal" else 0.0
    prompt, answer = read
    scored = answer + 1 if sample[0].targets else np.full_like(prompt, _LABEL_TOKENS)  # the end of turn is scored
    if sample[0].turns and sample[0].turns[0].role == "text":
        prompt, scored, extra, head = np.zeros_like(prompt), prompt, 1.0, 0.0
    if kind == "encoder":
        extra = float(_SPECIAL_TOKENS)
    reasoned = int(np.quantile(scored, _MOST_ANSWERS)) if any(example.reasons for example in sample) else 0
    total = np.minimum(prompt + extra + scored, context_tokens)
    scored = np.minimum(scored, total)
    unscored = float((total - scored).mean())
    return RowCount(
        RowTokens(
            prompt=unscored,
            answer=float(scored.mean()),
            mean_square=float((total**2).mean()),
            longest=max(1, int(total.max())),
            head=min(head, max(0.0, unscored - 1)),
            exact=tokenizer is not None,
        ),
        how,
        len(sample),
        reasoned,
    )


def fertility(examples: Sequence[Example], tokenizer: Path | None) -> dict[str, float]:
    """Tokens of the answers for one token of their prompts, and bytes of an answer's token; empty without tokenizer.

    For translations this is the price of a language under a vocabulary made for another one.
    """
    if tokenizer is None or not examples:
        return {}
    counter = _load(tokenizer)
    sample = _sample(examples[:FERTILITY_ROWS], 0)
    texts = [[example.prompt for example in sample], [example.answer for example in sample]]
    prompts, answers = (sum(len(e.ids) for e in counter.encode_batch(part, add_special_tokens=False)) for part in texts)
    size = sum(len(text.encode()) for text in texts[1])
    return {"fertility": answers / max(prompts, 1), "bytes_per_token": size / max(answers, 1)}


def _sample(examples: Sequence[Example], seed: int) -> list[Example]:
    """At most `SAMPLE_ROWS` rows, drawn without order, cut where the characters run out."""
    chosen = list(examples)
    if len(chosen) > SAMPLE_ROWS:
        order = generator(seed, "plan", "rows").choice(len(chosen), SAMPLE_ROWS, replace=False)
        chosen = [chosen[int(i)] for i in order]
    spent = 0
    for position, example in enumerate(chosen):
        spent += sum(len(turn.content) + len(turn.reasoning) for turn in example.turns)
        if spent > _SAMPLE_CHARACTERS:
            return chosen[: position + 1]
    return chosen


def _prompt(example: Example) -> str:
    return example.prompt if example.targets or example.label is not None else "\n".join(
        turn.content for turn in example.turns
    )  # fmt: skip


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception for every kind of damage
        raise ModelError(
            f"this tokenizer cannot be read ({error}).", place=Place(path), remedy="Fetch the model again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


Writer = Callable[[Sequence[dict[str, str]], bool], str]
"""Messages and whether to end where the answer begins → the text that a chat template makes of them."""


def _writer(folder: Path) -> Writer | None:
    """The model's chat template, or None where it has none. It raises what foreign programs raise."""
    template = _template(folder)
    if template is None:
        return None
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: pattern

    def write(messages: Sequence[dict[str, str]], prompt: bool) -> str:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="", eos_token="", tools=None
        )

    return write


def _written(write: Writer, messages: Sequence[dict[str, str]], *, prompt: bool) -> str | None:
    """The text of ``messages``, or None where the template cannot be rendered."""
    from jinja2 import TemplateError

    try:
        return write(messages, prompt)
    except (TemplateError, TypeError, ValueError, KeyError):  # templates are foreign programs; a plan goes on
        return None


def _template_tokens(write: Writer | None, counter: Any) -> float:
    """Tokens that the chat template adds to a row of one question and one answer; 2 where there is no template."""
    if write is None:
        return float(_SPECIAL_TOKENS)
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    text = _written(write, messages, prompt=False)
    if text is None:
        return float(_TEMPLATE_TOKENS)
    bare = sum(len(counter.encode(part, add_special_tokens=False).ids) for part in (_QUESTION, _ANSWER))
    rendered = len(counter.encode(text, add_special_tokens=False).ids)
    return float(max(0, rendered - bare - 1))  # the end of turn is counted with the answer


def _head_tokens(sample: Sequence[Example], write: Writer | None, counter: Any, seed: int) -> float:
    """Tokens that the rows of an update share at their beginning, on average over some updates.

    The rule is that of `data.encode.shared_head`: the longest common prefix, and each row keeps one token of its own
    before its answer.
    """
    order = generator(seed, "plan", "head").permutation(len(sample))[: _HEAD_GROUPS * _HEAD_ROWS]
    texts = [_before_answer(sample[int(i)], write) for i in order]
    ids = [encoding.ids for encoding in counter.encode_batch(texts, add_special_tokens=False)]
    groups = [ids[start : start + _HEAD_ROWS] for start in range(0, len(ids), _HEAD_ROWS)]
    whole = [group for group in groups if len(group) == _HEAD_ROWS] or groups
    return sum(map(_common_prefix, whole)) / len(whole)


def _before_answer(example: Example, write: Writer | None) -> str:
    """What the model reads before the first answer that is trained."""
    turns = example.turns[: example.targets[0]] if example.targets else asked(example.turns)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    text = None if write is None else _written(write, messages, prompt=True)
    return "\n".join(message["content"] for message in messages) if text is None else text


def _common_prefix(rows: Sequence[list[int]]) -> int:
    """Tokens that all rows begin with, at least one token of each row left over."""
    first, last = min(rows), max(rows)  # in the order of lists, all others lie between these two
    longest = max(0, min(map(len, rows)) - 1)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i == longest), longest)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _template(folder: Path) -> str | None:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None
