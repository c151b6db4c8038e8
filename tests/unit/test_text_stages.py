"""Texts as people send them: each stage, the pauses, what is refused, and the way back to the source."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.checkpoint.families import MULTILINGUAL_V3
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text import lexicon
from chatterbox_engine.text import plain as plain_stage
from chatterbox_engine.text.clean import clean
from chatterbox_engine.text.passages import Passage, Text
from chatterbox_engine.text.pipeline import Reader, Script
from chatterbox_engine.text.tags import TAGS
from chatterbox_engine.types import SynthesisRequest

ENGLISH = Reader(("en",), (), "Chatterbox", 300)
TURBO = Reader(("en",), TAGS, "Turbo", 300)
MULTILINGUAL = Reader(MULTILINGUAL_V3.languages, (), "Multilingual", 300)


def read(
    text: str, *, normalization: str = "plain", markup: str = "auto", language: str = "en", by: Reader = MULTILINGUAL
) -> Script:
    """The script of a text, after a check of its way back to the source."""
    script = by.read(SynthesisRequest(text, seed=1, language=language, text_normalization=normalization, markup=markup))
    places = [place for segment in script.segments for place in segment.text.starts]
    assert places == sorted(places)
    for segment in script.segments:
        assert len(segment.text.string) == len(segment.text.starts) == len(segment.text.ends)
        assert all(
            0 <= start <= end <= len(text) for start, end in zip(segment.text.starts, segment.text.ends, strict=True)
        )
    return script


def spoken(text: str, **how: Any) -> str:
    return " ".join(segment.text.string for segment in read(text, **how).segments)


def pauses(text: str, **how: Any) -> list[float]:
    return [segment.pause for segment in read(text, **how).segments]


# Passages


def test_an_edited_text_leads_back_to_its_source() -> None:
    text = Text.of("at 10:30 sharp").edited([(3, 8, "ten thirty"), (14, 14, ".")])
    assert text.string == "at ten thirty sharp."
    assert text.source(3, 13) == (3, 8)
    assert text.source(14, 19) == (9, 14)
    assert text[3:6].edited([(0, 3, "10")]).source() == (3, 8)
    assert Text.of("abc").edited([(0, 1, ""), (2, 3, "")]).source() == (1, 2)


# Clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\ufeffHello\u200b there.", "Hello there."),
        ("\uff28\uff45\uff4c\uff4c\uff4f\u3000\uff11\uff12\uff01", "Hello 12!"),
        ("\U0001d4d7\U0001d4f2 \ufb01sh", "Hi fish"),
        ("\u201eGut\u201d, \u00ab bien \u00bb, it\u2019s", '"Gut", " bien ", it\'s'),
        ("a\u00a0b\u2007c\u202fd\te", "a b c d e"),
        ("a\r\nb\rc\u2028d\u2029e", "a\nb\nc\nd\n\ne"),
        ("well\u2011known", "well-known"),
        ("x\u00b2 \u2014 \u00bd", "x\u00b2 \u2014 \u00bd"),
    ],
)
def test_characters_that_stand_for_others_get_their_usual_form(text: str, shown: str) -> None:
    once = clean(Text.of(text), "en")
    assert once.string == shown
    assert clean(once, "en").string == shown


def test_full_width_punctuation_is_chinese_and_japanese_own() -> None:
    assert clean(Text.of("\u4f60\u597d\uff01\uff21"), "zh").string == "\u4f60\u597d\uff01A"
    assert clean(Text.of("\uff76\uff9e\uff73\u3002"), "ja").string == "\u30ac\u30a6\u3002"


# Plain

MARKDOWN = [
    ("### Title\n**bold** and [a link](https://example.org/x?y=1)\n- item one\n- item two\n`code()`",
     "Title. bold and a link. item one. item two. code."),
    ("See https://example.org/docs.", "See example dot org."),
    ("Mail anna.b@example.com now", "Mail anna dot b at example dot com now."),
    ("www.Example.org/a_b works, done.It was", "Example dot org works, done.It was."),
    ("1. One\n2. Two", "1. One. 2. Two."),
    ("5.\n1. 2. x", "5. 1. 2. x."),
    ("> quoted *words*", "quoted words."),
    ("| a | b |\n| --- | --- |\n| c | d |", "a, b. c, d."),
    ("Before\n\n```python\nx = 1\n```\n\nAfter", "Before. After."),
    ("<div>Hello <b>big</b> &amp; new<br>world</div><script>x()</script>", "Hello big & new. world."),
    ("![a picture](p.png) of \\*it\\*", "a picture of it."),
    ("Great \N{THUMBS UP SIGN}\U0001f3fd job \u2764\ufe0f!", "Great job!"),
    ("5 < 6 and a <b>bold</b> 2 * 3", "5 < 6 and a bold 2 3."),
    ("**unclosed and `code", "unclosed and code."),
    ("#winning at #5", "winning at #5."),
    ("    An indented poem", "An indented poem."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), MARKDOWN, ids=lambda text: ascii(text[:20]))
def test_what_people_write_is_made_speakable(text: str, shown: str) -> None:
    assert spoken(text) == shown
    assert spoken(shown) == shown, "once is enough"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Milk\r\nEggs\r\nBread", [0.3, 0.3, 0.0]),
        ("Chapter One\n\nA son was born.\n\nNext came the rain.", [0.6, 0.6, 0.0]),
        ("# Title\nText", [0.6, 0.0]),
        ("- a\n- b\n\nEnd", [0.3, 0.3, 0.0]),
        ("A line that is so long that its writer has wrapped it\nhere.", [0.0]),
    ],
)
def test_lines_and_headings_are_pauses(text: str, expected: list[float]) -> None:
    assert pauses(text) == expected


def test_a_link_s_words_and_a_title_s_letters_lead_back_to_their_places() -> None:
    text = "# A *b*\n\n> [see](http://see.org) see\n"
    first, second = read(text).segments
    assert [text[start] for start in first.text.starts[:3]] == ["A", " ", "b"]
    assert second.text.string == "see see."
    assert list(second.text.starts[:7]) == [12, 13, 14, 32, 33, 34, 35]


@pytest.mark.parametrize("language", MULTILINGUAL_V3.languages)
def test_an_address_is_spoken_in_every_language(language: str) -> None:
    shown = spoken("x a.b@example.org x http://example.org/ x", language=language)
    assert "." not in shown[:-1]
    assert "@" not in shown
    assert shown.count("example") == 2


# Pauses and tags


def test_a_pause_is_silence_of_its_length() -> None:
    assert pauses("One. [pause 1s] Two.") == [1.0, 0.0]
    assert pauses("One [pause] [Pause 250ms] two [pause: 2]") == [0.75, 2.0]
    assert read("[pause .5s] Hi.").lead == 0.5
    assert spoken("One. [pause 1s] Two.", markup="none") == "One. pause 1s Two."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi.\nA [pause 1x]", r"\[pause\] at line 2, column 3: '1x' is no duration"),
        ("[pause 11s] Hi.", "line 1, column 1: '11s' is too long; a pause has at most 10 s"),
        ("[pause -1s] Hi.", "is no duration"),
        ("Hi. [pause 10s] there " * 31, "add up to more than 300 s"),
        ("[laugh]", "nothing to speak"),
        ("\N{THUMBS UP SIGN}\n```\ncode\n```", "nothing to speak"),
    ],
)
def test_a_pause_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read(text, by=ENGLISH)


def test_a_text_of_many_lines_asks_for_no_pause() -> None:
    assert len(pauses("A line.\n" * 2000)) == 2000


def test_sounds_pass_where_the_model_has_them_and_are_left_out_elsewhere() -> None:
    text = "[Laugh] That was close. [clear throat] So."
    assert spoken(text, by=TURBO) == "[laugh] That was close. [clear throat] So."
    assert not read(text, by=TURBO).notes
    assert spoken(text, by=ENGLISH) == "That was close. So."
    assert read(text, by=ENGLISH).notes == (
        "[laugh] is left out: Chatterbox has no such sound",
        "[clear throat] is left out: Chatterbox has no such sound",
    )
    assert spoken(text, by=TURBO, normalization="none") == "[laugh] That was close. [clear throat] So."


def test_without_stages_a_text_is_left_as_it_is() -> None:
    text = " # A\n[laugh] <speak>\u201cb\u201d</speak> [pause 9s] **c** https://d.org "
    (segment,) = read(text, normalization="none", markup="none").segments
    assert segment.text.string == text
    assert list(segment.text.starts) == list(range(len(text)))


# SSML


@pytest.mark.parametrize(
    ("text", "shown", "expected"),
    [
        ('<speak>One<break time="700ms"/>two.</speak>', ["One", "two."], [0.7, 0.0]),
        ("<speak><p>a b</p>\n <p>c</p></speak>", ["a b", "c"], [0.6, 0.0]),
        ("<speak><s>a</s><s>b</s> c</speak>", ["a", "b", "c"], [0.3, 0.3, 0.0]),
        ('<?xml version="1.0"?><!-- x --><speak version="1.1">a\n   b</speak>', ["a b"], [0.0]),
        ('<speak>a <sub alias="World Wide Web">WWW</sub> b</speak>', ["a World Wide Web b"], [0.0]),
        ('<speak>a<break/>b<break strength="none"/>c<break/></speak>', ["a", "bc"], [0.4, 0.4]),
        ("<speak>R&amp;D &#233; <![CDATA[<i> x]]></speak>", ["R&D \u00e9 i x"], [0.0]),
        ('<speak>Call <say-as interpret-as="characters">A1b</say-as>.</speak>', ["Call A one b."], [0.0]),
        ('<speak><prosody rate="medium">a</prosody> b</speak>', ["a b"], [0.0]),
    ],
)
def test_ssml_is_spoken(text: str, shown: list[str], expected: list[float]) -> None:
    script = read(text)
    assert [segment.text.string for segment in script.segments] == shown
    assert [segment.pause for segment in script.segments] == pytest.approx(expected)


def test_ssml_changes_the_language_where_the_model_speaks_it() -> None:
    text = '<speak>a <lang xml:lang="fr-FR">\u00e9t\u00e9</lang> <p xml:lang="de">b</p></speak>'
    segments = read(text).segments
    assert [(segment.text.string, segment.language) for segment in segments] == [
        ("a", "en"),
        ("\u00e9t\u00e9", "fr"),
        ("b", "de"),
    ]
    assert text[slice(*segments[1].text.source())] == "\u00e9t\u00e9"
    with pytest.raises(InvalidRequest, match="SSML, line 1, column 10: the language is 'fr-FR'; the model speaks en"):
        read(text, by=ENGLISH)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<speak>a<emphasis>b</emphasis></speak>", "line 1, column 9: the element 'emphasis' is unknown"),
        ("<speak>\n\u00e9 <p>a</speak>", "line 2, column 9: malformed: mismatched tag"),
        ("\u200b<speak>\u200b<x/></speak>", "line 1, column 10: the element 'x'"),
        ("<speak>a & b</speak>", "line 1, column 11: malformed"),
        ("<speak>a", "line 1, column 9: malformed: no element found"),
        ("<speak>&nbsp;a</speak>", "line 1, column 8: malformed: undefined entity"),
        ("<speak>a</speak> b", "junk after document element"),
        ('<!DOCTYPE speak [<!ENTITY a "b">]><speak>&a;</speak>', "document types and entities are not allowed"),
        ("<speak>a<speak>b</speak></speak>", "outermost element"),
        ('<speak pitch="x">a</speak>', "'pitch' is no attribute of 'speak'"),
        ('<speak>a<break time="soon"/></speak>', "line 1, column 9: break: 'soon' is no duration"),
        ('<speak>a<break strength="huge"/></speak>', "the strength is 'huge'; it must be one of none, x-weak"),
        ("<speak>a<break>b</break></speak>", "'break' holds no text"),
        ("<speak><sub>b</sub></speak>", "'sub' needs the attribute alias"),
        ('<speak><sub alias="a"><s>b</s></sub></speak>', "'sub' holds no element"),
        ('<speak><say-as interpret-as="song">b</say-as></speak>', "'b' cannot be read as 'song'"),
        ("<speak><lang>b</lang></speak>", "'lang' needs the attribute xml:lang"),
        ('<speak><prosody rate="fast">b</prosody></speak>', "the rate is 'fast'"),
        ("<speak/>", "nothing to speak"),
        ("<speak>...</speak>", "nothing to speak"),
    ],
)  # fmt: skip
def test_ssml_that_is_wrong_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read(text)


# Lexicon


def test_a_lexicon_replaces_whole_words_the_longest_first_and_keeps_to_its_capitals() -> None:
    entries = {"Nguyen": "win", "nginx": "engine x", "New York": "the city", "York": "yoark"}
    text = "Ask Nguyen, NGUYEN or nguyens about Nginx in New York, not York."
    script = MULTILINGUAL.read(SynthesisRequest(text, seed=1, lexicon=entries))
    (segment,) = script.segments
    assert segment.text.string == "Ask win, NGUYEN or nguyens about engine x in the city, not yoark."
    at = segment.text.string.index("the city")
    assert text[slice(*segment.text.source(at, at + 8))] == "New York"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "lexicon is not JSON"),
        ("[]", "must be an object"),
        ('{"a": 1}', "must be an object"),
        ('{"": "a"}', "'' is no word"),
        ('{"a": "' + "b" * 201 + '"}', "'a' is no word, or its entry has over 200 characters"),
        (json.dumps({f"w{n}": "x" for n in range(10_001)}), "10001 entries, at most 10000"),
    ],
)
def test_a_lexicon_that_is_none_is_refused(given: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        lexicon.parse(given, "lexicon")


# Everything

PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["word", "Word.", " ", "\n", "\n\n", "- ", "1. ", "# ", "**", "_", "`", "[a](b)", "&amp;"]),
    st.sampled_from(
        ["http://a.org/b", "a@b.org", "[pause 1s]", "[laugh]", "\U0001f600", "\u0939\u0948\u0964", "\uff21"]
    ),
    st.sampled_from(["> ", "| a | b |\n| - | - |\n", "\\*", "    ", "~~~\n", "$5", "10:30", "<!--", "]", "![", "<b>"]),
)
LETTERS = st.text("ab\u00e9\u0939\u4f60 .,\n", min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from(["none", "plain", "spoken"]), st.sampled_from(["none", "auto"]))
def test_any_text_leads_back_to_its_source(pieces: list[str], normalization: str, markup: str) -> None:
    try:
        read("".join(pieces), normalization=normalization, markup=markup)
    except InvalidRequest:
        assert markup == "auto" or normalization != "none" or not any(map(str.isalnum, "".join(pieces)))


@settings(max_examples=100, deadline=None)
@given(LETTERS, st.sampled_from(["none", "plain"]), st.sampled_from(["none", "auto"]))
def test_no_letter_is_lost_where_there_is_no_markup(text: str, normalization: str, markup: str) -> None:
    if any(map(str.isalnum, text)):
        shown = spoken(text, normalization=normalization, markup=markup)
        assert [char for char in shown if char.isalnum()] == [char for char in text if char.isalnum()]


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_cleaning_again_and_plain_again_change_nothing(pieces: list[str]) -> None:
    text = clean(Text.of("".join(pieces)), "en")
    assert clean(text, "en").string == text.string
    for once in plain_stage.plain(Passage(text, "en"), marked_up=False)[0]:
        (twice,) = plain_stage.plain(once, marked_up=False)[0]
        assert twice.text.string == once.text.string


def test_nothing_heavy_is_loaded_for_a_text_that_is_left_as_it_is() -> None:
    code = """
import json, sys
from chatterbox_engine.text.pipeline import Reader
from chatterbox_engine.types import SynthesisRequest
Reader(("en",), (), "x", 300).read(SynthesisRequest("Hello.", seed=1))
print(json.dumps(sorted({"babel", "num2words", "markdown_it", "linkify_it", "pyexpat"} & sys.modules.keys())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
