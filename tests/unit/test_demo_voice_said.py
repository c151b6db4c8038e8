"""What the demo voice's tokens say, and when."""

from __future__ import annotations

import numpy as np
import pytest

from tools.demo_voice.phones import INDEX, token_ids
from tools.demo_voice.said import expected, halves, phone_errors, phones, word_starts, wrong_words


def tokens(said: str) -> list[int]:
    """A token for each pair of phones."""
    numbers = [INDEX[phone] for phone in said.split()]
    return [
        int(token_ids(np.array([first]), np.array([second]))[0])
        for first, second in zip(*[iter(numbers)] * 2, strict=True)
    ]


SYMBOLS = "h\u02c8ɛlO ð\u02ccɛɹ."
SAID = "_ _ h h ɛ1 ɛ1 l l O O _ _ _ _ ð ð ɛ ɛ ɹ ɹ _ _"


def test_tokens_say_their_phones() -> None:
    assert halves(tokens("h ɛ1 _ l")) == ["h", "ɛ", "_", "l"]
    assert halves([6561]) == ["_", "_"]
    assert phones(tokens(SAID)) == ["h", "ɛ", "l", "O", "ð", "ɛ", "ɹ"]


def test_words_begin_where_their_phones_do_also_after_a_wrong_one() -> None:
    words = expected(SYMBOLS)
    assert word_starts(tokens(SAID), words) == {0: pytest.approx(0.04), 1: pytest.approx(0.28)}
    assert word_starts(tokens(SAID.replace("ð ð", "z z")), words)[1] == pytest.approx(0.28)
    assert word_starts(tokens(SAID), [*words[:1], ["k", "æ", "t"], *words[1:]])[2] == pytest.approx(0.28)


def test_phone_errors_are_counted() -> None:
    wanted = [phone for word in expected(SYMBOLS) for phone in word]
    said = phones(tokens(SAID))
    assert phone_errors(said, wanted) == 0
    changed = [said[:-1], said[:3] + said, ["h", "z", *said[2:]]]
    assert [phone_errors(each, wanted) for each in changed] == [1, 3, 1]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("h ɛ l O ð ɛ ɹ", 0),
        ("h ɛ l O", 1),
        ("h ɛ z O z ð ɛ ɹ", 1),
        ("h ɛ l O ð ɛ z ɹ z", 1),
        ("z h ɛ l O ð z ɹ", 2),
        ("h ɛ l O ð ɛ ɹ h ɛ l O h ɛ", 2),
        ("", 2),
    ],
)
def test_wrong_words_are_counted(said: str, wrong: int) -> None:
    assert wrong_words(said.split(), expected(SYMBOLS)) == wrong
