"""Words in the client: in answers and streams, and as subtitles."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chatterbox_client import Client, ServerError, Word, concatenate
from chatterbox_client.cli import app
from chatterbox_client.subtitles import Cue, cues, subtitles
from chatterbox_client.turns import Assembly
from tests.unit.client_fakes import FakeTransport, spoken, spoken_chunks

ENTRIES = [
    {"word": "Good", "start": 0.0, "end": 0.3, "span": [0, 4]},
    {"word": "morning.", "start": 0.35, "end": 0.8, "span": [5, 13]},
]
WORDS = [Word("Good", 0.0, 0.3, (0, 4)), Word("morning.", 0.35, 0.8, (5, 13))]


class Streaming(FakeTransport):
    """Answers streams with its own chunks."""

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        super().__init__()
        self.chunks = chunks

    def stream(self, *_: Any) -> Generator[dict[str, Any], None, None]:
        yield from self.chunks


def tensor(entries: Any) -> np.ndarray[Any, Any]:
    return np.array([[json.dumps(entries).encode()]], dtype=np.object_)


def test_words_are_asked_for_and_read_only_where_a_request_wants_them() -> None:
    transport = FakeTransport({**spoken(), "words": tensor(ENTRIES)})
    client = Client(transport=transport)
    assert client.speak("Good morning.", word_times=True).words == WORDS
    client.speak("Good morning.")
    assert ["words" in outputs for _, _, outputs, _ in transport.calls] == [True, False]
    assert [bool(tensors.get("word_times", False)) for _, tensors, _, _ in transport.calls] == [True, False]


def test_the_words_of_a_streams_chunks_are_those_of_the_whole() -> None:
    chunks = [
        {**chunk, "words": tensor(entries)}
        for chunk, entries in zip(spoken_chunks(), ([], ENTRIES[:1], ENTRIES[1:]), strict=True)
    ]
    got = list(Client(transport=Streaming(chunks)).stream("Good morning.", word_times=True))
    assert [chunk.words for chunk in got] == [[], WORDS[:1], WORDS[1:]]
    assert concatenate(got).words == WORDS


def test_words_of_a_turn_have_the_times_of_the_whole_turn() -> None:
    chunks = list(Client(transport=FakeTransport(spoken())).stream("Good morning."))
    assembly, got = Assembly(), []
    for _ in range(2):
        for chunk in chunks:
            silence = 0.5 if got and chunk.index == 0 else 0.0
            words = [Word("Good", 0.01, 0.02, (0, 4))] if chunk.index == 1 else []
            got += assembly.add(replace(chunk, words=words), silence).words
    seconds = sum(chunk.duration for chunk in chunks)
    assert [word.start for word in got] == [0.01, pytest.approx(seconds + 0.51)]
    assert not assembly.last().words


@pytest.mark.parametrize("entries", [[{"word": "Good"}], 7, [{"word": "a", "start": 0, "end": 0, "span": 3}]])
def test_words_of_another_contract_are_an_error(entries: Any) -> None:
    client = Client(transport=FakeTransport({**spoken(), "words": tensor(entries)}))
    with pytest.raises(ServerError, match="words are not of this contract"):
        client.speak("Good morning.", word_times=True)


def said(text: str, seconds: float = 0.4, start: float = 0.0) -> list[Word]:
    """Words of the same length, one after the other."""
    found, at = [], 0
    for number, word in enumerate(text.split()):
        begin = text.index(word, at)
        at = begin + len(word)
        found.append(Word(word, start + seconds * number, start + seconds * (number + 1), (begin, at)))
    return found


def test_a_cue_is_a_sentence_or_less_of_two_lines_and_six_seconds() -> None:
    text = (
        "The first one. " + "Then a much longer one that does not fit into the two lines that are there, does it? " * 2
    )
    found = cues(said(text, 0.2))
    assert found[0] == Cue(0.0, pytest.approx(0.6), ("The first one.",))
    assert all(len(cue.lines) <= 2 and all(len(line) <= 42 for line in cue.lines) for cue in found)
    assert " ".join(line for cue in found for line in cue.lines).split() == text.split()
    assert all(cue.end - cue.start <= 6.0 for cue in cues(said("word " * 40, 0.7)))


def test_a_pause_ends_a_cue_and_words_that_are_not_spoken_begin_none() -> None:
    words = [
        *said("one two"),
        *said("three", start=2.0),
        Word("four.", 2.4, 2.4, (14, 19)),
        Word("five.", 2.4, 2.4, (20, 25)),
    ]
    assert [cue.lines for cue in cues(words)] == [("one two",), ("three four. five.",)]


def test_subtitles_are_files_of_subrip_or_webvtt() -> None:
    words = [*said("Tom & Jerry.", 0.5), *said("<Next>.", start=3661.5)]
    assert subtitles(words, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nTom & Jerry.\n\n2\n01:01:01,500 --> 01:01:01,900\n<Next>.\n"
    )
    assert subtitles(words, "vtt") == (
        "WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.500\nTom &amp; Jerry.\n\n"
        "2\n01:01:01.500 --> 01:01:01.900\n&lt;Next&gt;.\n"
    )
    assert [cue.lines for cue in cues([Word("你", 0, 0.2, (0, 1)), Word("好", 0.2, 0.4, (1, 2))])] == [("你好",)]
    with pytest.raises(ValueError, match="use srt or vtt"):
        subtitles(words, "ass")


@pytest.mark.parametrize("streamed", [[], ["--stream"]])
@pytest.mark.parametrize(("name", "first"), [("a.srt", "1\n00:00:00,000"), ("a.vtt", "WEBVTT\n\n1\n00:00:00.000")])
def test_say_writes_subtitles_beside_the_audio(tmp_path: Path, name: str, first: str, streamed: list[str]) -> None:
    answers = [
        {**chunk, "words": tensor(ENTRIES if number == 2 else [])} for number, chunk in enumerate(spoken_chunks())
    ]
    transport = Streaming(answers) if streamed else FakeTransport({**spoken(), "words": tensor(ENTRIES)})
    arguments = ["say", "Good morning.", "-o", str(tmp_path / "a.wav"), "--subtitles", str(tmp_path / name), *streamed]
    done = CliRunner().invoke(app, arguments, obj=lambda *args, **options: Client(transport=transport))
    assert done.exit_code == 0, done.output
    assert (tmp_path / name).read_text().startswith(first)
    assert (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("a.txt", "use the extension .srt or .vtt"), ("no/a.srt", "no such folder")]
)
def test_subtitles_that_cannot_be_written_are_refused_before_the_server_works(
    tmp_path: Path, name: str, words: str
) -> None:
    transport = FakeTransport()
    arguments = ["say", "Hi.", "-o", str(tmp_path / "a.wav"), "--subtitles", str(tmp_path / name)]
    done = CliRunner().invoke(app, arguments, obj=lambda *args, **options: Client(transport=transport))
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert not transport.calls
