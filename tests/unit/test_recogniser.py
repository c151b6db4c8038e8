"""The recogniser of the demo voice's tests."""

from __future__ import annotations

import math

import pytest

from tools.demo_voice.recogniser import arpa, dictionary, distance
from tools.demo_voice.sentences import normal, sentences


@pytest.mark.parametrize(
    ("wanted", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c", "a x c", 1), ("a b c d", "b c d e", 2)],
)
def test_the_distance_counts_wrong_missing_and_surplus_words(wanted: str, heard: str, errors: int) -> None:
    assert distance(wanted.split(), heard.split()) == errors


def test_the_probabilities_of_what_may_follow_a_word_sum_to_one() -> None:
    texts = [text.split() for text in ("the cat sat", "the dog sat", "a cat ran")]
    ones, twos = arpa(texts).split("\\2-grams:")
    single = {line.split()[1]: line.split() for line in ones.splitlines() if len(line.split()) == 3 and line[0] == "-"}
    pairs = {tuple(line.split()[1:]): float(line.split()[0]) for line in twos.splitlines() if line.startswith("-")}
    for first in ("the", "cat", "<s>"):
        total = 0.0
        for second in single:
            backed = float(single[first][2]) + float(single[second][0])
            total += 0.0 if second == "<s>" else 10 ** pairs.get((first, second), backed)
        assert math.isclose(total, 1.0, rel_tol=1e-3)


def test_a_word_that_the_recogniser_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="does not know zyzzyvaq"):
        dictionary({"cat", "zyzzyvaq"})


def test_sentences_are_the_same_every_time_and_held_out_ones_have_only_words_that_are_taught() -> None:
    train, held = sentences(2000)
    assert (train, held) == sentences(2000)
    taught = {word for text in train for word in normal(text)}
    assert len(held) == 50
    assert not set(held) & set(train)
    assert taught.issuperset(word for text in held for word in normal(text))
