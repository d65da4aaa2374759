"""An instruction of the user's own before every text: trained with, compared with, and asked with again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.data.choices import Choices
from foretune.data.example import Example, Turn, conversation
from foretune.data.instruction import before_texts, instructed
from foretune.data.profile import profile
from foretune.data.read import read
from foretune.data.split import split
from foretune.errors import UsageError
from foretune.files import read_json
from foretune.fit.conversation import Conversation
from foretune.fit.systems import Prediction, Settings, evaluate_rows, instruction_of, opened, predict_rows

from .. import tiny
from ..whole_fits import SETTINGS

SHORT = Settings(device="cpu", dtype="float32", max_answer_tokens=8, context_tokens=96)
BRIEF = {"budget.steps": None, "budget.trials": 1, "training.epochs": 1}
SAID = "Is it red or blue?"


@pytest.mark.parametrize(
    ("instruction", "prefix", "replaces", "written"),
    [
        ("Sum up.", "", True, "Sum up.\n\n"),
        ("query: ", "", True, "query: "),
        ("Sum up:\n", "", False, "Sum up:\n"),
        (None, "Translate:\n", True, "Translate:\n"),
        ("Say it in German.", "Translate:\n", True, "Say it in German.\n\n"),
        ("Politely, please.", ">>de<< ", False, "Politely, please.\n\n>>de<< "),
    ],
)
def test_how_it_is_written(instruction: str | None, prefix: str, replaces: bool, written: str) -> None:
    assert before_texts(instruction, prefix, replaces=replaces) == written


def test_it_stands_before_the_first_question_alone() -> None:
    turns = (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
    (changed,) = instructed([Example(turns, (4,))], "i: ")
    assert [turn.content for turn in changed.turns] == ["s", "i: q", "a", "r", "b"] and changed.targets == (4,)
    text = Example((Turn("text", "t"),), (0,))
    assert instructed([text], "i: ") == (text,)
    assert instructed([conversation("q", "a")], "") == (conversation("q", "a"),)


def test_the_class_that_a_written_answer_names() -> None:
    film = conversation("Is this review positive or negative?", "")
    for answer, label in (("This is Positive.", "positive"), ("negative", "negative"), ("good", None), ("", None)):
        assert Prediction.written(film, answer, ("negative", "positive")).label == label
    assert Prediction.written(film, "positive", ()).label is None, "nobody said what the classes are"
    quiz = conversation(Choices(("A", "B"), ("Paris", "Rome")).asked("Capital of Italy?"), "")
    for answer, label in (("The answer is B.", "B"), ("Rome", "B"), ("Berlin", None)):
        assert Prediction.written(quiz, answer, ()).label == label


def test_a_fit_with_an_instruction(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """Base, examples and winner are asked with it; predict, evaluate and chat take it from the run, or another one."""
    rows = [{"text": f"the {tiny.THINGS[i % 12]} is {i}", "label": ["red", "blue"][i % 2]} for i in range(60)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, output=tmp_path / "run", options={**BRIEF, "data.instruction": SAID})
    record, run = result.record, str(result.folder)
    answers = read_json(result.folder / "answers" / "test-winner.json")["answers"]
    assert all(answer["prompt"].startswith(f"{SAID}\n\nthe ") for answer in answers)
    assert record.data.instruction == f"{SAID}\n\n"
    bare = read(data)
    assert record.data.profile["prompt_tokens"]["mean"] > 8 and record.data.fingerprint not in (
        profile(split(bare.examples, seed=0)).fingerprint, ""
    ), "to the experience it is another task than the rows alone"  # fmt: skip
    assert SAID in " ".join(record.data.template) and SAID in (result.folder / "report.html").read_text()
    assert SAID in (result.adapter / "README.md").read_text(), "the model card says how to ask"
    about = record.comparison.system("base").about
    assert "name none that these rows have" in about and about in (result.folder / "report.html").read_text()

    texts = [answer["prompt"].removeprefix(f"{SAID}\n\n") for answer in answers]
    wanted = [answer["prediction"] for answer in answers]
    said = predict_rows(run, texts, settings=SHORT)
    assert [one.answer for one in said] == wanted
    assert record.data.labels == ("blue", "red") and said == [
        Prediction.written(conversation(text, ""), answer, ("blue", "red"))
        for text, answer in zip(texts, wanted, strict=True)
    ], "the run knows its classes"  # fmt: skip
    assert [one.prompt for one in predict_rows(run, texts[:1], settings=SHORT)] == texts[:1], "as it was given"
    other = Settings(**{**vars(SHORT), "instruction": "?"})
    examples = [
        Example((Turn("user", text),), label=answer["reference"]) for text, answer in zip(texts, answers, strict=True)
    ]
    losses = [
        evaluate_rows(run, examples, "classification", ["loss"], settings=settings).scores["loss"].value
        for settings in (SHORT, other)
    ]
    winner = record.comparison.system("winner").metrics["loss"].value
    assert losses[0] == pytest.approx(winner, rel=1e-4) and abs(losses[1] - winner) > 1e-3
    with opened(run, [], "generation", settings=SHORT) as (bench, adapted):
        before = instruction_of(run, bench.task.model, bench.model, SHORT)
        asked, told = Conversation(bench, adapted, instruction=before), Conversation(bench, adapted)
        assert asked.ask(texts[0]).answer == told.ask(f"{SAID}\n\n{texts[0]}").answer == wanted[0]
        assert asked.ask(texts[1]).answer == told.ask(texts[1]).answer, "said once, and remembered"


def test_a_plan_counts_its_tokens_and_refuses_it_for_plain_text(tmp_path: Path) -> None:
    options = {**SETTINGS, "model.source": str(tiny.llama(tmp_path / "llama")), "budget.steps": 36}
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.questions(60))
    lengths = [
        foretune.plan(rows, options={**options, **more}).rows.count.row.prompt
        for more in ({}, {"data.instruction": "one two three four five six"})
    ]
    assert lengths[1] >= lengths[0] + 6
    text = tiny.write_rows(tmp_path / "text.jsonl", [{"text": f"The {i} is here today."} for i in range(60)])
    with pytest.raises(UsageError, match="plain text has no questions"):
        foretune.plan(text, options={**options, "data.instruction": SAID})
    with pytest.raises(UsageError, match=r"data\.instruction"):
        foretune.plan(rows, options={**options, "data.instruction": " "})


def test_a_plan_says_what_the_base_is_not_told(tmp_path: Path) -> None:
    rows = [{"text": f"the {tiny.THINGS[i % 12]} is {i}", "label": ["red", "blue"][i % 2]} for i in range(60)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    models = {"llama": tiny.llama(tmp_path / "llama"), "bert": tiny.bert(tmp_path / "bert")}
    said = {
        (name, told): "--instruction" in " ".join(
            foretune.plan(data, options={
                **SETTINGS, "model.source": str(model), **({"data.instruction": SAID} if told else {})
            }).notes
        )
        for name, model in models.items() for told in (False, True)
    }  # fmt: skip
    assert said == {("llama", False): True, ("llama", True): False, ("bert", False): False, ("bert", True): False}
