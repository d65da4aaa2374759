"""Greedy decoding of one batch: one token a step for every unfinished row, finished rows leave the batch.

``model.generate`` pads a finished row on until the longest answer ends. On a processor a decoding step costs nearly
in proportion to its rows (SmolLM2-135M in bf16 on one core: 8 rows 48 ms, 32 rows 72 ms, 64 rows 118 ms), so rows
that are done are taken out of the cache instead. Nothing but the arg max decides: no sampling, no penalty, no length
rule, whatever the model's ``generation_config`` says. The tokens equal ``model.generate``'s; a test holds that.

A prefix that all prompts share (the constant head of a chat template) is run once and its keys and values are
copied into every batch, where that is exact: full attention only, positions given explicitly.

Prompt-learning adapters (prefix, prompt, p-tuning) put their own vectors into the cache or the embeddings: peft's own
forward pass places them with the prompt, in batches of equal length, where nothing is padded, and the base goes on from
the cache that leaves. (peft's ``generate`` is not used: with transformers 5.24 it loses the vectors without a word.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foretune.errors import TrainingError
from foretune.models.cache import arguments_of, cache_of, cached

Prompt = NDArray[np.int64]
Watch = Callable[[], bool]
"""Asked between steps whether to go on."""

COMPACT_SHARE = 0.125
"""Finished rows leave once they are this share of the batch: copying the cache costs about a tenth of a step."""
WATCH_STEPS = 16
"""Decoding steps between two looks at the clock."""
SHORTEST_HEAD_TOKENS = 8
"""A shared prefix shorter than this is not worth its copies."""
MASKED_EXACTLY = ("sdpa", "eager")
"""Attention that reads holes in the middle of a mask as holes (FlashAttention takes padding to be on the left)."""


class Stopped(Exception):
    """The watch said stop before the batch was done."""


@dataclass(frozen=True)
class Head:
    """The shared prefix, run once: per layer keys and values (1, heads, time, width)."""

    length: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@contextlib.contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards every module is in the mode it was in.

    The head gets contiguous hidden states: it is applied to the last position alone, and torch multiplies such a
    strided slice by one copy of the vocabulary matrix per row (16 rows of SmolLM2-135M: 0.9 GB instead of 2 MB).
    """
    training = [module for module in model.modules() if module.training]
    head = base_of(model).get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(_contiguous)
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: tensors that modules cache would be barred from training
            yield
    finally:
        if hook is not None:
            hook.remove()
        for module in training:
            module.training = True


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].contiguous(), *inputs[1:])


def base_of(model: nn.Module) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def learns_prompts(model: nn.Module) -> bool:
    """Whether an active peft adapter puts vectors of its own before the prompt."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def shared_head(model: nn.Module, prompts: Sequence[Prompt], device: torch.device) -> Head | None:
    """The longest prefix that all prompts share, run once; None where it is short or not exact to share."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    base = base_of(model)
    length = _common_prefix(prompts)
    if length < SHORTEST_HEAD_TOKENS or len(prompts) < 2 or base.config.is_encoder_decoder or learns_prompts(model):
        return None
    cache = DynamicCache(config=base.config)
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    if not plain or "position_ids" not in arguments_of(base) or base.config._attn_implementation not in MASKED_EXACTLY:
        return None
    ids = torch.as_tensor(prompts[0][None, :length], device=device)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), **cached(base, cache))
    return Head(length, tuple((layer.keys, layer.values) for layer in cache.layers))


def _common_prefix(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts begin with, at least one token of each prompt left over."""
    length = min(map(len, prompts)) - 1
    for prompt in prompts:
        differing = np.flatnonzero(prompt[:length] != prompts[0][:length])
        length = int(differing[0]) if len(differing) else length
    return max(length, 0)


class CausalSteps:
    """A decoder-only model over one batch of left-padded prompts."""

    def __init__(self, model: nn.Module, prompts: Sequence[Prompt], head: Head | None, device: torch.device) -> None:
        from transformers import DynamicCache

        base = base_of(model)
        self.model = model
        self.arguments = arguments_of(base)
        self.cache: Any = DynamicCache(config=base.config)
        skipped = 0 if head is None else head.length
        rests = [prompt[skipped:] for prompt in prompts]
        width = max(map(len, rests))
        ids = np.full((len(rests), width), base.config.get_text_config().pad_token_id or 0, dtype=np.int64)
        real = np.zeros((len(rests), skipped + width), dtype=np.int64)
        real[:, :skipped] = 1
        for row, rest in enumerate(rests):
            ids[row, width - len(rest) :] = rest
            real[row, skipped + width - len(rest) :] = 1
        self.ids = torch.as_tensor(ids, device=device)
        self.mask = torch.as_tensor(real, device=device)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, skipped:]
        if head is not None:
            for layer, (keys, values) in enumerate(head.layers):
                copies = (len(rests), -1, -1, -1)
                self.cache.update(keys.expand(*copies), values.expand(*copies), layer)

    def first(self) -> torch.Tensor:
        """(batch, vocabulary): logits of the first new token."""
        return self._forward(self.ids)

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary): logits after ``tokens: (batch,)``."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._forward(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with ``rows: (kept,)`` only."""
        self.cache.reorder_cache(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {}
        if "position_ids" in self.arguments:
            extra["position_ids"] = self.positions
        if "logits_to_keep" in self.arguments:
            extra["logits_to_keep"] = 1
        output = self.model(input_ids=ids, attention_mask=self.mask, **cached(base_of(self.model), self.cache), **extra)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class EncodedSteps:
    """An encoder–decoder over one batch: the encoder runs once on right-padded prompts."""

    def __init__(self, model: nn.Module, prompts: Sequence[Prompt], device: torch.device) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        base = base_of(model)
        self.model = model
        self.start = _decoder_start(base)
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), base.config.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        self.mask = torch.as_tensor(mask, device=device)
        encoder = base.get_encoder()
        self.encoded = encoder(
            input_ids=torch.as_tensor(ids, device=device), attention_mask=self.mask
        ).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(config=base.config), DynamicCache(config=base.config))

    def first(self) -> torch.Tensor:
        """(batch, vocabulary): logits of the first new token."""
        return self.next(self.mask.new_full((len(self.mask),), self.start))

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary): logits after ``tokens: (batch,)``."""
        output = self.model(
            encoder_outputs=(self.encoded,), attention_mask=self.mask, decoder_input_ids=tokens[:, None],
            **cached(base_of(self.model), self.cache),
        )  # fmt: skip
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with ``rows: (kept,)`` only."""
        self.cache.reorder_cache(rows)
        self.mask, self.encoded = self.mask[rows], self.encoded[rows]


