"""A run is asked as it was trained and compared: by what its record says, where the user says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foretune.data.example import Example, Turn, conversation
from foretune.data.reasoning import TO_COME
from foretune.errors import OutputError, UsageError
from foretune.files import check_output
from foretune.fit import systems
from foretune.fit.known import known_context, known_dtype, known_four_bit, known_plain
from foretune.fit.systems import Settings
from foretune.report.record import Setting, write_record

from ..report.conftest import sample


def test_what_a_record_says_is_known(tmp_path: Path) -> None:
    assert (known_plain(str(tmp_path)), known_context(str(tmp_path)), known_dtype(str(tmp_path))) == (
        False,
        2048,
        "auto",
    )
    record = sample()
    model = replace(record.model, dtype="float32", quantize="4bit", context_tokens=96)
    plain = Setting("model.plain_template", True, "user", "--set")
    write_record(tmp_path, replace(record, model=model, settings=(*record.settings, plain)))
    assert known_plain(str(tmp_path)) and known_context(str(tmp_path)) == 96
    assert known_dtype(str(tmp_path)) == "float32" and known_four_bit(str(tmp_path))
    write_record(tmp_path, record)
    assert known_dtype(str(tmp_path)) == "auto", "bfloat16 is the machine's choice, and another may not have it"


def test_a_reasoning_run_reasons_where_the_rows_hold_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Example] = []

    class Bench:
        kind, network = "causal", None

        def split(self, name: str) -> Any:
            rows = (conversation("q", "a"), Example((Turn("user", "q"), Turn("assistant", "a", reasoning="so")), (1,)))
            return type("Split", (), {"examples": rows})

        def answers(self, *given: Any, generation: bool) -> list[Any]:
            assert not generation
            return [systems.Answer(number, "q", "a", None) for number in range(2)]

        def write(self, network: Any, examples: list[Example]) -> list[str]:
            asked.extend(examples)
            return ["a", "b"]

    answers = systems._answers(Bench(), True, True)  # type: ignore[arg-type]
    assert [answer.prediction for answer in answers] == ["a", "b"]
    assert [row.turns[-1].reasoning for row in asked] == [TO_COME, "so"]


def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "answers.jsonl", tmp_path / ("n" * 300)):
        with pytest.raises(OutputError, match="no file of this name"):
            check_output(path, {})
    check_output(tmp_path / "new" / "answers.jsonl", {"prompts": tmp_path / "file"})
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UsageError, match="replace the prompts"):
        check_output(tmp_path / "file", {"prompts": tmp_path / "file"})
    assert Settings().plain_template is None
