"""Blocks of work in this process: the `BlockMap` of this package. Another can be injected from above.

What is mapped is always ``partial(function, **settings)`` with a function of a module and settings, blocks and
results that survive JSON, because that is what can be sent to another process without pickling anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from foretune.selection.base import Block, Result


class SerialBlocks:
    """One block after another, here."""

    def map(self, function: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
        """Results in the order of ``blocks``, each computed when it is asked for."""
        return map(function, blocks)
