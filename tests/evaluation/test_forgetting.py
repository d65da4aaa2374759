"""The general text is varied and whole; forgetting is the paired difference of loss on it."""

import numpy as np
import pytest

from foretune.errors import UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.forgetting import forgetting, general_text
from foretune.evaluation.metrics.text import words


def test_the_sample_is_varied() -> None:
    passages = general_text()
    texts = [passage.turns[0].content for passage in passages]
    assert len(passages) >= 60 and len(set(texts)) == len(texts)
    assert 2_000 <= sum(len(words(text)) for text in texts) <= 6_000
    assert all(
        passage.targets == (0,) and text.strip() == text and text for passage, text in zip(passages, texts, strict=True)
    )
    everything = "\n".join(texts)
    for sign in ("def mean", "SELECT", '"Are you coming', "où est la gare", "1. ", '{"name"'):
        assert sign in everything


def rows(nll: "np.typing.ArrayLike", tokens: "np.typing.ArrayLike") -> list[Answer]:
    pairs = zip(np.asarray(nll), np.asarray(tokens), strict=True)
    return [Answer(i, "", "x", nll=float(value), tokens=int(count)) for i, (value, count) in enumerate(pairs)]


def test_a_rise_of_the_loss_is_worse_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(20, 90, 60)
    base = tokens * random.normal(3, 0.4, 60)
    risen = forgetting(rows(base + 0.2 * tokens + random.normal(0, 2, 60), tokens), rows(base, tokens))
    assert risen.verdict == "worse" and risen.difference == pytest.approx(0.2, abs=0.02)
    assert risen.low is not None and risen.high is not None and risen.low < 0.2 < risen.high
    noise = forgetting(rows(base + random.normal(0, 2, 60), tokens), rows(base, tokens))
    assert noise.verdict == "no evidence of a difference"
    with pytest.raises(UsageError, match="cannot be paired"):
        forgetting(rows(base[:5], tokens[:5]), rows(base, tokens))
