"""Running probes on trained systems: load, look, say; `foretune regularize probe` is this.

A system is a run, an adapter, a model, or a folder of a trial's checkpoints (``RUN/trials/r003``), which stands for
each of its checkpoints in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from foretune.data.batches import lay_out
from foretune.data.example import Example
from foretune.errors import UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.forgetting import forgetting, general_text
from foretune.evaluation.likelihood import RowScore
from foretune.evaluation.probes.fresh_blocks import by_block
from foretune.evaluation.probes.inversion import conflicts, margin
from foretune.evaluation.probes.landscape import slice_of
from foretune.evaluation.probes.ranks import by_rank
from foretune.execution.bench import Bench
from foretune.execution.final import restored
from foretune.fit.systems import SPLIT, Settings, opened
from foretune.training import checkpoint
from foretune.training.forward import Network

KINDS = ("inversion", "ranks", "fresh-blocks", "landscape", "forgetting")
Findings = list[dict[str, Any]]


def probe(
    kind: str,
    system: str,
    examples: Sequence[Example],
    task: str,
    *,
    base: str | None = None,
    ranks: Sequence[int] | None = None,
    norm: float = 0.05,
    seed: int = 0,
    settings: Settings | None = None,
) -> Findings:
    """What a probe finds of a system (and of its base beside it), one dictionary a line.

    Raises `UsageError` for a probe that does not exist or that the system cannot be asked, and as `opened` does.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no probe {kind!r}.", remedy=f"Use {', '.join(KINDS)}.")
    rows = _rows(kind, examples, seed)
    shown_task = "language-modelling" if kind == "forgetting" else task
    asked = base if checkpoint.steps(Path(system)) and base is not None else system
    with opened(asked, rows, shown_task, base=None if asked != system else base, settings=settings or Settings()) as (
        bench,
        adapted,
    ):
        if bench.kind != "causal" and kind in ("inversion", "ranks", "forgetting"):
            raise UsageError(f"the probe {kind} looks at the answers of a causal language model.")
        found: Findings = []
        for name, network, without in _variants(bench, adapted, Path(system)):
            look = _Look(bench, network, without, ranks, norm, seed)
            found += [{"system": name, **finding} for finding in getattr(look, kind.replace("-", "_"))()]
        return found


def _rows(kind: str, examples: Sequence[Example], seed: int) -> Sequence[Example]:
    if kind == "inversion":
        return conflicts(examples, seed)
    return general_text() if kind == "forgetting" else examples


def _variants(bench: Bench, adapted: Any, system: Path) -> Iterator[tuple[str, Network, Any]]:
    """(name, network, context inside which it is its base or None) of the base and of what was trained on it."""
    steps = checkpoint.steps(system)
    if not steps:
        if adapted is not None:
            with adapted.disable_adapter():
                yield "base", bench.network, None
        yield str(system), bench.network, None if adapted is None else adapted.disable_adapter
        return
    yield "base", bench.network, None
    facts = {step: saved for step in steps if (saved := checkpoint.read(system, step)) is not None}
    for step, saved in facts.items():
        config, seed = saved.facts["config"], int(saved.facts["seed"])
        with restored(bench, config, seed, system, step) as (attachment, network):
            yield f"step {step}", network, attachment.disabled


class _Look:
    """The probes on one network."""

    def __init__(
        self, bench: Bench, network: Network, without: Callable[[], Any] | None, ranks: Sequence[int] | None,
        norm: float, seed: int,
    ) -> None:  # fmt: skip
        self.bench, self.network, self.without = bench, network, without
        self.wanted_ranks, self.norm, self.seed = ranks, norm, seed
        self.chosen = range(len(bench.split(SPLIT).rows))

    def _scores(self) -> list[RowScore]:
        return self.bench.score(self.network, SPLIT, self.chosen)

    def _answers(self) -> list[Answer]:
        return [Answer(score.row, "", "", nll=score.nll, tokens=score.tokens) for score in self._scores()]

    def _loss(self) -> float:
        scores = self._scores()
        return sum(score.nll for score in scores) / sum(score.tokens for score in scores)

    def inversion(self) -> Findings:
        """The margin of the note's answer over the true one."""
        return [asdict(margin(self._answers()))]

    def forgetting(self) -> Findings:
        """The loss on general text, and what was forgotten of it."""
        own = self._answers()
        loss = sum(answer.nll or 0.0 for answer in own) / sum(answer.tokens for answer in own)
        if self.without is None:
            return [{"loss": loss}]
        with self.without():
            before = self._answers()
        compared = forgetting(own, before, seed=self.seed)
        return [{"loss": loss, "forgotten": compared.difference, "low": compared.low, "high": compared.high,
                 "verdict": compared.verdict}]  # fmt: skip

    def fresh_blocks(self) -> Findings:
        """The loss with every block drawn anew in turn."""
        loss = self._loss()
        points = by_block(self.network.model, self._loss, seed=self.seed)
        return [{"stack": p.stack, "block": p.block, "loss": p.loss, "rise": p.loss - loss} for p in points]

    def landscape(self) -> Findings:
        """The loss along one direction of a stated norm."""
        found = slice_of(self.network.model, self._loss, norm=self.norm, seed=self.seed)
        return [{"norm": found.norm, "rise": found.rise, "positions": list(found.positions),
                 "losses": list(found.losses)}]  # fmt: skip

    def ranks(self) -> Findings:
        """KL to the base with the update cut to each rank."""
        if self.without is None:
            return []
        return [asdict(point) for point in by_rank(self.network.model, self.wanted_ranks, self._divergence)]

    @torch.no_grad()
    def _divergence(self) -> float:
        """Mean KL(base ‖ own) over all scored tokens."""
        total, tokens = 0.0, 0
        packing = self.network.packs
        limit = self.bench.task.micro_batch_tokens
        update = lay_out(self.bench.split(SPLIT).rows, self.chosen, kind=self.network.kind, limit_tokens=limit,
                         packing=packing, pad_id=self.bench.pad_id)  # fmt: skip
        assert self.without is not None
        with self.network.mode(packing=packing, training=False):
            for batch in update.micro_batches:
                batch = batch.to(self.network.model.device)
                with self.without():
                    base = self.network.run(batch).hidden
                total += float(self.network.run(batch).divergence_from(base).double().sum())
                tokens += len(batch.labels)
        return total / tokens
