"""Answers to prompts: greedy, batched by length, within a time budget, the same whatever the batches are.

Prompts come as token ids (the prompt prefix that training used, from the template), so nothing is tokenised here.
Batches run in a seeded random order: when the time ends early, the answered rows are a fair sample of all lengths
rather than the short ones. Sampling, beams and penalties do not exist here; `evaluation.greedy` says why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foretune.errors import UsageError
from foretune.evaluation.greedy import (
    Head,
    Prompt,
    Stopped,
    Watch,
    answering,
    base_of,
    forced_first,
    greedy,
    learns_prompts,
    shared_head,
    steps_over,
)
from foretune.seeding import generator

BATCH_TOKENS = 16_384
"""Cache positions of one batch (rows × longest row with its answer): 0.4 GB of keys and values for SmolLM2-135M."""
CACHE_BYTES = 2**30
"""Keys and values of one batch take at most this: a 7B model keeps half a megabyte for each position."""
LARGEST_BATCH_ROWS = 128
"""More rows no longer raise tokens per second on a processor."""
OUT_OF_MEMORY = "can't allocate memory"
"""What torch's CPU allocator says; accelerators raise `torch.OutOfMemoryError`."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> Any:
        """The text of ``token_ids``."""
        ...


def generate(
    model: nn.Module,
    tokenizer: Decoder,
    prompts: Sequence[NDArray[np.integer]],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
    on_chunk: Callable[[int], bool] | None = None,
) -> list[str | None]:
    """The answer to every prompt as text, special tokens left out; arguments and errors as for `generate_ids`."""
    answers = generate_ids(
        model, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, batch_tokens=batch_tokens, on_chunk=on_chunk
    )
    return [None if ids is None else str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]


def generate_ids(
    model: nn.Module,
    prompts: Sequence[NDArray[np.integer]],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
    on_chunk: Callable[[int], bool] | None = None,
) -> list[list[int] | None]:
    """The new tokens of every prompt, its stop token left out.

    ``prompts``: one (time,) integer array each, the encoder's input for an encoder–decoder. An answer ends at a stop
    id, after ``max_new_tokens``, or where the model's positions end. ``on_chunk`` is called with the number of
    answered rows after each batch and every few steps inside one; False stops, and rows whose batch was not
    complete are None. The model is left in the mode it was in. Raises `UsageError` for an empty or overlong prompt
    and `TrainingError` for a model whose outputs are not finite.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens = {max_new_tokens} leaves no room for an answer.", remedy="Use at least 1.")
    answers: list[list[int] | None] = [None] * len(prompts)
    if not prompts:
        return answers
    fed = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]  # the template's are int32
    rooms = [room(model, i, prompt, max_new_tokens) for i, prompt in enumerate(fed)]
    stops = frozenset(int(token) for token in stop_ids)
    device = next(model.parameters()).device
    done = 0

    def going_on() -> bool:
        return on_chunk is None or on_chunk(done)

    with answering(model):
        head = shared_head(model, fed, device)
        for batch in _batches(model, fed, rooms, min(batch_tokens, _affordable_positions(model))):
            chosen = [fed[i] for i in batch]
            try:
                produced = _answer(model, chosen, rooms[batch[0]], stops, head, device, going_on)
            except Stopped:
                break
            for i, tokens in zip(batch, produced, strict=True):
                answers[i] = tokens
            done += len(batch)
            if not going_on():
                break
    return answers


def room(model: nn.Module, index: int, prompt: Prompt, wanted: int) -> int:
    """How many new tokens prompt ``index`` may have."""
    if len(prompt) == 0:
        raise UsageError(f"prompt {index} is empty.", remedy="Every prompt needs at least one token.")
    config = base_of(model).config.get_text_config(decoder=True)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return wanted
    used: int = len(prompt) if not base_of(model).config.is_encoder_decoder else 1
    if len(prompt) > positions or used >= positions:
        raise UsageError(
            f"prompt {index} has {len(prompt)} tokens and the model {positions} positions.",
            remedy="Shorten the prompts (context_tokens).",
        )
    return min(wanted, positions - used)


def _affordable_positions(model: nn.Module) -> int:
    """Cache positions whose keys and values take `CACHE_BYTES`; unlimited where the configuration does not say."""
    config = base_of(model).config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not heads or not layers:
        return BATCH_TOKENS
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    each: int = 2 * layers * kept * width * next(model.parameters()).element_size()
    return max(1, CACHE_BYTES // each)


def _batches(model: nn.Module, prompts: Sequence[Prompt], rooms: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Prompt numbers in batches of near length and equal room; equal length where nothing may be padded."""
    unpadded = learns_prompts(model)
    kinds: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        kinds[rooms[i], len(prompt) if unpadded else 0].append(i)
    batches: list[list[int]] = []
    for (new_tokens, _), members in sorted(kinds.items()):
        batch: list[int] = []
        for i in sorted(members, key=lambda i: (len(prompts[i]), i)):
            full = (len(batch) + 1) * (len(prompts[i]) + new_tokens) > batch_tokens
            if batch and (full or len(batch) == LARGEST_BATCH_ROWS):
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    order = generator(0, "generation order").permutation(len(batches))
    return [batches[i] for i in order]


def _answer(
    model: nn.Module,
    prompts: list[Prompt],
    limit: int,
    stops: frozenset[int],
    head: Head | None,
    device: torch.device,
    watch: Watch,
) -> list[list[int]]:
    """One batch; halved when memory does not suffice for it."""
    try:
        steps = steps_over(model, prompts, head, device)
        return greedy(steps, len(prompts), limit, stops, watch, forced_first(model))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        memory = isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY in str(error)
        if not memory or len(prompts) == 1:
            raise
    half = len(prompts) // 2
    return [
        *_answer(model, prompts[:half], limit, stops, head, device, watch),
        *_answer(model, prompts[half:], limit, stops, head, device, watch),
    ]
