"""The text front end: what it refuses, and how it splits a long text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chatterbox_engine
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.errors import CheckpointError, InvalidRequest
from chatterbox_engine.text import split as splitting
from chatterbox_engine.text.clean import validate_text, visible
from chatterbox_engine.text.english import EnglishText, Tokenizer
from chatterbox_engine.text.passages import Text
from tests.fidelity.test_text_multilingual import SENTENCES

SENTENCE = "This sentence is written only to fill some space in the test. "


@dataclass(frozen=True)
class Segment:
    text: str
    pause: float


def split(text: str, max_chars: int = 300, language: str = "en") -> list[Segment]:
    """The parts of a text; each leads back to the source."""
    parts = splitting.split(Text.of(text), language, max_chars)
    for part in parts:
        for char, start, end in zip(part.text.string, part.text.starts, part.text.ends, strict=True):
            assert char == text[start:end] or (char.isspace() and text[start:end].isspace())
    return [Segment(part.text.string, part.pause) for part in parts]


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


def test_sentences_are_packed_into_as_few_segments_as_fit_of_similar_lengths() -> None:
    segments = split(SENTENCE * 10)
    assert [len(segment.text) for segment in segments] == [count * len(SENTENCE) - 1 for count in (3, 4, 3)]
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
    segments = split("word " * 200)
    assert len(segments) > 1
    assert " ".join(segment.text for segment in segments).split() == ["word"] * 200
    assert [len(segment.text) for segment in split("x" * 700)] == [233, 233, 234]


def test_a_crumb_is_not_left_after_a_full_segment() -> None:
    for text in (
        "a clause of nine and thirty characters, " * 8,
        "word " * 61,
        "x" * 301,
        SENTENCE * 4 + "Yes, yes. " * 6,
    ):
        first, second = split(text)
        assert len(second.text) > 0.6 * len(first.text), text


def test_a_long_sentence_ends_its_segments_with_a_clause_rather_than_in_the_middle() -> None:
    text = "some words without an end " * 9 + "here, " + "and after it some more words " * 6 + "there."
    assert split(text)[0].text.endswith("here,")


@pytest.mark.parametrize(
    ("piece", "whole"),
    [
        ("it was 1 234 567 in all ", "1 234 567"),
        ("call +49 30 1234 5678 at once ", "+49 30 1234 5678"),
        ("see z. B. the old one ", "z. B."),
        ("so Dr. Smith said it ", "Dr. Smith"),
        ("and [clear throat] again ", "[clear throat]"),
        ("about 1,234.56 of them ", "1,234.56"),
        ("at 10:30 or at 11:45 it ", "10:30"),
        ("\u7ea6\uff11\uff0c\uff12\uff13\uff14\u4e2a\uff0c", "\uff11\uff0c\uff12\uff13\uff14"),
    ],
)
def test_no_segment_ends_in_a_number_an_abbreviation_or_a_tag(piece: str, whole: str) -> None:
    for lead in range(12):
        text = "x" * lead + " " + piece * 12
        for limit in (40, 60, 100):
            assert sum(segment.text.count(whole) for segment in split(text, limit)) == 12, limit


def test_a_long_word_is_cut_neither_in_a_number_nor_before_a_mark() -> None:
    assert all(segment.text.endswith("a") for segment in split("12345a" * 60, 100))
    assert all(segment.text.startswith("\u0939") for segment in split("\u0939\u094d" * 60, 33))
    assert [len(segment.text) for segment in split("7" * 70, 40)] == [35, 35]


def test_chinese_is_split_at_its_own_punctuation() -> None:
    segments = split("\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 100)
    assert len(segments) > 1
    assert all(segment.text.endswith(("\uff0c", "\u3002")) for segment in segments)


LINE_ENDS = ("\n", "\r\n", "\r", "\u2028", "\n\n", "\r\n\r\n", "\n \n", "\u2029", "\x85", "\v", "\f", " ", "\u3000", "")
PIECES = st.one_of(
    st.sampled_from([line for lines in SENTENCES.values() for line in lines]),
    st.text(max_size=40),
    st.sampled_from(
        ["word ", "A.", "Mr. ", "e.g. ", "3.14 ", "x" * 700, "\u4f60\u597d\u3002", ", ", '."', "...", "\u0939 "]
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(PIECES, st.sampled_from(LINE_ENDS)), min_size=1, max_size=12),
    st.integers(1, 3000),
    st.integers(3, 300),
)
def test_nothing_is_lost_or_doubled_and_no_segment_is_too_long(
    pieces: list[tuple[str, str]], repeats: int, limit: int
) -> None:
    """Of texts of any length, line end and script; what sentencex does in pieces begins at 10,240 characters."""
    text = "".join(piece + end for piece, end in pieces)
    text *= max(1, min(repeats, 30_000 // max(1, len(text))))
    segments = split(text, limit)
    assert squeezed("".join(segment.text for segment in segments)) == squeezed(text)
    assert segments[-1].pause == 0.0
    if len(text.strip()) > limit:
        assert all(0 < len(segment.text) <= limit for segment in segments)


@pytest.mark.parametrize(
    "text",
    [
        ("This is a sentence. " * 20 + "\n\n") * 80,
        "One two three.\r\n\r\n" * 2500,
        "One two three.\r\n" * 2500,
        "a.\n\n" * 5000,
        "word " * 8000,
        "\u092f\u0939 \u0935\u093e\u0915\u094d\u092f \u0939\u0948\u0964 " * 2000,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_long_text_ends_its_segments_where_a_short_one_does(text: str) -> None:
    """Wherever its parts of 8,000 characters end."""
    segments = split(text)
    assert squeezed("".join(segment.text for segment in segments)) == squeezed(text)
    ends = {segment.text.split()[-1] for segment in segments}
    assert ends <= {segment.text.split()[-1] for segment in split(text[:2000])[:-1]} | {text.rsplit(maxsplit=1)[-1]}


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r", "\n \t\n", "\u2029", "\n\n\n\n"])
def test_any_blank_line_ends_a_paragraph(end: str) -> None:
    assert [segment.pause for segment in split(SENTENCE * 2 + end + SENTENCE * 3)] == [0.6, 0.0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028"])
def test_a_line_end_alone_ends_none(end: str) -> None:
    assert [segment.pause for segment in split(SENTENCE * 2 + end + SENTENCE * 3)] == [0.3, 0.0]


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


SILENT = (
    "...",
    '"..."',
    "\u200b",
    "\ufeff",
    "\x00",
    "\x1b\x07",
    "\N{THUMBS UP SIGN}",
    "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}",
    "\U0001f469\u200d\U0001f680 \U0001f1eb\U0001f1f7",
    "\N{HANGUL FILLER}",
    "\N{COMBINING ACUTE ACCENT}",
    "\u0964\u0964",
    "\u061f \u060c",
    "\u3002\uff01\u300c\u300d",
    "?!",
    "- - -",
    "$ % +",
    "\ue000",
)


@pytest.mark.parametrize("text", SILENT, ids=ascii)
def test_a_text_with_nothing_to_speak_is_refused(text: str) -> None:
    for form in (text, f" {text}\r\n{text} "):
        with pytest.raises(InvalidRequest, match="text has nothing to speak: it holds no letter and no digit"):
            validate_text(form, 100)


@pytest.mark.parametrize("language", SENTENCES)
def test_a_word_of_every_language_is_something_to_speak(language: str) -> None:
    for line in SENTENCES[language]:
        assert validate_text(line, 1000) == line
        assert visible(Text.of(line)).string == line.replace("\u200c", "").replace("\u200d", "")
        letter = next(filter(str.isalpha, line))
        assert validate_text(f"... {letter}", 1000)


def test_digits_are_something_to_speak_and_so_are_tags() -> None:
    for text in (
        "7",
        "\u0664\u0665",
        "\u096a",
        "1\N{VARIATION SELECTOR-16}\N{COMBINING ENCLOSING KEYCAP}",
        "[laugh]",
        "\u2167",
    ):
        assert validate_text(text, 100)


def test_what_nobody_sees_is_left_out() -> None:
    hidden = "\ufeffHel\x00lo\u200b \x1b\u00adthe\u200dre\ufe0f,\r\n\tyou\u202e\u3164."
    text = visible(Text.of(validate_text(hidden, 100)))
    assert text.string == "Hello there,\r\n\tyou."
    assert "".join(hidden[start] for start in text.starts) == text.string


def test_the_tokens_tell_whether_there_is_something_to_speak(tiny: Checkpoint) -> None:
    text = EnglishText(tiny.tokenizer_path)
    unknown = ("\u4f60\u597d\u3002", "\u041f\u0440\u0438\u0432\u0435\u0442")
    for words in ("Hello.", "x", "[laugh]", "42", *(f"{word} Hi" for word in (*SILENT, *unknown))):
        assert text.speaks(text.encode(Text.of(words), "en").ids), words
    for silent in (*SILENT, *unknown):
        assert not text.speaks(text.encode(Text.of(silent), "en").ids), silent


def test_the_demo_voice_s_letters_are_something_to_speak_and_its_punctuation_is_not() -> None:
    text = EnglishText(Path(chatterbox_engine.__file__).with_name("demo_voice") / "tokenizer.json")
    assert text.speaks(text.encode(Text.of("Hello."), "en").ids)
    assert not text.speaks(text.encode(Text.of("..."), "en").ids)
