"""The lexicons of a server and of its voices, and their file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from chatterbox_engine.errors import ConfigError
from chatterbox_engine.text.lexicon import Lexicon
from chatterbox_engine.text.lexicon_file import LexiconFile
from chatterbox_engine.text.passages import Text
from chatterbox_engine.text.pipeline import Reader
from chatterbox_engine.types import SynthesisRequest

WORDS = {"words": {"nginx": "engine x", "York": "yoark"}, "voices": {"anna": {"York": "the city"}}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.json"
    path.write_text(json.dumps(WORDS))
    return path


def said(lexicons: LexiconFile, text: str, **request: object) -> str:
    reader = Reader(("en",), (), "the model", 300, lexicons)
    return reader.read(SynthesisRequest(text, seed=1, **request)).segments[0].text.string


def test_a_request_s_words_come_before_its_voice_s_and_those_before_all_voices(path: Path) -> None:
    lexicons = LexiconFile(str(path))
    assert said(lexicons, "NGINX in York") == "engine x in yoark"
    assert said(lexicons, "NGINX in York", voice="anna") == "engine x in the city"
    assert said(lexicons, "NGINX in York", voice="anna", lexicon={"York": "there"}) == "engine x in there"
    assert said(lexicons, "NGINX in York", voice="anna", reference_audio=b"clip") == "engine x in yoark"


def test_without_a_file_there_are_no_words() -> None:
    assert said(LexiconFile(), "NGINX in York") == "NGINX in York"
    assert LexiconFile().listed() == {"words": {}, "voices": {}, "error": None}


def test_a_changed_file_is_read_again(path: Path) -> None:
    lexicons = LexiconFile(str(path))
    assert said(lexicons, "York", voice="anna") == "the city"
    path.write_text(json.dumps({"voices": {"anna": {"York": "there now"}}}))
    assert said(lexicons, "York", voice="anna") == "there now"
    assert said(lexicons, "York") == "York"
    assert lexicons.listed()["words"] == {}


def test_a_file_that_breaks_leaves_the_words_before_and_says_why(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lexicons = LexiconFile(str(path))
    with caplog.at_level(logging.WARNING):
        path.write_text("{")
        for _ in range(3):
            assert said(lexicons, "York") == "yoark"
    assert len(caplog.records) == 1, "once for a change"
    assert "cannot be read" in lexicons.listed()["error"]
    path.unlink()
    assert said(lexicons, "York") == "yoark"
    assert "No such file" in lexicons.listed()["error"]
    path.write_text(json.dumps({"words": {"York": "again here"}}))
    assert said(lexicons, "York") == "again here"
    assert lexicons.listed()["error"] is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.yaml", "words: {no: nah}", "words must be an object of words.*quote them"),
        ("a.yaml", "words: [a]", "words must be an object of words"),
        ("a.yaml", "york: a", "must hold words and voices, and nothing else"),
        ("a.yaml", "voices: {anna: {'': a}}", "anna: '' is no word"),
        ("a.yaml", "voices: [a]", "voices must hold the names of voices"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.json", "words: {a: b}", "cannot be read"),
        ("a.yaml", "- a", "must hold words and voices"),
    ],
)
def test_a_file_that_is_wrong_stops_the_start(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=reason):
        LexiconFile(str(tmp_path / name))


def test_a_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lexicon_file .*missing\.yaml cannot be read"):
        LexiconFile(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    ("entries", "text", "shown"),
    [
        ({"C++": "see plus plus", "C": "see"}, "C++ and C, not c", "see plus plus and see, not c"),
        ({".NET": "dot net"}, ".NET, x.NET", "dot net, x.NET"),
        ({"New York": "a", "new": "b"}, "new york New York NEW", "b york a b"),
        ({"s": "ess"}, "\u017f s S", "\u017f ess ess"),
        ({"don't": "do not"}, "Don't don'ts", "do not don'ts"),
        ({"\u4f60": "x"}, "\u4f60 \u4f60\u597d", "x \u4f60\u597d"),
        ({"a_b": "x"}, "a_b a_bc c_a_b", "x a_bc c_a_b"),
    ],
)
def test_only_whole_words_are_replaced(entries: dict[str, str], text: str, shown: str) -> None:
    assert Lexicon(entries).pronounced(Text.of(text)).string == shown
