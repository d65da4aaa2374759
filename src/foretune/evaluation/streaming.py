"""One answer, token by token as it is written: what a conversation shows. Batches are `evaluation.generation`'s.

Greedy tokens equal `generation.generate_ids`'s; a test holds that. With a temperature T tokens are drawn from
softmax(logits / T) by a seeded generator. What this does not do: keep the cache from one turn to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foretune.evaluation.generation import room
from foretune.evaluation.greedy import answering, best_tokens, forced_first, steps_over


def write_one(
    model: nn.Module,
    prompt: NDArray[np.integer],
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    on_token: Callable[[list[int]], None] = lambda ids: None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[list[int], bool]:
    """The new tokens after ``prompt: (time,)`` and whether the model ended the answer itself.

    ``on_token`` sees all tokens so far after each. Raises `UsageError` for an empty or overlong prompt and
    `TrainingError` for a model whose outputs are not finite.
    """
    fed = np.asarray(prompt, dtype=np.int64)
    limit, stops = room(model, 0, fed, max_new_tokens), frozenset(int(token) for token in stop_ids)
    device = next(model.parameters()).device
    ids: list[int] = []
    with answering(model):
        steps, forced = steps_over(model, [fed], None, device), forced_first(model)
        logits = steps.first()
        while True:
            token = forced if forced is not None and not ids else _chosen(logits, temperature, generator)
            if token in stops:
                return ids, True
            ids.append(token)
            on_token(ids)
            if len(ids) == limit:
                return ids, False
            logits = steps.next(torch.tensor([token], device=device))


def _chosen(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> int:
    """The next token from ``logits: (1, vocabulary)``."""
    best = int(best_tokens(logits)[0])
    if temperature == 0:
        return best
    probabilities = torch.softmax(logits[0].float().cpu() / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
