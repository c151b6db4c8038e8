"""Pieces of text to sentences: the same wherever the pieces are cut, and those of the engine's splitter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatterbox_client.sentences import LONGEST, Sentences
from chatterbox_engine.text.sentence_ends import segment
from tests.fidelity.test_text_multilingual import SENTENCES

LANGUAGES = sorted(SENTENCES)
MARKS = (
    ". ", "! ", "? ", "... ", "\n", "\n\n", ", ", " ", '"', "(", ") ", "\u3002", "\u300d", "Mr. ", "3.", "5 ",
    "z. B. ", "U.S. ", "p.m. ", "he ", "The ", "word", "1. ", "\U0001f600", "\u0964 ", "; ", "\t", "\xa0", "a" * 120,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(MARKS), max_size=40).map("".join) | st.text(max_size=200)
CUTS = st.lists(st.integers(0, 400), max_size=30)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def sentences(parts: list[str], language: str = "en", flushes: frozenset[int] = frozenset()) -> list[str]:
    """What is given out for pieces, with a flush after those of these numbers and at the end."""
    collector, found = Sentences(language), []
    for number, part in enumerate(parts):
        found += collector.push(part)
        if number in flushes:
            found += collector.flush()
    return [*found, *collector.flush()]


@given(TEXTS, CUTS, st.sampled_from(LANGUAGES))
@example("He said 3.", [8], "en")
@example("." * 400, [299, 300, 301], "en")
def test_any_cutting_gives_the_sentences_of_the_whole_text(text: str, cuts: list[int], language: str) -> None:
    whole = sentences([text], language)
    assert sentences(pieces(text, cuts), language) == whole
    assert sentences(list(text), language) == whole
    assert all(sentence.strip() for sentence in whole)


@given(TEXTS, CUTS, st.sets(st.integers(0, 31)), st.sampled_from(LANGUAGES))
def test_any_flushes_lose_nothing_and_repeat_nothing(
    text: str, cuts: list[int], flushes: set[int], language: str
) -> None:
    parts = pieces(text, cuts)
    found = sentences(parts, language, frozenset(flushes))
    assert text.startswith("".join(found))
    assert not text.removeprefix("".join(found)).strip()
    between, start = [], 0
    for number in sorted({*(flush for flush in flushes if flush < len(parts)), len(parts) - 1}):
        between.append("".join(parts[start : number + 1]))
        start = number + 1
    alone = [sentence.split() for part in between for sentence in sentences([part], language)]
    assert [sentence.split() for sentence in found] == alone


@given(st.lists(st.integers(0, 400), max_size=30), st.sampled_from(LANGUAGES), st.randoms(use_true_random=False))
def test_flushes_at_the_ends_of_sentences_change_nothing(cuts: list[int], language: str, draw: random.Random) -> None:
    text = " ".join(draw.sample(SENTENCES[language], 4))
    whole = sentences([text], language)
    flushed = [sentence for line in whole for sentence in sentences(pieces(line, cuts), language)]
    assert flushed == whole


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_of_every_language_are_those_of_the_engine(language: str) -> None:
    draw = random.Random(language)
    for _ in range(10):
        chosen = draw.sample(SENTENCES[language] * 3, 8)
        text = ("" if language in ("ja", "zh") else " ").join(chosen)
        assert sentences(list(text), language) == segment(text, language)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. J. Smith met Mr. O. K. Jones at 5 p.m. on Main St. in the U.S. He left.", 2),
        ("Pi is 3.14159. Is it? Yes!", 3),
        ("Well... you know. Wait... What?", 3),
        ('"Yes." she said. "No." He left.', 3),
        ("1. One item\n2. Another item", 1),
        ("Visit example.com. It is new.", 2),
        ("Title\n\nA paragraph.", 2),
    ],
)
def test_english(text: str, expected: int) -> None:
    found = sentences(list(text))
    assert len(found) == expected, found


def test_a_sentence_is_given_out_with_the_word_after_it() -> None:
    collector = Sentences()
    assert collector.push("Hello there. ") == []
    assert collector.push("How") == []
    assert collector.push(" ") == ["Hello there. "]
    assert collector.waiting == 4


def test_a_piece_that_is_a_whole_sentence_settles() -> None:
    collector = Sentences()
    for piece, settled in (
        ("Hello there.", 1),
        ("Is it? ", 1),
        ("Hello Dr.", 0),
        (" Smith", 0),
        (".", 1),
        ("A phrase", 0),
    ):
        assert collector.push(piece) == []
        assert len(collector.settle()) == settled, piece


def test_a_long_sentence_is_split_at_a_clause_or_a_space() -> None:
    clause = "word " * 40 + "end, "
    found = sentences([clause * 3])
    assert [len(sentence) for sentence in found] == [len(clause)] * 3
    assert {len(sentence) for sentence in Sentences().push("word " * 200)} == {LONGEST}
    assert [len(sentence) for sentence in sentences(["x" * 700])] == [300, 300, 100]


def test_blank_text_waits() -> None:
    collector = Sentences()
    assert (collector.push(" \n"), collector.flush(), collector.push("One."), collector.flush()) == (
        [],
        [],
        [],
        [" \nOne."],
    )
