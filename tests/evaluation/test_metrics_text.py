"""Text metrics against rouge_score's and sacreBLEU's own numbers and hand-computed cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretune.data.example import Example, Turn, conversation
from foretune.errors import DataError, UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS, default_metric, metric
from foretune.evaluation.metrics import text as metrics_text


def answers(pairs: list[tuple[str, str]]) -> list[Answer]:
    return [Answer(i, "?", reference, prediction) for i, (prediction, reference) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("  Paris. ", "paris", True),
        ('"Paris"', "Paris!", True),
        ("ＡＢＣ", "abc", True),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("C++", "C", False),
        ("the cat", "cat", False),
        ("...", "", False),
        ("Straße", "STRASSE", True),
        ("北京。", "北京", True),
    ],
)
def test_exact_match_forgives_typing_not_meaning(prediction: str, reference: str, same: bool) -> None:
    assert metrics_text.exact(prediction, reference) == float(same)


# F-measures printed by rouge_score 0.1.2 (rougeL, no stemmer)
ROUGE_CASES = [
    ("to and on then and to a then it", "then a to ran on some", 0.26666666666666666),
    ("find some a off some off then cat and ran some milk then find", "the some some cat find off to", 8 / 21),
    ("the then some on a some sat it on milk find and cat", "some milk then a a cat a some", 0.2857142857142857),
    ("milk ran it and it mat", "on sat find the milk on cat off cat sat the cat", 0.1111111111111111),
    (
        "some it mat off a find find some it milk it and ran milk",
        "mat a cat it mat sat the a off mat sat and the to find",
        0.2758620689655172,
    ),
    ("the it some it off the", "sat find cat cat find cat ran sat milk off then off the", 0.21052631578947367),
    ("The quick, brown fox!", "the brown-quick fox", 0.75),
]


@pytest.mark.parametrize(("prediction", "reference", "expected"), ROUGE_CASES)
def test_rouge_l_equals_the_rouge_score_package(prediction: str, reference: str, expected: float) -> None:
    assert metrics_text.rouge_l(prediction, reference) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_longest_common_subsequence_equals_the_textbook_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert metrics_text.longest_common(a, b) == table[-1][-1]


def test_token_f1_by_hand() -> None:
    # common {a, red} = 2 of 3 said and 4 wanted: 2·2/7
    assert metrics_text.token_f1("a red bike", "a big red car") == pytest.approx(4 / 7)
    assert metrics_text.token_f1("", "word") == 0.0
    assert metrics_text.token_f1("+", "+") == 1.0
    assert metrics_text.token_f1("+", "-") == 0.0


def test_words_work_in_other_scripts() -> None:
    assert metrics_text.words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert metrics_text.words("東京は大きい") == list("東京は大きい")
    assert metrics_text.words("costs 3.5, or 1,000.") == ["costs", "3.5", "or", "1,000"]


CORPUS = [
    ("the cat sat on the mat", "the cat is sitting on the mat"),
    ("hello", "hello there, general"),
    ("", "nothing was said here"),
    ("Das ist ein kleiner Test.", "Dies ist ein kleiner Test!"),
    ("completely unrelated words", "quantum chromodynamics"),
]


@pytest.mark.parametrize("rows", [CORPUS, CORPUS[:1], CORPUS[1:2], CORPUS[2:3], CORPUS[4:]])
def test_corpus_scores_equal_sacrebleu(rows: list[tuple[str, str]]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    predictions, references = [p for p, _ in rows], [r for _, r in rows]
    scored = METRICS["bleu"].score(answers(rows))
    assert scored.value == pytest.approx(BLEU().corpus_score(predictions, [references]).score)
    assert scored.details is not None and "tok:13a" in scored.details["signature"]
    assert "nrefs:1" in scored.details["signature"]
    chrf = METRICS["chrf"].score(answers(rows))
    assert chrf.value == pytest.approx(CHRF(word_order=2).corpus_score(predictions, [references]).score)
    sentences = [CHRF(word_order=2).sentence_score(p, [r]).score for p, r in rows]
    assert chrf.per_row == pytest.approx(sentences)
    assert chrf.standard_error > 0 and scored.standard_error > 0


def test_corpus_bleu_error_is_the_spread_over_samples_of_rows() -> None:
    """The bootstrap error of one sample against the spread of BLEU over fresh samples of the same population."""
    random = np.random.default_rng(0)
    population = [(" ".join(random.choice(list("abcdef"), 8)), " ".join(random.choice(list("abcdef"), 8)))
                  for _ in range(2000)]  # fmt: skip
    samples = [[population[i] for i in random.integers(0, 2000, 60)] for _ in range(60)]
    scores = [METRICS["bleu"].score(answers(sample)) for sample in samples[:25]]
    values = [score.value for score in scores]
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(np.std(values, ddof=1), rel=0.45)


def test_json_metrics() -> None:
    pairs = [
        ('{"a": 1, "b": [true]}', '{"b": [true], "a": 1}', 1, 1),
        ('{"a": 1}', '{"a": true}', 1, 0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 0, 0),
        ('{"a": NaN}', '{"a": NaN}', 0, 0),
        ("[" * 100_000, "[]", 0, 0),
        ("", "{}", 0, 0),
        ("1.0", "1", 1, 1),
    ]
    for prediction, reference, valid, equal in pairs:
        assert metrics_text.json_valid(prediction, reference) == valid
        assert metrics_text.json_equal(prediction, reference) == equal


def test_share_metric_errors_are_agresti_coull() -> None:
    perfect = METRICS["exact_match"].score(answers([("a", "a")] * 10))
    assert perfect.value == 1.0
    assert perfect.standard_error == pytest.approx(math.sqrt((12 / 14) * (2 / 14) / 14))
    single = METRICS["rouge_l"].score(answers([("a b", "a c")]))
    assert 0 < single.standard_error <= 0.5


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_refuses_no_rows_and_rows_without_what_it_needs(name: str) -> None:
    with pytest.raises(DataError, match="no rows"):
        METRICS[name].score([])
    with pytest.raises(DataError, match="row 7"):
        METRICS[name].score([Answer(7, "?", "1.5"), Answer(8, "?", "2.5")])
    assert METRICS[name].name == name


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"comet"}))  # which has a test of its own: it needs a checkpoint
def test_every_metric_gives_finite_numbers_for_degenerate_predictions(name: str) -> None:
    for said in ["", " ", "1", "\x00", "9" * 5000, "1e999", "😀", "[" * 50_000]:
        rows = [Answer(i, "?", str(i), said, nll=1.0, tokens=2, bytes=1, probability=0.5) for i in range(4)]
        result = METRICS[name].score(rows)
        assert math.isfinite(result.value) and math.isfinite(result.standard_error)
        assert len(result.per_row) == 4 and all(map(math.isfinite, result.per_row))


def test_default_metric_follows_the_answers() -> None:
    short = [conversation("q", "Paris"), conversation("q", "New York City")]
    long = [conversation("q", "a long answer of more than five words, clearly")]
    as_json = [conversation("q", '{"name": "x", "of": ["y"]}')] * 9 + [conversation("q", "oops")]
    assert default_metric("generation", short) == "exact_match"
    assert default_metric("generation", long) == "rouge_l"
    assert default_metric("generation", as_json) == "json_validity"
    assert default_metric("generation", [conversation("q", "42")]) == "exact_match"
    assert default_metric("generation", long, translation=True) == "chrf"
    assert default_metric("generation", long, format="source-target") == "chrf"
    assert default_metric("generation", short, format="summary") == "rouge_l"
    assert default_metric("generation", short, format="text-labels") == "label_f1"
    assert default_metric("classification", [Example((Turn("user", "x"),), label="a")]) == "accuracy"
    assert default_metric("regression", [Example((Turn("user", "x"),), label=1.0)]) == "spearman"
    assert default_metric("language-modelling", []) == "loss"


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean rouge_l"):
        metric("rougel")
