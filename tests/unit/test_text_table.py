"""Texts and what is spoken of them: a table, and the texts that users of other servers have reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatterbox_engine.checkpoint.families import MULTILINGUAL_V3
from chatterbox_engine.errors import InvalidRequest
from chatterbox_engine.text.clean import validate_text
from chatterbox_engine.text.pipeline import Reader, Script
from chatterbox_engine.types import SynthesisRequest

READER = Reader(MULTILINGUAL_V3.languages, (), "the model", 300)


def load(name: str) -> list[dict[str, Any]]:
    """The lines of a file beside this one."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


TABLE = load("spoken_texts.jsonl")
REPORTED = {case["id"]: case for case in load("reported_texts.jsonl")}


def read(text: str, **how: Any) -> Script:
    """The script of a text, as the gateway asks for it."""
    validate_text(text, 50_000)
    return READER.read(SynthesisRequest(text, seed=1, **{"text_normalization": "plain", "markup": "auto", **how}))


def words(script: Script) -> str:
    return " ".join(segment.text.string for segment in script.segments)


def test_the_table_has_three_hundred_texts() -> None:
    assert len({(row["text"], row["language"], row["normalization"]) for row in TABLE}) + len(REPORTED) >= 300


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['language']}-{row['text'][:30]!a}")
def test_a_text_of_the_table_is_spoken_as_it_says(row: dict[str, Any]) -> None:
    script = read(row["text"], language=row["language"], text_normalization=row["normalization"])
    assert [segment.text.string for segment in script.segments] == row["spoken"]
    assert [segment.pause for segment in script.segments] == row.get("pauses", [0.0])


@pytest.mark.parametrize("name", [name for name, case in REPORTED.items() if "spoken" in case])
def test_a_reported_text_is_spoken_in_words(name: str) -> None:
    case = REPORTED[name]
    how = {"text_normalization": "spoken", "lexicon": case.get("lexicon", {})}
    assert words(read(case["text"], **how)) == case["spoken"]


@pytest.mark.parametrize("name", [name for name, case in REPORTED.items() if "plain" in case])
def test_a_reported_text_is_made_speakable(name: str) -> None:
    assert words(read(REPORTED[name]["text"])) == REPORTED[name]["plain"]


@pytest.mark.parametrize("name", [name for name, case in REPORTED.items() if "error" in case])
def test_a_reported_text_without_words_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="nothing to speak"):
        read(REPORTED[name]["text"])


@pytest.mark.parametrize("name", [name for name, case in REPORTED.items() if "silence" in case])
def test_a_reported_pause_is_silence(name: str) -> None:
    assert read(REPORTED[name]["text"]).segments[0].pause == REPORTED[name]["silence"]


@pytest.mark.parametrize("name", [name for name, case in REPORTED.items() if "pauses" in case])
def test_reported_lines_are_pauses(name: str) -> None:
    pauses = [segment.pause for segment in read(REPORTED[name]["text"]).segments]
    assert sum(pause > 0 for pause in pauses) == REPORTED[name]["pauses"]


@pytest.mark.parametrize(("name", "stop"), [("hindi", "\u0964"), ("arabic", "\u061f.")])
def test_reported_languages_are_split_at_their_own_stops(name: str, stop: str) -> None:
    case = REPORTED[name]
    text = case["text"].partition(" (repeat")[0]
    script = read(f"{text} " * (800 // len(text)), language=case["language"])
    assert len(script.segments) > 1
    assert all(segment.text.string.endswith(tuple(stop)) for segment in script.segments)
    assert all(segment.pause > 0 for segment in script.segments[:-1])


def test_a_reported_sound_is_left_out_and_noted() -> None:
    script = read(REPORTED["laugh"]["text"])
    assert words(script) == "That was close."
    assert script.notes == ("[laugh] is left out: the model has no such sound",)


@pytest.mark.parametrize("normalization", ["none", "plain"])
def test_a_reported_chapter_loses_no_character(normalization: str) -> None:
    paragraph = "One two three. And a line that is somewhat longer than that, with a comma.\r\n\r\n"
    text = paragraph * (30_000 // len(paragraph))
    script = read(text, text_normalization=normalization)
    assert "".join(words(script).split()) == "".join(text.split())
