"""Classification, calibration, regression and likelihood against sklearn, scipy and hand-computed values."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score

from foretune.data.choices import Choices
from foretune.data.row_label import label_text
from foretune.errors import DataError, TrainingError
from foretune.evaluation.aggregate import calibration_error, resamples, spearman
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.evaluation.metrics.labels import calibration, read_choice, read_class, reading_note
from foretune.evaluation.metrics.numbers import number


def classified(pairs: list[tuple[str, str]]) -> list[Answer]:
    return [Answer(i, "?", reference, said) for i, (said, reference) in enumerate(pairs)]


def test_macro_f1_and_balanced_accuracy_equal_sklearn() -> None:
    random = np.random.default_rng(1)
    truth = random.choice(["a", "b", "c"], 200, p=[0.7, 0.2, 0.1]).tolist()
    said = [t if random.random() < 0.6 else random.choice(["a", "b", "c", "junk"]) for t in truth]
    rows = classified(list(zip(said, truth, strict=True)))
    classes = ["a", "b", "c"]
    assert METRICS["macro_f1"].score(rows).value == pytest.approx(
        f1_score(truth, said, labels=classes, average="macro")
    )
    with pytest.warns(UserWarning):
        expected = balanced_accuracy_score(truth, said)
    balanced = METRICS["balanced_accuracy"].score(rows)
    assert balanced.value == pytest.approx(expected)
    assert balanced.details is not None and balanced.details["predicted_outside"] == said.count("junk")
    assert METRICS["accuracy"].score(rows).value == np.mean([s == t for s, t in zip(said, truth, strict=True)])


def test_calibration_by_hand() -> None:
    rows = [
        Answer(0, "", "a", "a", nll=0.1, probability=0.9),
        Answer(1, "", "b", "a", nll=2.0, probability=0.9),
        Answer(2, "", "a", "a", nll=0.5, probability=0.6),
    ]
    measured = calibration(rows, bins=2)  # all in (0.5, 1]: mean confidence 0.8, accuracy 2/3
    assert measured.expected_error == pytest.approx(0.8 - 2 / 3)
    assert measured.brier == pytest.approx((0.01 + 0.81 + 0.16) / 3)
    assert measured.log_loss == pytest.approx(2.6 / 3)
    fine = calibration(rows, bins=10)  # (0.8, 0.9]: |0.9 − 0.5| of two rows; (0.5, 0.6]: |0.6 − 1| of one
    assert fine.expected_error == pytest.approx(0.4)
    assert [b.rows for b in fine.bins] == [1, 2]
    with pytest.raises(DataError, match="row 4"):
        calibration([*rows, Answer(4, "", "a", "a", probability=1.2)])


def test_calibration_error_is_that_of_its_bins_in_every_resample() -> None:
    random = np.random.default_rng(0)
    rows = [
        Answer(i, "", "a", "a" if right else "b", probability=float(sure))
        for i, (sure, right) in enumerate(zip(random.uniform(0.0, 1.0, 200), random.random(200) < 0.7, strict=True))
    ]
    measured = METRICS["calibration_error"].score(rows)
    assert measured.value == pytest.approx(calibration(rows).expected_error)
    drawn = random.integers(0, 200, 200)
    weights = np.bincount(drawn, minlength=200)[None].astype(np.float64)
    again = calibration_error(weights, np.asarray(measured.statistics))
    assert again[0] == pytest.approx(calibration([rows[i] for i in drawn]).expected_error)
    assert 0 < measured.standard_error < 0.1


def regression(pairs: list[tuple[float, float]]) -> list[Answer]:
    return [Answer(i, "?", str(wanted), str(said)) for i, (said, wanted) in enumerate(pairs)]


def test_correlations_and_errors_equal_scipy() -> None:
    random = np.random.default_rng(2)
    x = random.integers(0, 8, 80).astype(float)  # with ties
    y = x + random.normal(0, 2, 80).round()
    rows = regression(list(zip(x, y, strict=True)))
    for name, reference in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        result = METRICS[name].score(rows)
        assert result.value == pytest.approx(reference(x, y).statistic)
        assert np.mean(result.per_row) == pytest.approx(result.value)
    # Fisher: the error of r is about (1 − r²)/√(n − 1) for a bivariate normal
    r = METRICS["pearson"].score(rows)
    assert r.standard_error == pytest.approx((1 - r.value**2) / math.sqrt(79), rel=0.35)
    mse = METRICS["mse"].score(rows)
    assert mse.value == pytest.approx(np.mean((x - y) ** 2))
    assert mse.standard_error == pytest.approx(stats.sem((x - y) ** 2))
    assert METRICS["mae"].score(rows).value == pytest.approx(np.mean(np.abs(x - y)))


def test_spearman_is_ranked_anew_in_every_resample() -> None:
    random = np.random.default_rng(3)
    rows = np.column_stack([random.integers(0, 5, 30), random.integers(0, 5, 30)]).astype(float)
    weights = next(resamples(30, 20, seed=0, stream="test"))
    for weight, value in zip(weights, spearman(weights, rows), strict=True):
        drawn = np.repeat(rows, weight.astype(int), axis=0)
        assert value == pytest.approx(stats.spearmanr(drawn[:, 0], drawn[:, 1]).statistic)


def test_predictions_that_are_no_numbers_are_no_skill_and_constant_ones_correlate_with_nothing() -> None:
    rows = [Answer(i, "?", str(float(i)), said) for i, said in enumerate(["good", "good", "good"])]
    result = METRICS["spearman"].score(rows)
    assert result.value == 0.0 and result.details == {"unreadable_predictions": 3}
    assert METRICS["mse"].score(rows).value == pytest.approx(2 / 3)  # the variance of 0, 1, 2
    with pytest.raises(DataError, match="every reference is the same"):
        METRICS["pearson"].score([Answer(0, "?", "1", "2"), Answer(1, "?", "1", "3")])
    with pytest.raises(DataError, match="compares numbers, and the answer of row 0 is 'bad'"):
        METRICS["mae"].score([Answer(0, "?", "bad", "2")])
    huge = regression([(1e308, -1e308), (-1e308, 1e308), (0.0, 5.0)])
    assert METRICS["pearson"].score(huge).value == pytest.approx(-1.0)
    with np.errstate(over="ignore"), pytest.raises(TrainingError, match="no score"):
        METRICS["mse"].score(huge)


def likelihood(rows: list[tuple[float, int, int]]) -> list[Answer]:
    return [
        Answer(i, "?", "x" * size, nll=nll, tokens=tokens, bytes=size) for i, (nll, tokens, size) in enumerate(rows)
    ]


def test_loss_is_per_token_and_per_byte() -> None:
    rows = likelihood([(2.0, 4, 10), (6.0, 4, 6), (1.0, 1, 0)])
    loss = METRICS["loss"].score(rows)
    assert loss.value == 1.0
    # residuals nll − 1·tokens = −2, 2, 0; mean tokens 3; √(8 / (2·3)) / 3
    assert loss.standard_error == pytest.approx(math.sqrt(8 / 6) / 3)
    assert METRICS["loss_per_byte"].score(rows).value == pytest.approx(9 / math.log(2) / 16)
    assert METRICS["loss"].score(rows[:1]).standard_error == 0.5
    with pytest.raises(DataError, match="empty"):
        METRICS["loss_per_byte"].score(rows[2:])


def test_ratio_error_is_the_spread_over_samples() -> None:
    random = np.random.default_rng(4)
    values, errors = [], []
    for _ in range(400):
        tokens = random.integers(1, 60, 80)
        nll = tokens * random.gamma(4, 0.5, 80)
        result = METRICS["loss"].score(likelihood([(float(v), int(t), 1) for v, t in zip(nll, tokens, strict=True)]))
        values.append(result.value)
        errors.append(result.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("joy; anger", "anger; joy", 1.0),
        ("Joy, anger", "anger; joy", 1.0),
        ("joy", "anger; joy", 2 / 3),
        ("joy; joy", "joy", 1.0),
        ("joy; rage", "joy", 2 / 3),
        ("none", "anger; joy", 0.0),
        ("none", "none", 1.0),
        ("", "joy", 0.0),
        ("arts, film", "arts, film; sport", 2 / 3),
        ("It is about joy and a little anger.", "anger; joy", 1.0),
        ("The text is about joy.", "anger; joy", 2 / 3),
        ("A joyful text.", "joy", 0.0),
    ],
)
def test_labels_are_compared_as_sets(prediction: str, reference: str, score: float) -> None:
    rows = [Answer(0, "?", reference, prediction), Answer(1, "?", "anger; joy; none", "anger; joy; none")]
    assert METRICS["label_f1"].score(rows).per_row == pytest.approx((score, 1.0))


@pytest.mark.parametrize(
    ("prediction", "named"),
    [
        ("positive", "positive"),
        (" positive\n", "positive"),
        ("Positive.", "positive"),
        ("This film review is positive, with a focus on escapism.", "positive"),
        ("It is very positive!", "very positive"),
        ("It is positive, even very positive", "It is positive, even very positive"),
        ("Neither positive nor negative", "Neither positive nor negative"),
        ("A positively good film", "A positively good film"),
        ("4 stars", "4"),
        ("4 out of 5", "4 out of 5"),
        ("", ""),
    ],
)
def test_a_class_is_read_from_a_sentence_that_names_one(prediction: str, named: str) -> None:
    assert read_class(prediction, ["negative", "positive", "very positive", "4", "5"]) == named


def test_accuracy_says_how_many_answers_were_sentences() -> None:
    said = ["positive", "It is negative.", "It is positive.", "Who knows?"]
    rows = [Answer(i, "?", ["positive", "negative"][i % 2], text) for i, text in enumerate(said)]
    result = METRICS["accuracy"].score(rows)
    assert result.per_row == (1.0, 1.0, 1.0, 0.0) and result.details == {"read_in_sentences": 2, "predicted_outside": 1}
    assert METRICS["balanced_accuracy"].score(rows).per_row == result.per_row
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        note = "2 of 4 answers say more than their class, 1 of 4 name none that these rows have"
        assert reading_note(METRICS[name].score(rows)) == note
    assert reading_note(METRICS["accuracy"].score(rows[:1])) == ""
    assert reading_note(METRICS["exact_match"].score(rows)) == "", "it reads nothing"


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. A dog", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (B) A dog, because …", "B"),
        ("Answer: C", "C"),
        ("I think option C fits.", "C"),
        ("It is a dog.", "B"),
        ("Answer: a dog", "B"),
        ("A dog", "B"),
        ("A cat and a dog", "A cat and a dog"),
        ("A. a cat\nB. a dog\nC. both of them", "A. a cat\nB. a dog\nC. both of them"),
        ("B. a dog\n\nDogs bark.", "B"),
        ("A", "A"),
        ("D", "D"),
        ("Nobody knows", "Nobody knows"),
    ],
)
def test_a_choice_is_read_by_its_label_or_its_text(prediction: str, label: str) -> None:
    choices = Choices(("A", "B", "C"), ("a cat", "a dog", "both of them"))
    assert read_choice(prediction, choices) == label


def test_choices_are_found_in_the_prompt_that_asked_them() -> None:
    choices = Choices(("1", "2"), ("a cat", "a dog. Or not"))
    prompt = choices.asked("Some passage.\n\nWhat is it?")
    assert Choices.asked_in(prompt) == choices and Choices.asked_in("Instructed.\n\n" + prompt) == choices
    for other in ("What is it?", "One.\n\nTwo.\n\nThree.", Choices(("A", "B"), ("x", "y\n\nz")).asked("?")):
        assert Choices.asked_in(other) is None
    rows = [Answer(0, prompt, "2", "It is a dog. Or not"), Answer(1, prompt, "2", "1"), Answer(2, "odd", "2", "2")]
    result = METRICS["choice"].score(rows)
    assert result.per_row == (1.0, 0.0, 1.0)
    assert result.details == {"read_in_sentences": 1, "predicted_outside": 0}


def test_the_class_of_a_head_is_no_sentence() -> None:
    """A class that the scored rows lack may hold another as a word."""
    rows = [
        Answer(0, "", "transfer", "cancel transfer", probability=0.9),
        Answer(1, "", "transfer", "transfer", probability=0.8),
    ]
    for name in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert METRICS[name].score(rows).per_row == (0.0, 1.0)
    assert METRICS["accuracy"].score([replace(row, probability=None) for row in rows]).value == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12,500", 12500.0),
        ("about -1,234,567.5 in all", -1234567.5),
        ("1,2", 1.0),
        ("0,125", 0.0),
        ("1,2345", 1.0),
        ("1e3", 1000.0),
        ("7.", 7.0),
    ],
)
def test_commas_between_thousands_are_part_of_a_number(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("label", "written"),
    [(1234567.0, "1234567"), (249999.99, "249999.99"), (0.123456789, "0.123456789"), (20240131.0, "20240131"),
     (0.5, "0.5"), (-3.0, "-3"), (float(np.float32(0.1)), "0.1"), (1e-7, "1e-07"), (1e300, "1e+300"), ("a", "a")],
)  # fmt: skip
def test_numbers_are_written_in_full(label: float | str, written: str) -> None:
    assert label_text(label) == written
