"""Does an export answer as what was evaluated? Greedy tokens and top logits on probe prompts, before and after.

The reference answers each probe greedily. The export, loaded fresh from its folder with its own tokenizer, is shown
prompt and reference answer together and must, at each position, prefer the reference's token with the same logit.
Where every position agrees, greedy decoding gives the same tokens.

Tolerance: a logit may differ by ``RELATIVE[dtype]`` times its size (at least one). The figures allow for rounding
of the export's number type accumulated over some tens of layers: 2**-24, 2**-11 and 2**-8 a rounding for float32,
float16 and bfloat16, with a margin of about ten roundings, and a thousandth for float32, whose sums depend on their
order. Another token than the reference's is forgiven only where the reference itself held the two within twice that
tolerance: a tie that rounding may break either way. A wrongly merged or damaged model is off by far more.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.errors import ModelError, Place
from foretune.export import loading

if TYPE_CHECKING:
    import torch
    from torch import nn

RELATIVE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 4e-2}
ANSWER_TOKENS = 12
"""Greedy tokens per probe: enough to leave the first, template-driven ones behind."""
POSITIONS_LEFT = 32
"""For the answer, and for models that begin to count at 2"""
DEFAULT_PROBES = (
    "Name one use of a paper clip.",
    "What comes after Tuesday?",
    "Write the word garden backwards.",
    "Which is heavier, a stone or a feather?",
)


@dataclass(frozen=True)
class ProbeAnswer:
    """The reference's answer to a probe: token ids in and out, and per token the top logit and its lead."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: tuple[float, ...]
    leads: tuple[float, ...]
    """By how much the top logit led the second (infinite where there is one only)."""


@dataclass(frozen=True)
class Verification:
    """How the check went: probes and tokens compared, ties broken, the largest relative logit difference."""

    probes: int
    tokens: int
    ties: int
    largest: float
    tolerance: float

    @property
    def detail(self) -> str:
        """One line for the record and the report."""
        ties = f", {self.ties} near-ties broken the other way" if self.ties else ""
        return (
            f"{self.tokens} greedy tokens on {self.probes} probes, largest logit difference "
            f"{self.largest:.1e} of {self.tolerance:.0e} allowed{ties}"
        )


def encode(tokenizer: Any, probe: str) -> list[int]:
    """A probe as one user turn through the chat template, or as plain text where the tokenizer has none."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": probe}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    else:
        ids = tokenizer(probe)["input_ids"]
    return [int(token) for token in ids]


def fitting(probes: Sequence[str], tokenizer: Any, config: Mapping[str, Any], learnt: int = 0) -> tuple[str, ...]:
    """The probes that leave `POSITIONS_LEFT` of a model's positions, behind ``learnt`` ones of an adapter.

    ``config`` is that of ``config.json``. `DEFAULT_PROBES` where none do.
    """
    own = config.get("text_config") or config
    most = own.get("max_position_embeddings", own.get("n_positions"))
    room = math.inf if most is None else most - learnt - POSITIONS_LEFT
    return tuple(probe for probe in probes if len(encode(tokenizer, probe)) <= room) or DEFAULT_PROBES


def answer_probes(
    model: nn.Module, tokenizer: Any, probes: Sequence[str], *, tokens: int = ANSWER_TOKENS
) -> tuple[ProbeAnswer, ...]:
    """The reference: ``model``'s greedy answers. Run on what was evaluated, before or next to the export."""
    import torch

    with torch.inference_mode():
        return tuple(_answer(model, encode(tokenizer, probe), tokens) for probe in probes)


def _answer(model: Any, prompt: list[int], limit: int) -> ProbeAnswer:
    import torch

    ends = _end_tokens(model)
    tokens: list[int] = []
    logits: list[float] = []
    leads: list[float] = []
    for _ in range(limit if _generates(model) else 1):
        row = _logits(model, prompt, tokens)[-1]
        top = torch.topk(row, min(2, row.numel()))
        tokens.append(int(top.indices[0]))
        logits.append(float(top.values[0]))
        leads.append(float(top.values[0] - top.values[1]) if row.numel() > 1 else float("inf"))
        if tokens[-1] in ends:
            break
    return ProbeAnswer(tuple(prompt), tuple(tokens), tuple(logits), tuple(leads))


def _generates(model: Any) -> bool:
    head = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not type(head).__name__.endswith("ForSequenceClassification")


def _end_tokens(model: Any) -> set[int]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(ends) if isinstance(ends, list) else set() if ends is None else {int(ends)}


