"""The recogniser of the demo voice's tests."""

from __future__ import annotations

import pytest

from tools.demo_voice.held_out import SENTENCES, UNSEEN
from tools.demo_voice.lines import LINES
from tools.demo_voice.recogniser import distance, known, normal


@pytest.mark.parametrize(
    ("wanted", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c", "a x c", 1), ("a b c d", "b c d e", 2)],
)
def test_the_distance_counts_wrong_missing_and_surplus_words(wanted: str, heard: str, errors: int) -> None:
    assert distance(wanted.split(), heard.split()) == errors


def test_the_recogniser_knows_all_words_that_are_measured() -> None:
    assert known([*SENTENCES, *LINES])
    assert not known(["The zyzzyvaq."])


def test_half_of_the_held_out_sentences_have_a_word_that_is_in_no_training_text() -> None:
    assert len(set(SENTENCES)) == 100
    assert sum(any(word.startswith(tuple(UNSEEN)) for word in normal(text)) for text in SENTENCES) >= 50
