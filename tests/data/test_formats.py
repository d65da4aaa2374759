"""Row formats, tasks and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretune.data.choices import Choices
from foretune.data.columns import Columns
from foretune.data.example import Turn
from foretune.data.labels import guess_labels
from foretune.data.read import ReadResult, read
from foretune.errors import DataError


def S(text: str) -> Turn:  # noqa: N802
    return Turn("system", text)


def U(text: str) -> Turn:  # noqa: N802
    return Turn("user", text)


def A(text: str) -> Turn:  # noqa: N802
    return Turn("assistant", text)


def from_rows(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path, **options)


CASES: dict[str, tuple[dict[str, Any], str, tuple[Turn, ...], tuple[int, ...]]] = {
    "messages": (
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                      {"role": "assistant", "content": "a"}]},
        "messages", (S("s"), U("q"), A("a")), (2,),
    ),
    "messages under another key, several answers": (
        {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                           {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]},
        "messages", (U("q"), A("a"), U("r"), A("b")), (1, 3),
    ),
    "messages with weights and parts": (
        {"messages": [{"role": "developer", "content": "s"},
                      {"role": "user", "content": [{"type": "text", "text": "q"}]},
                      {"role": "assistant", "content": "a", "weight": 0}, {"role": "user", "content": "r"},
                      {"role": "assistant", "content": "b", "weight": 1}]},
        "messages", (S("s"), U("q"), A("a"), U("r"), A("b")), (4,),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        "sharegpt", (S("s"), U("q"), A("a")), (2,),
    ),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, "prompt-completion", (U("q"), A("a")), (1,)),
    "conversational prompt and completion": (
        {"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "r"}],
         "completion": [{"role": "assistant", "content": "b"}]},
        "prompt-completion", (U("q"), A("a"), U("r"), A("b")), (3,),
    ),
    "alpaca": ({"instruction": "do", "input": "", "output": "a", "text": "all"}, "alpaca", (U("do"), A("a")), (1,)),
    "alpaca with input": (
        {"instruction": "do", "input": "this", "output": "a"}, "alpaca", (U("do\n\nthis"), A("a")), (1,)
    ),
    "dolly": (
        {"instruction": "do", "context": "this", "response": "a", "category": "x"},
        "alpaca", (U("do\n\nthis"), A("a")), (1,),
    ),
    "question and answer": ({"question": "q", "answer": "a"}, "question-answer", (U("q"), A("a")), (1,)),
    "squad": (
        {"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}},
        "question-answer", (U("c\n\nq"), A("a")), (1,),
    ),
    "numbers as answers": ({"question": "q", "answer": 42}, "question-answer", (U("q"), A("42")), (1,)),
    "translation": ({"translation": {"en": "dog", "de": "Hund"}}, "translation", (U("dog"), A("Hund")), (1,)),
    "source and target": ({"source": "dog", "target": "Hund"}, "source-target", (U("dog"), A("Hund")), (1,)),
    "summaries": ({"document": "long", "summary": "short"}, "summary", (U("long"), A("short")), (1,)),
    "text and label": ({"text": "t", "label": "x"}, "text-label", (U("t"),), ()),
    "names in capitals": ({"Question": "q", "Answer ": "a", "ID": 3}, "question-answer", (U("q"), A("a")), (1,)),
    "input and output": ({"input": "q", "output": "a"}, "prompt-completion", (U("q"), A("a")), (1,)),
    "problem, solution and answer": (
        {"problem": "q", "solution": "so a", "answer": "a"}, "prompt-completion", (U("q"), A("so a")), (1,)
    ),
    "several labels": ({"text": "t", "labels": ["joy", "Anger"]}, "text-labels", (U("t"), A("Anger; joy")), (1,)),
    "several labels by number": ({"text": "t", "labels": [7, 3]}, "text-labels", (U("t"), A("3; 7")), (1,)),
    "no label holds": ({"text": "t", "labels": []}, "text-labels", (U("t"), A("none")), (1,)),
    "several labels of two texts": (
        {"premise": "t", "hypothesis": "u", "label": ["x", "y"]}, "text-labels", (U("t\n\nu"), A("x; y")), (1,)
    ),
    "two texts and a label": ({"premise": "t", "hypothesis": "u", "label": 0}, "text-label", (U("t"), U("u")), ()),
    "two texts and a label of their own": (
        {"sentence1": "t", "sentence2": "u", "is_duplicate": True}, "text-label", (U("t"), U("u")), ()
    ),
    "text": ({"text": "t", "meta": {"a": 1}}, "text", (Turn("text", "t"),), (0,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_format_is_found_and_converted(tmp_path: Path, name: str) -> None:
    row, form, turns, targets = CASES[name]
    for options in ({}, {"format": form}):
        result = from_rows(tmp_path, row, row, **options)
        assert (result.format, result.examples[0].turns, result.examples[0].targets) == (form, turns, targets)


def test_an_exact_name_wins_over_one_in_capitals(tmp_path: Path) -> None:
    found = from_rows(
        tmp_path, {"Text": "no", "text": "yes", "Label": "x"}, {"Text": "no", "text": "yes", "Label": "y"}
    )
    assert [row.turns[0].content for row in found.examples] == ["yes", "yes"] and found.examples[1].label == "y"
    assert any("columns: text = 'text', label = 'Label'" in note for note in found.notes)
    assert any("not used: Text" in note for note in found.notes)


def test_one_odd_first_row_does_not_decide_the_format(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": "x"}] + [{"question": "q", "answer": "a"}] * 3
    with pytest.raises(DataError, match=r"1 of 4 rows.*\n.*:1: there is no 'question'"):
        from_rows(tmp_path, *rows)


def test_translation_direction(tmp_path: Path) -> None:
    row = {"translation": {"en": "dog", "de": "Hund", "fr": "chien"}}
    with pytest.raises(DataError, match=r"translation\.en, translation\.de"):
        from_rows(tmp_path, row)
    result = from_rows(tmp_path, row, columns=Columns(prompt="de", answer="fr"))
    assert (result.examples[0].prompt, result.examples[0].answer) == ("Hund", "chien")
    result = from_rows(tmp_path, row, columns=Columns(prompt="translation.fr", answer="translation.en"))
    assert (result.examples[0].prompt, result.examples[0].answer) == ("chien", "dog")
    flat = {"en": "dog", "de": "Hund"}
    result = from_rows(tmp_path, flat, columns=Columns(prompt="en", answer="de"))
    assert (result.examples[0].prompt, result.examples[0].answer) == ("dog", "Hund")


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "user", "content": "q"}], "last turn is the user's"),
        ([{"role": "user", "content": "q"}, {"role": "critic", "content": "x"}], "turn 2: role 'critic' is not"),
        ([{"role": "assistant", "content": "a"}], "turn 1: the assistant speaks before"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}], "'image_url'"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}],
            "turn 2: the assistant's turn is em",
        ),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}], "weight 0"),
        ([{"role": "user", "content": "q"}, "a"], "turn 2: is text"),
        ([{"content": "q"}], "turn 1: has no role"),
        ([], "empty list"),
        ("q", "holds text, not a list of turns"),
    ],
)
def test_conversations_that_cannot_be_used(tmp_path: Path, messages: Any, what: str) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(DataError) as caught:
        from_rows(tmp_path, good, good, {"messages": messages})
    assert "rows.jsonl:3: " in str(caught.value) and what in str(caught.value)


def test_preference_pairs_are_named(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"preference pairs.*--answer-column chosen"):
        from_rows(tmp_path, row)
    assert from_rows(tmp_path, row, columns=Columns(answer="chosen")).examples[0].answer == "a"


ASKED, TOLD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "advised", "columns"),
    [
        ({"chosen": [ASKED, TOLD]}, "--answer-column chosen", Columns(answer="chosen")),
        ({"prompt": "q", "chosen": [ASKED, TOLD]}, "--prompt-column prompt --answer-column chosen",
         Columns(prompt="prompt", answer="chosen")),
        ({"prompt": [ASKED], "chosen": [TOLD]}, "--prompt-column prompt --answer-column chosen",
         Columns(prompt="prompt", answer="chosen")),
        ({"question": "q", "chosen": "a"}, "--prompt-column question --answer-column chosen",
         Columns(prompt="question", answer="chosen")),
        ({"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "--answer-column chosen",
         Columns(answer="chosen")),
    ],
)  # fmt: skip
def test_what_is_advised_for_preference_pairs_reads_them(
    tmp_path: Path, row: Any, advised: str, columns: Columns
) -> None:
    pair = {**row, "rejected": row["chosen"]}
    with pytest.raises(DataError, match=f"preference pairs.*: {advised}\\."):
        from_rows(tmp_path, pair)
    (example,) = from_rows(tmp_path, pair, columns=columns).examples
    assert [(turn.role, turn.content) for turn in example.turns] == [("user", "q"), ("assistant", "a")]


def test_chosen_texts_alone_are_texts(tmp_path: Path) -> None:
    pair = {"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}
    with pytest.raises(DataError, match="--text-column chosen"):
        from_rows(tmp_path, pair)
    (example,) = from_rows(tmp_path, pair, columns=Columns(text="chosen")).examples
    assert example.answer == "Human: q Assistant: a"


def test_answers_marked_as_unwanted_are_not_learnt(tmp_path: Path) -> None:
    good, poor = ({"prompt": "q", "completion": "a", "label": mark} for mark in (True, False))
    with pytest.raises(DataError, match=r"'label' marks answers as wanted .*jq"):
        from_rows(tmp_path, good, poor)
    assert len(from_rows(tmp_path, good, good).examples) == 2, "all of them are wanted"
    assert len(from_rows(tmp_path, {"prompt": "q", "completion": "a", "label": "shop"}).examples) == 1
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="marks answers"):
        from_rows(tmp_path, {"messages": turns, "label": True}, {"messages": turns, "label": False})


CHOICES = ["red", "blue", "green"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which?", "subject": "art", "choices": CHOICES, "answer": 1},
        {"id": "x", "question": "Which?", "choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"ctx": "Which?", "endings": CHOICES, "label": "1"},
        {"question": "Which?", "options": {"A": "red", "B": "blue", "C": "green"}, "answer": "blue", "answer_idx": "B"},
        {"question_stem": "Which?", "choices": CHOICES, "correct_answer": "blue"},
        {"Question": "Which?", "Options": CHOICES, "Answer": "B"},
        {"question": "Which?", "choices": json.dumps(CHOICES), "answer": "1"},
    ],
    ids=["mmlu", "arc", "hellaswag", "medqa", "by text", "capitals", "a table's"],
)
def test_multiple_choice_shows_its_choices_and_is_answered_by_a_letter(tmp_path: Path, row: dict[str, Any]) -> None:
    found = from_rows(tmp_path, row, row)
    assert found.format == "multiple-choice" and found.task == "generation"
    assert found.examples[0].prompt == "Which?\n\nA. red\nB. blue\nC. green\n\nAnswer with A, B or C."
    assert found.examples[0].answer == "B"


def test_choices_with_labels_of_their_own_and_a_text_before_them(tmp_path: Path) -> None:
    row = {
        "article": "Snow fell.",
        "question": "Then?",
        "options": {"text": ["2", "1"], "label": ["1", "2"]},
        "answer": "2",
    }
    (example,) = from_rows(tmp_path, row).examples
    assert example.prompt == "Snow fell.\n\nThen?\n\n1. 2\n2. 1\n\nAnswer with 1 or 2." and example.answer == "2"


def test_a_number_is_a_label_where_labels_are_numbers_and_else_a_place() -> None:
    numbered, lettered = Choices(("1", "2", "3"), ("x", "y", "z")), Choices.of(["x", "y", "z"])
    assert lettered is not None and (numbered.right(1), lettered.right(1), lettered.right(1.0)) == (0, 1, 1)
    assert (numbered.right("3"), lettered.right("2"), lettered.right(" C "), lettered.right("z")) == (2, 2, 2, 2)
    assert Choices.of(["3", "2"]).right("2") == 1, "a text goes before a place"  # type: ignore[union-attr]
    assert (lettered.right(2.5), lettered.right("D"), lettered.right(""), lettered.right(True)) == (None,) * 4


def test_an_answer_that_is_no_choice_is_bad_and_free_answers_make_no_multiple_choice(
    tmp_path: Path,
) -> None:
    good = {"question": "Which?", "choices": CHOICES, "answer": 0}
    for wrong in (3, -1, "pink", None, True):
        with pytest.raises(DataError) as caught:
            from_rows(tmp_path, good, good, {**good, "answer": wrong})
        assert "rows.jsonl:3: 'answer' is" in str(caught.value) and "none of its 3 choices" in str(caught.value)
    with pytest.raises(DataError, match=r"rows.jsonl:3: 'choices' holds no choices"):
        from_rows(tmp_path, good, good, {**good, "choices": ["red"]})
    free = from_rows(tmp_path, {"question": "Which?", "choices": CHOICES, "answer": "It depends."})
    assert free.format == "question-answer"


def test_a_column_of_reasoning_is_thought_before_the_answer(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "Complex_CoT": " hm ", "answer": "a"},
        {"question": "p", "Complex_CoT": None, "answer": "b"},
    ]
    found = from_rows(tmp_path, *rows)
    assert [example.turns[-1].reasoning for example in found.examples] == ["hm", ""]
    assert "reasoning = 'Complex_CoT'" in " ".join(found.notes)
    own = from_rows(tmp_path, {"prompt": "q", "reasoning": "outer", "completion": "<think>inner</think>a"})
    assert own.examples[0].turns[-1].reasoning == "inner"
    steps = from_rows(tmp_path, {"question": "q", "reasoning": ["one", "two"], "answer": "a"})
    assert not steps.examples[0].turns[-1].reasoning and "not used: reasoning" in " ".join(steps.notes)
    letter = from_rows(tmp_path, {"question": "q", "choices": CHOICES, "answer": 2, "thinking": "grass"}).examples[0]
    assert letter.answer == "C" and letter.turns[-1].reasoning == "grass"


def test_one_label_of_another_name_is_the_label_and_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    one = from_rows(tmp_path, *({"text": f"t {i}", "Topic_Label": "ab"[i % 2]} for i in range(4)))
    assert one.format == "text-label" and {example.label for example in one.examples} == {"a", "b"}
    rows = [{"text": f"t {i}", "coarse_label": i % 2, "fine_label": i % 3} for i in range(6)]
    with pytest.raises(DataError, match=r"text, coarse_label, fine_label.*--label-column"):
        from_rows(tmp_path, *rows)
    chosen = from_rows(tmp_path, *rows, columns=Columns(label="fine_label"))
    assert {example.label for example in chosen.examples} == {"0", "1", "2"}
    assert from_rows(tmp_path, *rows, columns=Columns(text="text")).task == "language-modelling"


def test_notes_say_what_was_taken_and_what_was_left(tmp_path: Path) -> None:
    notes = " ".join(from_rows(tmp_path, {"question": "q", "answer": "a", "id": 7, "why": "w"}).notes)
    assert "prompt = 'question', answer = 'answer'" in notes and "not used: id, why" in notes


@pytest.mark.parametrize(
    ("labels", "typed", "task"),
    [
        (["a", "b", "a"], True, "classification"),
        ([True, False], True, "classification"),
        ([1, 2, 3, 4, 5] * 4, True, "classification"),
        (list(range(77)) * 5, True, "classification"),  # codes 0 … 76
        (list(range(77)), True, "regression"),
        ([3, 900, 41, 7] * 9 + list(range(100, 140)), True, "regression"),
        ([0.5, 1.0, 2.0], True, "regression"),
        ([1.0, 2.0, 3.0], True, "regression"),
        (["1", "2", "1"], True, "classification"),  # text on purpose
        (["1", "2", "1"], False, "classification"),
        (["1.5", "2"], False, "regression"),
        (["1.5", "two"], False, "classification"),
    ],
)
def test_label_kinds(labels: list[Any], typed: bool, task: str) -> None:
    assert guess_labels(labels, typed=typed)[0] == task


def test_labels_take_their_final_form(tmp_path: Path) -> None:
    rows = [{"text": "t", "stars": n} for n in (1, 2, 1)]
    result = from_rows(tmp_path, *rows)
    assert ([e.label for e in result.examples], result.task) == (["1", "2", "1"], "classification")
    assert any("--task regression" in note for note in result.notes)
    result = from_rows(tmp_path, *rows, task="regression")
    assert [e.label for e in result.examples] == [1.0, 2.0, 1.0]
    result = from_rows(tmp_path, *rows, task="generation")
    assert (result.examples[1].turns, result.examples[1].targets) == ((U("t"), A("2")), (1,))
    result = from_rows(tmp_path, *rows, task="language-modelling")
    assert result.examples[0].turns == (Turn("text", "t"),)
    halves = [{"text": "t", "score": 0.5}, {"text": "t", "score": 2}]
    assert [e.label for e in from_rows(tmp_path, *halves).examples] == [0.5, 2.0]
    assert [e.label for e in from_rows(tmp_path, *halves, task="classification").examples] == ["0.5", "2"]


def test_answers_as_labels(tmp_path: Path) -> None:
    result = from_rows(tmp_path, {"question": "q", "answer": "yes"}, task="classification")
    assert (result.examples[0].turns, result.examples[0].targets, result.examples[0].label) == ((U("q"),), (), "yes")
    with pytest.raises(DataError, match=r"'yes' is not a finite number"):
        from_rows(tmp_path, {"question": "q", "answer": "yes"}, task="regression")


def test_tasks_that_do_not_fit_the_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be classification"):
        from_rows(tmp_path, {"text": "t"}, task="classification")
    with pytest.raises(DataError, match=r"cannot be language-modelling"):
        from_rows(tmp_path, {"question": "q", "answer": "a"}, task="language-modelling")


@pytest.mark.parametrize("label", [None, "", [], ["a", "b"], {"a": 1}])
def test_rows_without_one_label(tmp_path: Path, label: Any) -> None:
    good = {"text": "t", "label": "x"}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 'label'"):
        from_rows(tmp_path, good, {"text": "t", "label": label}, good)


def test_label_drift_is_bad_rows(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": value} for value in (1, 2, "two", 1)]
    with pytest.raises(DataError, match=r"'label' is text here but a number in most rows"):
        from_rows(tmp_path, *rows)


def test_lists_of_labels_are_sets_unless_each_has_one(tmp_path: Path) -> None:
    """Rows with one label among rows with more are sets of one; where all have one it is a label; one odd list is
    a bad row, not a change of the task."""
    lists = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["x", "y"]}, {"text": "c", "labels": "y"}]
    mixed = from_rows(tmp_path, *lists)
    assert [row.answer for row in mixed.examples] == ["x", "x; y", "y"] and mixed.task == "generation"
    single = from_rows(tmp_path, lists[0], {"text": "b", "labels": ["y"]})
    assert [row.label for row in single.examples] == ["x", "y"] and single.task == "classification"
    with pytest.raises(DataError, match=r"1 of 4 rows cannot be used(.|\n)*holds a list, not one label"):
        from_rows(tmp_path, *[{"text": "a", "labels": "x"}] * 3, lists[1])
    as_classes = read(tmp_path / "rows.jsonl", task="classification", format="text-labels")
    assert [row.label for row in as_classes.examples] == ["x", "x", "x", "x; y"], "every combination is a class"


@pytest.mark.parametrize(
    ("labels", "said"),
    [([["x", None], ["y", "z"]], "holds nothing .null. among its labels"), ([["a; b", "c"], ["a"]], "has a semicolon")],
)
def test_labels_that_cannot_be_written(tmp_path: Path, labels: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        from_rows(tmp_path, *({"text": "t", "labels": each} for each in labels))


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vectors of 0 and 1"):
        from_rows(tmp_path, *({"text": "t", "labels": each} for each in ([0, 1, 0], [1, 0, 1])))
    numbers = from_rows(tmp_path, *({"text": "t", "labels": each} for each in ([0, 1], [1, 0])))
    assert {row.answer for row in numbers.examples} == {"0; 1"}, "two numbers may as well be numbers of labels"


@pytest.mark.parametrize("labels", [["1_11", "11_1", "2"], ["01", "007", "12"], ["0111", "0112", "1011"]])
def test_codes_in_a_table_are_kept_as_they_are_written(tmp_path: Path, labels: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t {n},{label}\n" for n, label in enumerate(labels * 4)))
    result = read(path)
    assert result.task == "classification" and {example.label for example in result.examples} == set(labels)
    assert any("begin with a zero" in note for note in result.notes) is ("_" not in labels[0])
    path.write_text("text,label\n" + "".join(f"t {n},{n % 9:02d}.5\n" for n in range(12)))
    assert read(path).task == "regression", "a fraction is no code"


def test_numbers_with_gaps_in_a_table_are_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t {n},{n / 7 if n % 20 else 'NA'}\n" for n in range(1, 61)))
    assert any("57 of 60 labels are numbers and the others, such as 'NA'" in note for note in read(path).notes)
    numbers = read(path, task="regression", on_bad_row="quarantine")
    assert (len(numbers.examples), numbers.quarantined) == (57, 3)


def test_few_labels_are_read_like_those_of_another_file(tmp_path: Path) -> None:
    few = [{"text": f"t {n}", "label": n} for n in range(30)]
    assert from_rows(tmp_path, *few).task == "regression"
    result = read(tmp_path / "rows.jsonl", like="classification")
    assert (result.task, result.examples[3].label) == ("classification", "3")
    from_rows(tmp_path, {"question": "q", "answer": "a"})
    assert read(tmp_path / "rows.jsonl", like="classification").task == "generation"


def test_choices_that_a_table_filled_up_with_nulls_are_those_there_are(tmp_path: Path) -> None:
    row = {"question": "q?", "options": {"A": "one", "B": "two", "C": None}, "answer": "B"}
    (example,) = from_rows(tmp_path, row).examples
    assert example.turns[0].content == "q?\n\nA. one\nB. two\n\nAnswer with A or B." and example.answer == "B"
