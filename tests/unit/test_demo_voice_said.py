"""What the demo voice's tokens say, and when."""

from __future__ import annotations

import numpy as np
import pytest

from tools.demo_voice.phones import INDEX, token_ids
from tools.demo_voice.said import error_rate, expected, halves, phones, word_starts


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
    assert error_rate([said], [wanted]) == 0
    assert error_rate([said[:-1], said[:3] + said, ["h", "z", *said[2:]]], [wanted] * 3) == pytest.approx(5 / 21)
