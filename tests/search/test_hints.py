"""Rules in what is believed before any run: they move the members they mean, and say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foretune.search.hints import WEIGHTS, Hint, moved
from foretune.search.past_tasks import past_tasks
from foretune.search.reasons import because
from foretune.search.task_prior import TaskPrior, build
from tests.search import synthetic

POOL = synthetic.design(24)
RANK_8 = Hint({"lora.rank": 8}, citation="rank 8 is better (measured; study s)", strength="measured")


def test_a_hint_moves_the_members_it_means_and_no_other():
    found = moved([RANK_8, Hint({}, avoid=("full",), strength="weak")], POOL)
    for place, config in enumerate(POOL):
        expected = WEIGHTS["measured"] * (config.get("lora.rank") == 8) - WEIGHTS["weak"] * (config["method"] == "full")
        assert found.shift[place] == pytest.approx(expected)
        assert (place in found.citations) == (config.get("lora.rank") == 8)


@pytest.mark.parametrize("tasks", [(), past_tasks(synthetic.experience(3, 12))], ids=["no experience", "experience"])
def test_a_rule_enters_the_transfer_mean_and_the_expert_and_is_cited(tasks):
    before, after = (build(tasks, synthetic.facts(9), POOL, 0, hints=hints) for hints in ((), (RANK_8,)))
    meant = np.asarray([config.get("lora.rank") == 8 for config in POOL])
    for one, other in ((before.alone, after.alone), *([(before.transfer, after.transfer)] if tasks else [])):
        np.testing.assert_allclose(other.mean - one.mean, WEIGHTS["measured"] * meant)
    place = int(np.flatnonzero(meant)[0])
    assert "study s" in because(after, place) and "study s" not in because(before, place)
    assert TaskPrior.from_json(json.loads(json.dumps(after.to_json()))).citations == after.citations
