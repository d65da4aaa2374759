"""``foretune data show``: rows as the model gets them, on the command line."""

from __future__ import annotations

import json

import pytest
import template_tokenizers as made
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import UsageError

pytest.importorskip("foretune.data.read")
pytest.importorskip("foretune.models.load")


@pytest.fixture
def data(tmp_path):
    made.TOKENIZERS["chatml bytes"]().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in ("two", "four", "six", "ten")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(file), "--model", str(tmp_path / "model")]


def run(*arguments):
    return CliRunner().invoke(app, ["data", "show", *arguments], catch_exceptions=False)


def test_rows_are_shown_with_marks_and_the_report(data):
    result = run(*data)
    assert result.exit_code == 0
    assert result.output.count("[[it is ") == 3 and "[[it is two<|im_end|>]]" in result.output
    assert "4 rows" in result.output and "\x1b" not in result.output


def test_one_row(data):
    result = run(*data, "--row", "4")
    assert "[[it is ten<|im_end|>]]" in result.output and result.output.count("[[") == 1
    assert "rows.jsonl:4" in result.output
    with pytest.raises(UsageError, match="no row 5"):
        run(*data, "--row", "5")


def test_json(data):
    value = json.loads(run(*data, "--rows", "1", "--json").output)
    assert value["report"]["rows"] == 4 and len(value["rows"]) == 1
    row = value["rows"][0]
    assert sum(row["target_mask"]) == len("it is two") + 1 == len(row["ids"]) - row["prompt_length"]


def test_plain(data):
    assert "what is two?↵\n[[it is two<|im_end|>]]" in run(*data, "--plain").output


def test_a_wrong_kind_is_refused(data):
    with pytest.raises(UsageError, match="not a kind of model"):
        run(*data, "--kind", "diffusion")


def test_columns_of_ones_own_and_an_instruction(data, tmp_path):
    """A file that fit reads with options can be looked at with the same ones."""
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"ask": "what is two?", "say": "it is 2", "role": "be brief"}) + "\n", encoding="utf-8")
    columns = ["--prompt-column", "ask", "--answer-column", "say", "--system-column", "role"]
    shown = run(str(file), *data[1:], *columns, "--instruction", "Answer in one word.").output
    assert "system↵\nbe brief<|im_end|>" in shown and "user↵\nAnswer in one word.↵\n↵\nwhat is two?" in shown
    assert "[[it is 2<|im_end|>]]" in shown
