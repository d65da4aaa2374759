"""The end of a run that is compared and not chosen: its test rows are answered before its last step is reported.

A study wants every run's answers on the test rows, and wants them before the run's checkpoints go. Doing it inside
the trial keeps the model attached and makes one unit that a kill cannot split: the last observation is reported only
when the answers lie in their file, and a trial taken up again finds the file or writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from foretune.errors import Place, StoreError
from foretune.execution.bench import Bench
from foretune.execution.orders import FinalTest, subset
from foretune.files import write_json
from foretune.methods.base import Attachment
from foretune.training import checkpoint
from foretune.training.checkpoint import Checkpoint
from foretune.training.forward import Network
from foretune.training.optimizer import MasterWeights, OptimizerSettings, without_moments

OWN = "test"
"""The split of a task's own test rows."""


def load_checkpoint(attachment: Attachment, run_folder: Path, step: int) -> None:
    """Give an attachment the weights of a run's checkpoint; raises `StoreError` when it is gone or damaged."""
    _give(attachment, saved_at(run_folder, step))


def _give(attachment: Attachment, saved: Checkpoint) -> None:
    masters = MasterWeights(attachment.parameter_groups(0.0), OptimizerSettings(0.0, 1))
    masters.load_state(without_moments(saved.tensors()))


def saved_at(run_folder: Path, step: int) -> Checkpoint:
    """A run's checkpoint; raises `StoreError` when it is gone or damaged."""
    saved = checkpoint.read(run_folder, step)
    if saved is None:
        raise StoreError(f"the checkpoint of step {step} is missing or damaged.", place=Place(run_folder))
    return saved


@contextmanager
def restored(
    bench: Bench, config: Mapping[str, Any], seed: int, run_folder: Path, step: int
) -> Iterator[tuple[Attachment, Network]]:
    """Inside, the run of ``config`` and ``seed`` is attached as its checkpoint has it; `StoreError` as `saved_at`."""
    saved = saved_at(run_folder, step)
    with bench.attached(config, seed, saved.taken()) as (attachment, network):
        _give(attachment, saved)
        yield attachment, network


def answer_test(
    bench: Bench,
    attachment: Attachment,
    network: Network,
    test: FinalTest,
    *,
    step: int,
    best: int,
    restore: Callable[[int], None],
    on_chunk: Callable[[int], bool],
) -> bool:
    """Answer the test rows with the chosen checkpoint of a run that stands at ``step``; False when told to stop.

    ``best`` is the step with the lowest validation loss, ``restore`` gives the attachment the weights of a step.

    The method's statistics over these rows go beside the answers. The attachment keeps the weights it answered with.
    Nothing is done where the answers are there already.
    """
    output = Path(test.output)
    if output.exists():
        return True
    if test.checkpoint == "best" and best != step:
        restore(best)
        step = best
    answered: dict[str, list[dict[str, Any]]] = {}
    for split, rows in {OWN: test.rows, **test.further}.items():
        chosen = subset(rows, len(bench.split(split).rows), bench.task.seed)
        with attachment.observed() if split == OWN else nullcontext():
            answers = bench.answers(network, split, chosen, generation=test.generation, on_chunk=on_chunk)
        missing = test.generation and bench.kind != "encoder" and any(answer.prediction is None for answer in answers)
        if len(answers) < rows or missing:
            return False
        answered[split] = [answer.to_json() for answer in answers]
    content = {
        "step": step,
        "wanted": test.rows,
        "answers": answered.pop(OWN),
        "further": answered,
        "statistics": attachment.statistics(),
    }
    write_json(output, content)
    return True
