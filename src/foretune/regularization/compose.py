"""Several regularizers as one: the phases in their order, the time that each takes, and their state.

Within a phase they run in the order in which they are named; teardown runs backwards. The seconds are those spent in a
regularizer's own hooks, further forward passes that it asks for included. What a hook inside the model or a longer
backward pass costs is not in them: a run's seconds a token are (`fit` compares them with the default LoRA's).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from foretune.data.update import MicroBatch, Update
from foretune.errors import UsageError
from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Term
from foretune.seeding import torch_generator


class Composition:
    """The regularizers of one run."""

    def __init__(self, parts: Sequence[Regularizer] = ()) -> None:
        self.parts = tuple(parts)
        self.seconds: dict[str, float] = {part.name: 0.0 for part in self.parts}
        self.plans: dict[str, Plan] = {}

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def packable(self) -> bool:
        """Whether rows may be packed under all of them."""
        return all(plan.packable for plan in self.plans.values())

    @property
    def shares_head(self) -> bool:
        """Whether a packed stream may hold the common head of its rows once under all of them."""
        return all(plan.shares_head for plan in self.plans.values())

    @contextmanager
    def _timed(self, part: Regularizer) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part.name] += time.perf_counter() - started

    def check(self, context: Context) -> None:
        """Ask every one for its plan. Raises `UsageError` with the fix where one cannot be used."""
        for part in self.parts:
            plan = part.check(context)
            if plan.refusal:
                raise UsageError(f"{part.name} cannot be used here: {plan.refusal}")
            self.plans[part.name] = plan

    def setup(self, context: Context, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Edit the model and wrap the optimiser; everything is removed again where one fails."""
        try:
            for part in self.parts:
                with self._timed(part):
                    part.setup(context)
                optimizer = part.wrap_optimizer(optimizer)
        except BaseException:
            self.teardown()
            raise
        return optimizer

    def prepare(self, update: Update, device: torch.device) -> tuple[list[torch.Tensor | None], float]:
        """Before the passes of an update: token weights of every micro-batch (None for ones) and their sum."""
        weights: list[torch.Tensor | None] = []
        for batch in update.micro_batches if self.parts else ():
            batch = batch.to(device)
            product: torch.Tensor | None = None
            for part in self.parts:
                with self._timed(part):
                    part.prepare(batch)
                    found = part.token_weights(batch)
                product = found if product is None or found is None else product * found
            weights.append(product)
        if all(weight is None for weight in weights):
            return [None] * len(update.micro_batches), update.targets
        return weights, float(sum(weight.double().sum() for weight in weights if weight is not None))

    def pre_forward(self, step: int, batch: MicroBatch, seed: int, number: int) -> None:
        """Noise of pass ``number`` (0: the first) over a micro-batch."""
        for part in self.parts:
            again = (number,) if number else ()
            with self._timed(part):
                part.pre_forward(step, batch, torch_generator(seed, "noise", part.name, step, *again))

    def terms(self, forward: Forward, rerun: Rerun, targets: int) -> list[Term]:
        """The loss terms of a micro-batch."""
        found = []
        for part in self.parts:
            with self._timed(part):
                term = part.loss(forward, rerun, targets)
            if term is not None:
                found.append(term)
        return found

    def end_forward(self) -> None:
        """The passes of an update are over."""
        for part in reversed(self.parts):
            with self._timed(part):
                part.end_forward()

    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Gradient masks."""
        for part in self.parts:
            with self._timed(part):
                part.pre_step(params, learning_rate)

    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Decoupled pulls."""
        for part in self.parts:
            with self._timed(part):
                part.post_step(params, learning_rate)

    def teardown(self) -> None:
        """Remove everything that was placed."""
        for part in reversed(self.parts):
            part.teardown()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """State that a resumed run needs, by regularizer."""
        return {
            f"regularizer/{part.name}/{key}": value for part in self.parts for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back `state_dict`; other names in ``state`` are not looked at."""
        for part in self.parts:
            prefix = f"regularizer/{part.name}/"
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            part.load_state_dict(own)

    def sentence(self) -> str:
        """The report in words: for every one its numbers and the seconds in its own hooks; empty without any."""
        parts = []
        for name, found in self.report().items():
            numbers = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in found.items())
            parts.append(f"{name} ({numbers})")
        return "; ".join(parts)

    def report(self) -> dict[str, dict[str, float]]:
        """What each did, in numbers, with the seconds in its own hooks."""
        return {part.name: {**part.report(), "seconds": self.seconds[part.name]} for part in self.parts}
