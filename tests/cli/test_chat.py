"""``foretune chat`` through a pipe and in a terminal, on a tiny random model with a LoRA adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from foretune.cli import chat as command
from foretune.cli.main import app
from foretune.data.encode import inference_ids
from foretune.data.example import Example, Turn
from foretune.data.layout import layout_of
from foretune.data.reasoning import AS_TEXT, Reasoning
from foretune.data.template import answer_text, stop_ids
from foretune.errors import ForetuneError, ModelError, UsageError
from foretune.evaluation.generation import generate_ids
from foretune.evaluation.streaming import write_one
from foretune.fit.conversation import Conversation
from foretune.fit.systems import Settings, opened
from foretune.report.record import Setting, write_record
from tests.export.conftest import Tiny
from tests.report.conftest import sample


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))


def said(lines: str, *arguments: Any) -> Any:
    return CliRunner().invoke(app, ["chat", *map(str, arguments), "--max-tokens", "8"], input=lines)


def replies(lines: str, *arguments: Any) -> list[dict[str, Any]]:
    outcome = said(lines, *arguments, "--json")
    assert outcome.exit_code == 0, repr(outcome.exception)
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def reference(folder: Path, tokenizer: Any, turns: list[Turn]) -> str:
    """What the model answers to a conversation, by the code that evaluates."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = Example((*turns, Turn("assistant", "")), targets=(len(turns),))
    layout = layout_of(tokenizer)
    prompt = inference_ids(row, tokenizer, layout=layout)
    ids = generate_ids(model, [prompt], max_new_tokens=8, stop_ids=stop_ids(tokenizer))[0]
    assert ids is not None
    return answer_text(ids, tokenizer, layout=layout)


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a machine with bfloat16 answers as the reference does."""
    from foretune.models import load

    monkeypatch.setattr(load, "cpu_has_bfloat16", lambda: False)


def test_a_pipe_is_one_conversation(tiny: Tiny) -> None:
    first, second, again = replies("what comes?\n\nand then?\n/reset\nand then?\n", tiny.base)
    assert first["by"] == "model" and first["question"] == "what comes?"
    turns = [Turn("user", "what comes?")]
    assert first["answer"] == reference(tiny.base, tiny.tokenizer, turns)
    turns += [Turn("assistant", first["answer"]), Turn("user", "and then?")]
    assert second["answer"] == reference(tiny.base, tiny.tokenizer, turns)
    assert again["answer"] == reference(tiny.base, tiny.tokenizer, turns[-1:]) != second["answer"]


def test_the_base_answers_the_same_question_and_is_not_remembered(tiny: Tiny) -> None:
    asked = "what comes?\n/base\nand then?\n"
    tuned, base, after = replies(asked, "--model", tiny.base, "--adapter", tiny.adapter)
    assert (tuned["by"], base["by"], after["by"]) == ("adapter", "base", "adapter")
    assert base["answer"] == reference(tiny.base, tiny.tokenizer, [Turn("user", "what comes?")]) != tuned["answer"]
    _, without = replies("what comes?\nand then?\n", tiny.adapter, "--model", tiny.base)
    assert without["answer"] == after["answer"]


def test_a_run_folder_and_the_system_turn(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.adapter, tmp_path / "run" / "adapter")
    record = sample()
    model = replace(record.model, folder=str(tiny.base), weights_sha256="")
    write_record(tmp_path / "run", replace(record, model=model))
    run = replies("what comes?\n", tmp_path / "run")
    assert run == replies("what comes?\n", tiny.adapter, "--model", tiny.base)
    (instructed,) = replies("what comes?\n", tiny.base, "--system", "Tuesday")
    turns = [Turn("system", "Tuesday"), Turn("user", "what comes?")]
    assert instructed["answer"] == reference(tiny.base, tiny.tokenizer, turns)


def test_a_run_is_asked_in_its_own_layout_and_context(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.adapter, tmp_path / "run" / "adapter")
    record = sample()
    model = replace(record.model, folder=str(tiny.base), weights_sha256="", context_tokens=48)
    plain = Setting("model.plain_template", True, "option")
    write_record(tmp_path / "run", replace(record, model=model, settings=(plain,)))
    run = str(tmp_path / "run")
    for settings, expected in (
        (Settings(), (True, 48)),
        (Settings(plain_template=False, context_tokens=32), (False, 32)),
    ):
        with opened(run, [], "generation", settings=settings) as (bench, _):
            assert (bench.task.plain_template, bench.task.context_tokens) == expected
    told = replies("what comes?\n", run)
    assert told == replies("what comes?\n", tiny.adapter, "--model", tiny.base, "--plain")
    assert told != replies("what comes?\n", run, "--no-plain")


def test_a_translator_is_asked_as_it_was_taught(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.adapter, tmp_path / "run" / "adapter")
    record = sample()
    model = replace(record.model, folder=str(tiny.base), weights_sha256="")
    data = replace(record.data, translation="en-de")
    write_record(tmp_path / "run", replace(record, model=model, data=data))
    written = "Translate from English to German:\n"
    told = replies("what comes?\nand then?\n", tmp_path / "run")
    untold = replies("what comes?\n", tiny.adapter, "--model", tiny.base)
    assert told[0]["question"] == "what comes?" and told[0]["answer"] != untold[0]["answer"]
    assert told == replies("what comes?\nand then?\n", tiny.adapter, "--model", tiny.base, "--languages", "en-de")
    for asked, reply in zip(("what comes?", "and then?"), replies("what comes?\nand then?\n", tiny.base, "--languages",
                                                                  "en-de"), strict=True):  # fmt: skip
        alone = reference(tiny.base, tiny.tokenizer, [Turn("user", written + asked)])
        assert reply["answer"] == alone, "each text alone, after the instruction"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("what comes?\n")
    arguments = ["predict", str(tmp_path / "run"), str(prompts), "--json", "--answer-tokens", "8"]
    predicted = json.loads(CliRunner().invoke(app, arguments).stdout)["answers"]
    assert predicted == [{"prompt": "what comes?", "answer": told[0]["answer"]}]


def test_plain_answers_and_quit(tiny: Tiny) -> None:
    (reply,) = replies("what comes?\n", tiny.base)
    outcome = said("what comes?\n/quit\nnever asked\n", tiny.base)
    assert outcome.exit_code == 0 and outcome.stdout == reply["answer"] + "\n"


def test_what_no_longer_fits_is_left_out_from_the_oldest_on(tiny: Tiny) -> None:
    found = replies("what comes?\n" * 6, tiny.base, "--context", 64)
    assert found[0]["forgotten"] == 0 and found[-1]["forgotten"] > 0
    kept = 5 - found[-1]["forgotten"]
    asked = Turn("user", "what comes?")
    turns = [turn for reply in found[5 - kept : 5] for turn in (asked, Turn("assistant", reply["answer"]))]
    assert found[-1]["answer"] == reference(tiny.base, tiny.tokenizer, [*turns, asked])


def test_the_terminal_streams_and_survives_mistakes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["/base", "/nonsense", "what comes?", "/quit"])
    monkeypatch.setattr(command, "_is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    outcome = said("", tiny.base)
    assert outcome.exit_code == 0, repr(outcome.exception)
    assert outcome.stdout == reference(tiny.base, tiny.tokenizer, [Turn("user", "what comes?")]) + "\n"
    assert "no adapter to switch off" in outcome.stderr and "no command /nonsense" in outcome.stderr


def test_pieces_join_to_the_answer_and_an_interrupted_one_is_not_remembered(tiny: Tiny) -> None:
    with opened(str(tiny.base), [], "generation", settings=Settings(max_answer_tokens=24, device="cpu")) as (bench, _):
        conversation = Conversation(bench, None)
        pieces: list[str] = []
        answer = conversation.ask("what comes?", pieces.append).answer
        assert "".join(pieces) == answer and len(pieces) > 3

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            conversation.ask("and then?", interrupt)
        assert torch.is_grad_enabled()
        conversation.reset()
        assert conversation.ask("what comes?").answer == answer


@pytest.mark.parametrize(
    ("reasoning", "written", "begins", "ends"),
    [
        (AS_TEXT, "<think>\nhm\n</think>\n\nEight.", "Ei", "Eight."),
        (Reasoning("reasoning_content", {}, "", "\n</think>\n\n"), "hm\n</think>\n\nEight.", "hm", "\n\nEight."),
    ],
)
def test_reasoning_is_no_part_of_the_answer(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, reasoning: Reasoning, written: str, begins: str, ends: str
) -> None:
    """Where the prompt opened it, it is shown until its end has come: only then is it known for what it is."""
    with opened(str(tiny.base), [], "generation", settings=Settings(max_answer_tokens=64, device="cpu")) as (bench, _):
        conversation = Conversation(bench, None, reasons=True)
        assert conversation._layout is not None
        conversation._layout = replace(conversation._layout, reasoning=reasoning)
        ids = list(range(len(written)))

        def said(model: Any, prompt: Any, *, on_token: Any, **more: Any) -> Any:
            for count in range(1, len(ids) + 1):
                on_token(ids[:count])
            return ids, True

        monkeypatch.setattr("foretune.fit.conversation.write_one", said)
        monkeypatch.setattr(conversation, "_text", lambda ids: reasoning.answer_in(written[: len(ids)]).strip())
        pieces: list[str] = []
        assert conversation.ask("what comes?", pieces.append).answer == "Eight."
        assert ("".join(pieces).startswith(begins) and "".join(pieces).endswith(ends)) and len(pieces) > 3


def test_one_answer_has_the_tokens_of_a_batch_and_a_temperature_its_distribution(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32).eval()
    prompt = np.array([5, 9, 30, 7])
    expected = generate_ids(model, [prompt], max_new_tokens=12, stop_ids=[2])[0]
    ids, complete = write_one(model, prompt, max_new_tokens=12, stop_ids=[2])
    assert ids == expected and complete == (len(ids) < 12)
    with torch.no_grad():
        hot = torch.softmax(model(torch.tensor(prompt)[None]).logits[0, -1].double() / 3.0, dim=-1)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        write_one(model, prompt, max_new_tokens=1, stop_ids=[], temperature=3.0, generator=generator)[0][0]
        for _ in range(400)
    ]
    likeliest = int(hot.argmax())
    share, wanted = drawn.count(likeliest) / len(drawn), float(hot[likeliest])
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / len(drawn)) ** 0.5
    assert len(set(drawn)) > 3


def mistakes(tiny: Tiny, folder: Path) -> Iterator[tuple[list[Any], type[ForetuneError]]]:
    yield [tiny.base, "--adapter", tiny.adapter], UsageError
    yield ["--adapter", folder / "gone"], UsageError
    yield [folder / "gone"], ModelError
    yield [tiny.adapter, "--model", folder / "gone"], ModelError
    yield [tiny.base, "--context", 3], ForetuneError


def test_mistakes_are_our_errors(tiny: Tiny, tmp_path: Path) -> None:
    for arguments, kind in mistakes(tiny, tmp_path):
        outcome = said("what comes?\n", *arguments)
        assert isinstance(outcome.exception, kind), (arguments, outcome.exception)
    assert isinstance(said("/base\n", tiny.base).exception, UsageError)
