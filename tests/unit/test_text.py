"""The text front end: what it refuses, and how it splits a long text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.text.english import Segment, Tokenizer, split, validate_text

SENTENCE = "This sentence is written only to fill some space in the test. "


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("blank", ["", " ", "\n\t", b"", b"  ", "\u3000"])
def test_blank_text_is_refused(blank: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        validate_text(blank, 10)


@pytest.mark.parametrize("broken", [b"\xff", b"caf\xc3", "half a pair: \ud83d"])
def test_text_that_is_not_utf8_is_refused(broken: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        validate_text(broken, 100)


def test_the_length_is_counted_in_characters_and_the_limit_is_allowed() -> None:
    assert validate_text("\u00e9\u00e9\u00e9".encode(), 3) == "\u00e9\u00e9\u00e9"
    with pytest.raises(InvalidRequest, match="4 characters, at most 3"):
        validate_text("abcd", 3)


def test_valid_text_is_returned_unchanged() -> None:
    assert validate_text(b"  two  spaces ", 100) == "  two  spaces "


@pytest.mark.parametrize("text", ["", "Short. Two sentences!", "  spaces  around  ", "x" * 300, " " * 500 + "x"])
def test_a_text_that_fits_is_one_untouched_segment(text: str) -> None:
    assert split(text) == [Segment(text, 0.0)]


def test_sentences_are_packed_up_to_the_limit() -> None:
    segments = split(SENTENCE * 10)
    assert [len(segment.text) for segment in segments] == [4 * len(SENTENCE) - 1] * 2 + [2 * len(SENTENCE) - 1]
    assert [segment.pause for segment in segments] == [0.3, 0.3, 0.0]


def test_an_abbreviation_does_not_end_a_sentence() -> None:
    text = "We met Dr. Smith " + "and then walked for a long while " * 8 + "home. " + SENTENCE
    assert split(text)[0].text.endswith("home.")


def test_a_paragraph_ends_a_segment_with_a_longer_pause() -> None:
    first, second = split(SENTENCE * 2 + "\n\n" + SENTENCE * 3)
    assert first == Segment((SENTENCE * 2).strip(), 0.6)
    assert second.text == (SENTENCE * 3).strip()


def test_a_long_sentence_is_split_after_a_clause() -> None:
    text = "a clause of some words that go on and on for a while, " * 12
    segments = split(text)
    assert all(segment.text.endswith("while,") for segment in segments)
    assert segments[0].pause == pytest.approx(0.15)


def test_a_long_clause_is_split_at_spaces_and_a_long_word_anywhere() -> None:
    assert all(set(segment.text.split()) == {"word"} for segment in split("word " * 200))
    assert [len(segment.text) for segment in split("x" * 700)] == [300, 300, 100]


def test_chinese_is_split_at_its_own_punctuation() -> None:
    segments = split("\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 100)
    assert all(segment.text.endswith(("\uff0c", "\u3002")) for segment in segments)


@given(st.text(max_size=400), st.integers(3, 40))
def test_nothing_is_lost_and_no_segment_is_too_long(text: str, limit: int) -> None:
    segments = split(text, limit)
    assert squeezed("".join(segment.text for segment in segments)) == squeezed(text)
    if len(text.strip()) > limit:
        assert all(0 < len(segment.text) <= limit for segment in segments)
    assert segments[-1].pause == 0.0


@given(
    st.lists(
        st.sampled_from(["A.", "J.", "Mr. ", "\u3000", "\xa0", "a", "\u00e9", ". ", "\n\n", "\u3002"]), max_size=60
    )
)
def test_initials_before_wide_characters_do_no_harm(pieces: list[str]) -> None:
    text = "".join(pieces)  # sentencex alone panics on some of these
    assert squeezed("".join(segment.text for segment in split(text, 20))) == squeezed(text)


def test_a_file_that_is_no_tokenizer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer(path)


def test_a_tokenizer_without_the_special_tokens_is_an_error(tmp_path: Path, tiny: Checkpoint) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tiny.tokenizer_path.read_text().replace("[START]", "[BEGIN]"))
    with pytest.raises(CheckpointError, match=r"lacks \[START\]"):
        Tokenizer(path)
