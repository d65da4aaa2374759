"""What fine-tuning cost elsewhere: the loss on general text, before and after.

The sample ships with Foretune and is written in our own words: everyday prose, dialogue, letters, instructions,
simple arithmetic, some code and tables, a little French, German and Spanish. It is small (about 60 passages) and says
whether general ability moved, not how good it is; benchmark tasks (`evaluation.lm_eval_bridge`) say that.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from foretune.data.example import Example, Turn
from foretune.evaluation.base import Answer
from foretune.evaluation.compare import Comparison, compare
from foretune.evaluation.metrics import METRICS

SAMPLE = "general_text.txt"


def general_text() -> list[Example]:
    """The passages of the sample, each one plain-text example."""
    text = resources.files("foretune.evaluation").joinpath(SAMPLE).read_text(encoding="utf-8")
    return [
        Example((Turn("text", passage.strip()),), targets=(0,), group=f"{SAMPLE}:{number}")
        for number, passage in enumerate(text.split("\n\n"))
    ]


def forgetting(tuned: Sequence[Answer], base: Sequence[Answer], *, seed: int = 0) -> Comparison:
    """The tuned model's loss on general text minus the base's, in nats per token, passages resampled together.

    Positive means that something was forgotten; the verdict "worse" that these passages show it. Raises `DataError`
    for rows without likelihood and `UsageError` for different passages.
    """
    loss = METRICS["loss"]
    return compare(loss.score(tuned), loss.score(base), direction=loss.direction, seed=seed)
