"""Paragraphs of all languages are split where their own sentences end, at any length."""

from __future__ import annotations

import random
import re

import pytest

from chatterbox_engine.checkpoint.families import MULTILINGUAL_V3
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.sentence_ends import CLAUSE_PAUSE, SENTENCE_PAUSE
from chatterbox_engine.text.split import split
from tests.fidelity.test_text_multilingual import SENTENCES

_ENDED = re.compile("[.!?\u2026\u3002\uff01\uff1f\u0964\u061f][\"'\u201d\u00bb\u300d)]*$")
WITHOUT_SPACES = {"ja", "zh"}


def paragraphs(language: str) -> list[tuple[str, list[str]]]:
    """Ten paragraphs of whole sentences that are longer than a segment, and the sentences."""
    sentences = [line for line in SENTENCES[language] if _ENDED.search(line) and not line.endswith("...")]
    draw = random.Random(language)
    made = []
    for length in range(10):
        chosen = draw.sample(sentences * 5, 8 + 2 * length) if sentences else []
        made.append((("" if language in WITHOUT_SPACES else " ").join(chosen), chosen))
    return made


@pytest.mark.parametrize("language", MULTILINGUAL_V3.languages)
def test_paragraphs_of_every_language_are_split_at_their_sentences(language: str) -> None:
    for paragraph, sentences in paragraphs(language):
        parts = split(Text.of(paragraph), language, 60 if language in WITHOUT_SPACES else 200)
        assert len(parts) > 1
        words = (word for sentence in sentences for word in sentence.split())
        ends = (
            set("\u3002\uff01\uff1f\u2026\u201d\u300d")
            if language in WITHOUT_SPACES
            else {word[-6:] for word in words if _ENDED.search(word)}
        )
        for part in parts:
            assert part.text.string.endswith(tuple(ends)), part.text.string
        assert all(part.pause >= SENTENCE_PAUSE for part in parts[:-1])


HINDI = "\u092f\u0939 \u092a\u0939\u0932\u093e \u0935\u093e\u0915\u094d\u092f \u0939\u0948\u0964 "
ARABIC = "\u0647\u0644 \u0623\u0646\u062a \u0628\u062e\u064a\u0631\u061f "


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("hi", HINDI),
        ("hi", HINDI.replace(" ", "") + " "),
        ("ar", ARABIC),
        ("zh", "\u4f60\u597d\uff0c\u4e16\u754c\u3002"),
        ("ja", "\u4e16\u754c\u3001\u3053\u3093\u306b\u3061\u306f\uff01"),
    ],
)
@pytest.mark.parametrize("length", [800, 12_000])
def test_a_language_s_own_stops_end_segments(language: str, sentence: str, length: int) -> None:
    text = (sentence * (length // len(sentence) + 1)).strip()
    parts = split(Text.of(text), language)
    assert all(part.text.string.endswith(sentence.strip()[-1]) for part in parts)
    assert all(part.pause == SENTENCE_PAUSE for part in parts[:-1])
    assert re.sub(r"\s", "", "".join(part.text.string for part in parts)) == re.sub(r"\s", "", text)


def test_an_arabic_comma_ends_a_clause() -> None:
    text = ("\u0646\u0639\u0645 \u0647\u0643\u0630\u0627\u060c " * 40).strip()
    parts = split(Text.of(text), "ar")
    assert all(part.text.string.endswith("\u060c") for part in parts)
    assert parts[0].pause == CLAUSE_PAUSE


def test_abbreviations_of_the_language_end_no_sentence() -> None:
    text = "Das ist z. B. Nr. 5 von vielen. " * 12
    assert all(part.text.string.endswith("vielen.") for part in split(Text.of(text), "de"))