def _logits(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """(len(answer) + 1, vocabulary) float32: what the model thinks before each answer token and after the last.

    Classifiers: (1, classes). Counted from the end, so virtual tokens in front do not shift it.
    """
    import torch

    device = next(model.parameters()).device
    if not _generates(model):
        row: torch.Tensor = model(input_ids=torch.tensor([list(prompt)], device=device)).logits.float()
        return row.reshape(1, -1)
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        given = torch.tensor([[start, *answer]], device=device)
        out = model(input_ids=torch.tensor([list(prompt)], device=device), decoder_input_ids=given).logits
    else:
        out = model(input_ids=torch.tensor([[*prompt, *answer]], device=device)).logits
    rows: torch.Tensor = out[0, -(len(answer) + 1) :].float()
    return rows


def compare(model: nn.Module, reference: Sequence[ProbeAnswer], tolerance: float) -> Verification:
    """Show ``model`` the reference answers and compare. Raises `ModelError` on a difference above ``tolerance``."""
    import torch

    ties, largest = 0, 0.0
    with torch.inference_mode():
        for number, answer in enumerate(reference, 1):
            rows = _logits(model, answer.prompt, answer.tokens[:-1])
            if not bool(torch.isfinite(rows).all()):
                raise ModelError(f"the exported model answers NaN or infinity on probe {number}.")
            for row, token, logit, lead in zip(rows, answer.tokens, answer.logits, answer.leads, strict=True):
                if token >= row.numel():
                    raise ModelError(f"the exported model has no token {token}.")
                size = max(1.0, abs(logit))
                largest = max(largest, abs(float(row[token]) - logit) / size)
                if largest > tolerance:
                    raise _mismatch(number, f"a logit differs by {largest:.2g} of its size, {tolerance:.2g} is allowed")
                if int(row.argmax()) != token:
                    if lead > 2 * tolerance * size:
                        raise _mismatch(number, f"it answers token {int(row.argmax())} instead of {token}")
                    ties += 1
    tokens = sum(len(answer.tokens) for answer in reference)
    return Verification(len(reference), tokens, ties, largest, tolerance)


def _mismatch(number: int, what: str) -> ModelError:
    remedy = "Export the adapter instead, or choose --dtype float32."
    return ModelError(
        f"the export does not answer as the evaluated model does: on probe {number} {what}.", remedy=remedy
    )


def verify(
    reference: Sequence[ProbeAnswer],
    folder: Path,
    probes: Sequence[str],
    *,
    dtype: str = "auto",
    base: Path | None = None,
    labels: Sequence[str] = (),
    tolerance: float | None = None,
    gguf: str | None = None,
    keep: bool = False,
) -> Verification:
    """Load the export in ``folder`` fresh and compare it with ``reference``, the answers to the same ``probes``.

    ``base`` is needed for adapters; ``gguf`` names a GGUF file in ``folder``, whose prompts come from the reference
    because a GGUF tokenizer is read by other programs. On a difference the folder is removed (unless ``keep``) and
    `ModelError` is raised; a base that is not there says nothing about the folder, which stays.
    """
    if base is not None:
        loading.read_config(base)
    try:
        return _verify(reference, folder, probes, dtype, base, labels, tolerance, gguf)
    except ModelError as error:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        gone = "" if keep else " The folder was removed."
        raise ModelError(error.what + gone, place=error.place or Place(folder), remedy=error.remedy) from error


def _verify(
    reference: Sequence[ProbeAnswer],
    folder: Path,
    probes: Sequence[str],
    dtype: str,
    base: Path | None,
    labels: Sequence[str],
    tolerance: float | None,
    gguf: str | None,
) -> Verification:
    import torch

    if gguf is not None:
        from foretune.export.gguf import load_gguf

        stored = loading.torch_dtype(dtype)
        model = load_gguf(folder / gguf)
    else:
        weights = base if base is not None and loading.is_adapter(folder) else folder
        stored = loading.torch_dtype(dtype, weights)
        tokenizer = loading.load_tokenizer(folder)
        for number, (answer, probe) in enumerate(zip(reference, probes, strict=True), 1):
            if tuple(encode(tokenizer, probe)) != answer.prompt:
                raise _mismatch(number, "its tokenizer or chat template gives another prompt")
        compute = stored if loading.is_adapter(folder) else torch.float32
        model = loading.load(folder, compute, base=base, labels=labels)
    name = str(stored).removeprefix("torch.")
    return compare(model, reference, RELATIVE[name] if tolerance is None else tolerance)
