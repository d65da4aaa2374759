"""The profile: numbers computed by hand, languages and scripts, independence of order."""

from __future__ import annotations

import json
import zlib

import pytest

from foretune.data.example import Example, Turn, conversation
from foretune.data.languages import UNKNOWN, is_code, language_of, scripts
from foretune.data.profile import Lengths, Profile, estimate_tokens, profile
from foretune.data.split import Splits, split

ROWS = [conversation(f"question number {n} about things", f"answer {n % 4}") for n in range(40)]


def test_numbers_by_hand() -> None:
    splits = split(ROWS, seed=1)
    measured = profile(splits, count_tokens=lambda text: len(text.split()))
    assert measured.rows == {"train": 24, "validation": 8, "test": 8}
    assert measured.prompt_tokens == Lengths(5.0, 0.0, 5.0) and measured.answer_tokens == Lengths(2.0, 0.0, 2.0)
    assert measured.answer_share == pytest.approx(2 / 7)
    assert (measured.turns, measured.tokens_estimated, measured.task) == (2.0, False, "generation")
    assert measured.unique_answers == len({row.answer for row in splits.train}) / 24
    words = [w for row in splits.train for w in f"{row.prompt} {row.answer}".split()]
    assert measured.type_token_ratio == pytest.approx(len(set(words)) / len(words))
    text = "\n".join(f"{row.prompt}\n{row.answer}" for row in sorted(splits.train, key=lambda r: r.id)).encode()
    assert measured.compression_ratio == pytest.approx(len(text) / len(zlib.compress(text, 6)))
    assert measured.scripts == {"latin": 1.0}


def test_lengths() -> None:
    lengths = Lengths.of(list(range(1, 101)))
    assert (lengths.mean, lengths.p95) == (50.5, pytest.approx(95.05))
    assert lengths.std == pytest.approx(28.866070)
    assert Lengths.of([]) == Lengths(0.0, 0.0, 0.0)


def test_json_and_order() -> None:
    first, second = profile(split(ROWS, seed=1)), profile(split(ROWS[::-1], seed=1))
    assert first == second and first.tokens_estimated
    assert Profile.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False))) == first
    assert profile(split(ROWS[1:], seed=1)).fingerprint != first.fingerprint


def test_labelled_and_plain_rows() -> None:
    rows = [Example((Turn("user", f"text {n} here"),), label="ab"[n % 4 == 0]) for n in range(40)]
    measured = profile(split(rows))
    assert measured.task == "classification"
    assert set(measured.labels) == {"a", "b"} and measured.imbalance == measured.labels["a"] / measured.labels["b"]
    assert sum(measured.labels.values()) == measured.rows["train"]
    plain = profile(split([Example((Turn("text", f"document {n}"),), targets=(0,)) for n in range(20)]))
    assert plain.prompt_tokens.mean == 0 and plain.answer_share == 1.0 and plain.task == "language-modelling"


def test_duplicate_share_counts_all_rows() -> None:
    splits: Splits = split(ROWS + ROWS[:10], seed=1)
    assert profile(splits).duplicate_share == pytest.approx(10 / 50)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and looked at the birds in the garden.", "en"),
        ("Der Hund ist nicht im Garten, sondern auf der Straße mit den Kindern.", "de"),
        ("Le chat est sur la table et il ne veut pas descendre avec les autres.", "fr"),
        ("El perro está en la calle con los niños y no quiere volver a casa.", "es"),
        ("Il gatto è sul tavolo e non vuole scendere con gli altri della casa.", "it"),
        ("O gato não está em casa, mas sim na rua com os meninos do bairro.", "pt"),
        ("De hond is niet in het huis maar op de straat met een van de kinderen.", "nl"),
        ("Кошка не хочет выходить на улицу, потому что там было очень холодно и она как-то из дома.", "ru"),
        ("猫はテーブルの上にいます。", "ja"),
        ("小猫在桌子上睡觉。", "zh"),
        ("고양이가 탁자 위에 있다.", "ko"),
        ("Η γάτα είναι πάνω στο τραπέζι.", "el"),
        ("xqz blorp 12345", UNKNOWN),
        ("Helium", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_scripts_and_code() -> None:
    assert scripts(["abc", "где"]) == {"latin": 0.5, "cyrillic": 0.5}
    assert scripts(["123 !?"]) == {}
    assert is_code("Write it:\n```python\nprint(1)\n```")
    assert is_code("def f(x):\n    return g(x)\n\nimport os\n")
    assert is_code("int main() {\n  std::cout << 1;\n  return 0;\n}")
    assert not is_code("The cat sat on the mat; it was happy. Would you let it sleep?")
    assert not is_code("What is the return on the investment of (roughly) 5 %?")


def test_estimated_tokens() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("a b c d e f") == 6
    assert estimate_tokens("internationalisation") == 5
