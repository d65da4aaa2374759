"""Earlier tasks and a pool from the formula of `synthetic`."""

from __future__ import annotations

import pytest

from foretune.search.past_tasks import past_tasks
from tests.search import synthetic


@pytest.fixture(scope="module")
def tasks():
    return past_tasks(synthetic.experience(8, 24))


@pytest.fixture(scope="module")
def pool():
    return synthetic.design(60, seed=3)
