"""What the record of a run says about how its system was trained and is to be asked; nothing for other systems.

Serves ``foretune evaluate``, ``predict`` and ``chat``, so that a run is asked as it was compared. Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from foretune.catalogue.languages import Languages, parse_pair
from foretune.report.record import RESULT, DataInfo, RunRecord, read_record

ANSWER_TOKENS = 128
"""Longest written answer where neither the user nor the run's record says"""
CONTEXT_TOKENS = 2048
"""Longest row where neither the user nor the run's record says"""


def known_languages(name: str) -> Languages | None:
    """Source and target that the run behind ``name`` was trained to translate; None where no record says."""
    data = known_data(name)
    return parse_pair(data.translation) if data is not None and data.translation else None


def known_task(name: str) -> str | None:
    """The task that the run behind ``name`` was trained for; None where no record says."""
    data = known_data(name)
    return None if data is None else data.task


def known_reasoning(name: str) -> bool:
    """Whether the run behind ``name`` was mostly trained to reason before it answers; False where no record says."""
    data = known_data(name)
    return data is not None and data.reasoning > 0.5


def known_answer_tokens(name: str, least: int = ANSWER_TOKENS) -> int:
    """How long the answers were that the run behind ``name`` wrote when it was compared; at least ``least``."""
    data = known_data(name)
    return least if data is None else max(least, data.answer_tokens)


def known_plain(name: str) -> bool:
    """Whether the run behind ``name`` was trained without the chat template; False where no record says."""
    record = _known(name)
    settings = () if record is None else record.settings
    return any(setting.key == "model.plain_template" and setting.value is True for setting in settings)


def known_context(name: str) -> int:
    """The longest row, in tokens, of the run behind ``name``; `CONTEXT_TOKENS` where no record says."""
    record = _known(name)
    return (None if record is None else record.model.context_tokens) or CONTEXT_TOKENS


def known_dtype(name: str) -> Literal["auto", "float32"]:
    """The number type of the run behind ``name`` where it was not the machine's own choice: float32."""
    record = _known(name)
    return "float32" if record is not None and record.model.dtype == "float32" else "auto"


def known_four_bit(name: str) -> bool:
    """Whether the run behind ``name`` trained over a base in four bits; False where no record says."""
    record = _known(name)
    return record is not None and record.model.quantize == "4bit"


def known_data(name: str) -> DataInfo | None:
    """The data of the run behind ``name``; None where there is no record."""
    record = _known(name)
    return None if record is None else record.data


def _known(name: str) -> RunRecord | None:
    return read_record(Path(name)) if (Path(name) / RESULT).is_file() else None
