"""T-Few's two further losses for multiple choice (Liu et al. 2022, 2205.05638, equations 3 and 4).

The choices of a labelled row are the answers of all labels in the training rows; ŷ_n are those of the other labels.

    L_UL = − Σ_n Σ_t log(1 − p(ŷ_{n,t} | x, ŷ_{n,<t})) / Σ_n T_n                       unlikelihood of the wrong ones
    L_LN = − log( exp β(x, y) / (exp β(x, y) + Σ_n exp β(x, ŷ_n)) ),   β(x, y) = (1/T) Σ_t log p(y_t | x, y_<t)

Both are added to the likelihood of the right answer, as a mean over the rows of an update. Each row costs a further
pass for every wrong choice; ``choices`` bounds them (drawn anew in every update). Rows without a label, or with an
answer that no other label's could replace, add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Runner, Term
from foretune.seeding import torch_generator

SMALLEST = 1e-6
"""1 − p is held above this: a wrong token that is certain would otherwise give an infinite loss."""


class Tfew(Regularizer):
    """Unlikelihood and length-normalised choice losses."""

    name = "tfew"

    def __init__(self, weight: float = 1.0, choices: int = 3) -> None:
        self.weight = weight
        self.choices = choices
        self._answers: dict[int, np.ndarray] = {}
        self._rows: Sequence[EncodedRow] = ()
        self._runner: Runner | None = None
        self._kind = ""
        self._batch: MicroBatch | None = None
        self._wrong: dict[int, list[int]] = {}
        self._counted = 0
        self._last: dict[str, float] = {}

    def check(self, context: Context) -> Plan:
        """Needs rows with at least two classes on a model that writes the class's name."""
        labels = {row.label for row in context.rows if isinstance(row.label, int)}
        if len(labels) < 2:
            return Plan(self.name, refusal="its rows need labels of at least two classes; use it for classification.")
        return Plan(f"losses of up to {min(self.choices, len(labels) - 1)} wrong choices of {len(labels)} labels")

    def setup(self, context: Context) -> None:
        """Collect the answer of every label."""
        self._rows, self._runner, self._kind = context.rows, context.runner, context.kind
        for row in context.rows:
            if isinstance(row.label, int):
                self._answers.setdefault(row.label, answer_of(row))

    def token_weights(self, batch: MicroBatch) -> torch.Tensor | None:
        """None; counts the rows of the update that have choices."""
        self._counted += sum(isinstance(self._rows[i].label, int) for i in batch.rows)
        return None

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Draw the wrong choices of every row, whatever micro-batch it is in."""
        self._batch = batch
        self._wrong = {}
        for index in batch.rows:
            label = self._rows[index].label
            if isinstance(label, int):
                others = sorted(set(self._answers) - {label})
                own = torch_generator(generator.initial_seed(), "choices", index)
                order = torch.randperm(len(others), generator=own).tolist()
                self._wrong[index] = [others[i] for i in order[: self.choices]]

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term | None:
        """The two losses of this micro-batch's rows."""
        batch, runner = self._batch, self._runner
        assert batch is not None and runner is not None
        if not self._wrong:
            return None
        owners = [(index, label) for index, labels in self._wrong.items() for label in labels]
        rows = [with_answer(self._rows[index], self._answers[label]) for index, label in owners]
        lengths, sums, unlikely = self._wrong_choices(rows, batch)
        right = {index: number for number, index in zip(_numbers(forward), batch.rows, strict=True)}
        own = _means(forward)
        total = torch.zeros((), dtype=torch.float32, device=sums.device)
        for index in self._wrong:
            at = [i for i, (owner, _) in enumerate(owners) if owner == index]
            beta = torch.stack([own[right[index]], *(sums[i] / lengths[i] for i in at)])
            total = total + beta.logsumexp(0) - beta[0] + unlikely[at].sum() / sum(lengths[i] for i in at)
        self._last = {"loss": float(total.detach()) / len(self._wrong), "wrong_choices": float(len(owners))}
        return Term(self.weight * total, self._counted)

    def _wrong_choices(
        self, rows: Sequence[EncodedRow], batch: MicroBatch
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """For every wrong answer: its tokens, their summed log-probability, and their summed −log(1 − p)."""
        assert self._runner is not None
        update = lay_out(
            rows, range(len(rows)), kind=self._kind,  # type: ignore[arg-type]
            limit_tokens=max(batch.ids.numel(), 1), packing=batch.layout is not None, share_head=False,
            tasks=batch.tasks is not None,
        )  # fmt: skip
        sums = torch.zeros(len(rows), device=batch.ids.device)
        unlikely = torch.zeros(len(rows), device=batch.ids.device)
        for part in update.micro_batches:
            scored = self._runner.run(part.to(batch.ids.device))
            losses = scored.nll()
            sums = sums.index_add(0, scored.row, -losses)
            wrong = -torch.log((-torch.expm1(-losses)).clamp_min(SMALLEST))
            unlikely = unlikely.index_add(0, scored.row, wrong)
        return [row.targets for row in rows], sums, unlikely

    def end_forward(self) -> None:
        """The next update counts its rows anew."""
        self._counted = 0

    def report(self) -> dict[str, float]:
        """The last micro-batch's loss a row, and how many wrong choices it scored."""
        return self._last


def answer_of(row: EncodedRow) -> np.ndarray:
    """(time,) int32: the tokens of a row's answer."""
    return row.ids[row.prompt_length :] if row.decoder_ids is None else row.decoder_ids


def with_answer(row: EncodedRow, answer: np.ndarray) -> EncodedRow:
    """``row`` with another answer behind the same prompt; every token of it that the row's own answer trains."""
    if row.decoder_ids is not None:
        return replace(row, decoder_ids=answer)
    mask = np.zeros(row.prompt_length + len(answer), dtype=np.bool_)
    own = row.target_mask[row.prompt_length :]
    untrained_end = len(own) - int(np.flatnonzero(own)[-1]) - 1 if own.any() else 0
    mask[row.prompt_length : len(mask) - untrained_end] = True
    return replace(row, ids=np.concatenate([row.ids[: row.prompt_length], answer]), target_mask=mask)


def _numbers(forward: Forward) -> list[int]:
    """The row numbers within the update, in the order in which a micro-batch holds its rows."""
    return list(dict.fromkeys(forward.row.tolist()))


def _means(forward: Forward) -> dict[int, torch.Tensor]:
    """Row number -> mean log-probability of its answer's tokens."""
    losses = forward.nll()
    found = {}
    for number in _numbers(forward):
        found[number] = -losses[forward.row == number].mean()
    return found
