"""Pruning a learnt prefix: the least needed positions go once, the rest begins again, and it all survives a pause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.methods.tuners.prefix import PrefixUpdate
from foretune.regularization.base import Regularizer
from foretune.regularization.l2_sp import L2Sp
from foretune.regularization.prune_rewind import PruneRewind
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests.training.rows import random_rows

ROWS = random_rows(8, vocabulary=90)


def run_of(
    method: str = "e2vpt", limit: int = 200, others: Sequence[Regularizer] = (), **fields: Any
) -> tuple[Any, Training]:
    settings = {"method": method, **({"e2vpt.prefix": 4} if method == "e2vpt" else {})}
    attachment = get(method).attach(specimen("llama").twin(), resolve(settings), generator=torch_generator(0, "init"))
    training = Training(
        Network(attachment.model, "causal"), attachment, ROWS, Epochs(8, 8, 0),
        LoopSettings(OptimizerSettings(1e-2, 10, warmup_share=0.0), seed=0, micro_batch_tokens=limit),
        [PruneRewind(**fields), *others],
    )  # fmt: skip
    return attachment, training


def prefixes(attachment: Any) -> list[Any]:
    return [module for module in attachment.model.modules() if isinstance(module, PrefixUpdate)]


def test_the_least_needed_go_and_the_rest_begins_again() -> None:
    attachment, training = run_of(share=0.5, at=0.3)
    first = attachment.state()
    training.run(2)
    by_hand = torch.cat(training.regularizers.parts[0]._scores)  # type: ignore[attr-defined]
    assert float(by_hand.min()) > 0 and all(bool((p.open == 1).all()) for p in prefixes(attachment))
    training.run(3)
    scores = torch.cat(training.regularizers.parts[0]._scores)  # type: ignore[attr-defined]
    left = torch.cat([prefix.open.detach() for prefix in prefixes(attachment)])
    assert set(scores.argsort()[:4].tolist()) == set((left == 0).nonzero().flatten().tolist())
    assert training.regularizers.report()["prune-rewind"]["positions_left"] == 4.0
    state = attachment.state()
    assert all(torch.equal(value, first[name]) for name, value in state.items() if "open" not in name)
    training.run(10)
    assert torch.equal(torch.cat([prefix.open.detach() for prefix in prefixes(attachment)]), left)
    assert not torch.equal(attachment.state()[next(iter(first))], first[next(iter(first))])


def test_a_pull_to_the_start_opens_nothing_again() -> None:
    attachment, training = run_of(others=[L2Sp(0.1)])
    training.run(10)
    left = torch.cat([prefix.open.detach() for prefix in prefixes(attachment)])
    assert sorted(left.tolist()) == [0.0] * 4 + [1.0] * 4
    assert training.regularizers.report()["prune-rewind"]["positions_left"] == 4.0


def test_a_pruned_position_is_out_of_the_attention() -> None:
    attachment, _ = run_of()
    with torch.no_grad():
        for prefix in prefixes(attachment):
            prefix.open[1] = 0
        one = specimen("llama").logits(attachment.model)
        for prefix in prefixes(attachment):
            prefix.keys[:, 1] = 50.0
            prefix.values[:, 1] = 50.0
    assert torch.equal(one, specimen("llama").logits(attachment.model))


def test_scores_do_not_depend_on_micro_batches_and_a_paused_run_is_the_same() -> None:
    whole, one = run_of()
    one.run(6)
    _, other = run_of(limit=25)
    other.run(2)
    tensors, facts = other.state()
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    parts, third = run_of(limit=25)
    third.load_state(2, copied, facts)
    third.run(6)
    for name, value in whole.state().items():
        torch.testing.assert_close(parts.state()[name], value, rtol=1e-3, atol=1e-4)


def test_it_needs_a_prefix_with_switches() -> None:
    with pytest.raises(UsageError, match="no prefix"):
        run_of("mam")
