"""What blocks of work took, kept beside each: who reuses one can still say what it costs where there is none to reuse.

Two clocks: seconds as they pass, and processor seconds, which other load on the machine does not change. A block's own
file does not hold them, so that equal work leaves equal bytes.

Not here: work outside blocks, which `selection.run` times as a whole.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import OutputError
from foretune.files import read_json, write_json

SUFFIX = ".took.json"


@dataclass(frozen=True)
class Took:
    """Seconds of a piece of work."""

    seconds: float = 0.0
    """As they passed"""
    cpu_seconds: float = 0.0
    """Of this process's processors, over all threads"""

    def __add__(self, other: Took) -> Took:
        """One after the other."""
        return Took(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __mul__(self, share: float) -> Took:
        """A share of it."""
        return Took(self.seconds * share, self.cpu_seconds * share)


class Stopwatch:
    """Both clocks from now on."""

    def __init__(self) -> None:
        self._seconds, self._cpu_seconds = time.perf_counter(), time.process_time()

    def took(self) -> Took:
        """Since it was made."""
        return Took(time.perf_counter() - self._seconds, time.process_time() - self._cpu_seconds)


def write_took(block: Path, took: Took) -> None:
    """Keep what ``block`` took; before the block itself, so that no block is without. Raises `OutputError`."""
    write_json(_beside(block), {**vars(took), "process": os.getpid()})


def read_took(block: Path) -> Took:
    """What ``block`` took; nothing where that is not known (a block that was copied without it)."""
    try:
        value = read_json(_beside(block))
        return Took(float(value["seconds"]), float(value["cpu_seconds"]))
    except (OSError, ValueError, KeyError, TypeError, OutputError):
        return Took()


def _beside(block: Path) -> Path:
    return block.with_suffix(SUFFIX)


@dataclass
class Tally:
    """The blocks of one selection. Each counts once, however often the selection comes back to it."""

    computed: int = 0
    reused: int = 0
    before: Took = Took()
    """What the reused blocks took when they were computed"""
    elsewhere: Took = Took()
    """What blocks took that other processes computed now"""
    started: float = field(default_factory=time.time)
    """What was written since then is other processes' work of now"""
    _known: set[str] = field(default_factory=set)

    def add_computed(self, name: str, took: Took | None = None) -> None:
        """A block that was computed now; ``took`` where another process did it."""
        self.computed += 1
        self._known.add(name)
        if took is not None:
            self.elsewhere += took

    def add_reused(self, block: Path, share: float = 1.0) -> None:
        """A block that is there, of which ``share`` is used."""
        if block.name in self._known:
            return
        self._known.add(block.name)
        if block.stat().st_mtime >= self.started:
            self.computed += 1
            self.elsewhere += read_took(block)
            return
        self.reused += 1
        self.before += read_took(block) * share

    def whole(self, own: Took) -> Took:
        """What all of it takes where there is nothing to reuse; ``own`` is what this process spent now.

        Seconds of other processes ran beside our own, so only their processor time is added.
        """
        return own + self.before + Took(0.0, self.elsewhere.cpu_seconds)

    def facts(self) -> dict[str, Any]:
        """For a manifest: what is zero is left out."""
        told = {
            "blocks_computed": self.computed,
            "blocks_reused": self.reused,
            "reused_s": round(self.before.seconds, 3),
        }
        return {name: value for name, value in told.items() if value}