class PromptedSteps:
    """A model with a prompt-learning adapter over one batch of prompts of equal length."""

    def __init__(self, model: nn.Module, prompts: Sequence[Prompt], device: torch.device) -> None:
        self.model, self.base = model, base_of(model)
        self.ids = torch.as_tensor(np.stack(prompts), device=device)
        self.encoded: torch.Tensor | None = None
        self.mask = torch.ones_like(self.ids)
        self.cache: Any = None

    def first(self) -> torch.Tensor:
        """(batch, vocabulary): logits of the first new token, with the adapter's vectors placed by peft."""
        decoded = self.base.config.is_encoder_decoder
        start = {"decoder_input_ids": self.ids.new_full((len(self.ids), 1), _decoder_start(self.base))}
        output = self.model(
            input_ids=self.ids, attention_mask=self.mask, use_cache=True, **(start if decoded else {})
        )  # fmt: skip
        self.cache = cache_of(output)
        if decoded:
            self.encoded = output.encoder_last_hidden_state
            self.mask = self.ids.new_ones(self.encoded.shape[:2])
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary): logits after ``tokens: (batch,)``, from the base and the cache."""
        fed: dict[str, Any] = {"input_ids": tokens[:, None]}
        if self.encoded is not None:
            fed = {
                "encoder_outputs": (self.encoded,),
                "decoder_input_ids": tokens[:, None],
                "attention_mask": self.mask,
            }
        logits: torch.Tensor = self.base(**fed, **cached(self.base, self.cache)).logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with ``rows: (kept,)`` only."""
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]
        self.encoded = None if self.encoded is None else self.encoded[rows]


Steps = CausalSteps | EncodedSteps | PromptedSteps


def steps_over(model: nn.Module, prompts: Sequence[Prompt], head: Head | None, device: torch.device) -> Steps:
    """The way to decode a batch of ``prompts`` with ``model``."""
    if learns_prompts(model):
        return PromptedSteps(model, prompts, device)
    if base_of(model).config.is_encoder_decoder:
        return EncodedSteps(model, prompts, device)
    return CausalSteps(model, prompts, head, device)


def forced_first(model: nn.Module) -> int | None:
    """The token every answer has to begin with (a target language), where an encoder–decoder demands one."""
    base = base_of(model)
    forced = base.generation_config.forced_bos_token_id if base.config.is_encoder_decoder else None
    return None if forced is None else int(forced)


def _decoder_start(base: Any) -> int:
    """The token that decoding starts from."""
    for source in (base.generation_config, base.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(source, name, None)
            if token is not None:
                return int(token)
    raise TrainingError("the model names no decoder start token.", remedy="Set decoder_start_token_id in its config.")


def greedy(
    steps: Steps, rows: int, limit: int, stop_ids: frozenset[int], watch: Watch, forced: int | None
) -> list[list[int]]:
    """The new tokens of each row, its stop token left out; at most ``limit`` of them.

    ``forced`` is the first token of every row where the model demands one (a target language). Raises `Stopped`
    when ``watch`` says so and `TrainingError` when the logits are not finite.
    """
    answers: list[list[int]] = [[] for _ in range(rows)]
    alive = list(range(rows))
    """Which answer each row of the batch belongs to; finished rows stay in the batch for a while."""
    finished: set[int] = set()
    logits = steps.first()
    for step in range(limit):
        tokens = best_tokens(logits) if step > 0 or forced is None else torch.full_like(best_tokens(logits), forced)
        for row, token in zip(alive, tokens.tolist(), strict=True):
            if row in finished:
                continue
            if token in stop_ids:
                finished.add(row)
            else:
                answers[row].append(token)
        if len(finished) == rows or step == limit - 1:
            break
        if step % WATCH_STEPS == WATCH_STEPS - 1 and not watch():
            raise Stopped
        going = [place for place, row in enumerate(alive) if row not in finished]
        if len(alive) - len(going) >= COMPACT_SHARE * len(alive):
            kept = torch.tensor(going, device=tokens.device)
            steps.keep(kept)
            alive, tokens = [alive[place] for place in going], tokens[kept]
        logits = steps.next(tokens)
    return answers


def best_tokens(logits: torch.Tensor) -> torch.Tensor:
    """(batch,): the arg max of ``logits: (batch, vocabulary)``, refused where it is NaN or infinite."""
    best = logits.argmax(dim=-1)
    if not torch.isfinite(logits.gather(1, best[:, None])).all():
        raise TrainingError(
            "the model's outputs are not finite.", remedy="It has diverged; no answer is taken from it."
        )
    return best
