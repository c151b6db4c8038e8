"""Requests in OpenAI's terms."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from chatterbox_client import InvalidRequest, NotFound
from chatterbox_gateway.encoding import FORMATS
from chatterbox_gateway.request import parse

MODELS = ["chatterbox", "turbo"]
LEAST = {"model": "tts-1", "input": "Hello.", "voice": "anna"}


def test_openais_own_fields_are_enough() -> None:
    request = parse(LEAST, MODELS)
    assert (request.model, request.text, request.voice) == ("chatterbox", "Hello.", "anna")
    assert (request.format, request.sent, request.options) == (FORMATS["mp3"], "stream", {})


@pytest.mark.parametrize(
    ("name", "served"),
    [("tts-1-hd", "chatterbox"), ("gpt-4o-mini-tts", "chatterbox"), ("chatterbox", "chatterbox"), ("turbo", "turbo")],
)
def test_a_model_is_ours_or_openais(name: str, served: str) -> None:
    assert parse({**LEAST, "model": name}, MODELS).model == served
    assert parse({"input": "Hello."}, MODELS).model == "chatterbox"


@pytest.mark.parametrize(
    ("voice", "named"), [("anna", "anna"), ({"id": "anna"}, "anna"), (None, None), ("default", "default")]
)
def test_a_voice_is_a_name_or_openais_object(voice: Any, named: str | None) -> None:
    assert parse({**LEAST, "voice": voice}, MODELS).voice == named


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, "stream"),
        ({"stream": False}, "whole"),
        ({"stream_format": "sse"}, "events"),
        ({"stream_format": "audio", "stream": True}, "stream"),
        ({"response_format": "flac"}, "whole"),
        ({"response_format": "wav"}, "whole"),
        ({"response_format": "wav", "stream": True}, "stream"),
        ({"response_format": "wav", "chunk_tokens": 25}, "stream"),
        ({"response_format": "flac", "stream": True}, "stream"),
        ({"response_format": "flac", "stream_format": "sse"}, "events"),
    ],
)
def test_how_it_is_sent(fields: dict[str, Any], sent: str) -> None:
    assert parse({**LEAST, **fields}, MODELS).sent == sent


def test_the_clients_own_arguments_are_fields_too() -> None:
    clip = base64.b64encode(b"RIFF").decode()
    named = {"model": "tts-1", "input": "Hello."}
    for voice in ("alloy", "default", None):  # OpenAI's client has to send one
        assert parse({**named, "voice": voice, "reference_audio": clip}, MODELS).voice is None
    assert parse({**named, "voice": "anna", "reference_audio": clip}, MODELS).voice == "anna"  # the server says no
    fields = {"exaggeration": 0.7, "seed": 7, "language": "fr", "first_chunk_tokens": 5, "reference_audio": clip}
    request = parse({**LEAST, **fields, "speed": 1.0, "instructions": "", "top_k": None}, MODELS)
    assert request.options == {**fields, "reference_audio": clip.encode()}, "the server decodes it"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (["Hello."], "not a JSON object"),
        ({"model": "tts-1"}, "input is missing"),
        ({**LEAST, "input": ""}, "input is empty"),
        ({**LEAST, "input": 3}, "input must be a string, not 3"),
        ({**LEAST, "model": 3}, "model must be a string"),
        ({**LEAST, "voice": 3}, "voice must be a string"),
        ({**LEAST, "voice": {"name": "anna"}}, "id is missing"),
        ({**LEAST, "language": 3}, "language must be a string"),
        ({**LEAST, "response_format": "wma"}, "response_format must be one of mp3, opus, aac, flac, wav, pcm"),
        ({**LEAST, "stream_format": "websocket"}, "stream_format must be one of audio, sse"),
        ({**LEAST, "stream_format": ["sse"]}, "stream_format must be a string"),
        ({**LEAST, "stream": "yes"}, "stream must be true or false"),
        ({**LEAST, "stream": False, "stream_format": "sse"}, "sse needs stream"),
        ({**LEAST, "stream": False, "chunk_tokens": 25}, "chunk_tokens: this response is not streamed"),
        ({**LEAST, "speed": 1.5}, "speed: "),
        ({**LEAST, "instructions": "Whisper."}, "instructions: "),
        ({**LEAST, "pitch": 2, "mood": 1}, "unknown field mood, pitch"),
        ({**LEAST, "text": "Hello."}, "unknown field text"),
        ({**LEAST, "reference_audio": 7}, "reference_audio must be a string"),
    ],
)
def test_what_is_wrong_is_said(body: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse(body, MODELS)


def test_leniently_what_cannot_be_heeded_is_left_out() -> None:
    fields = {"speed": 1.5, "instructions": "Whisper.", "user": "u", "seed": 7}
    assert parse({**LEAST, **fields}, MODELS, lenient=True).options == {"seed": 7}
    with pytest.raises(InvalidRequest, match="response_format"):
        parse({**LEAST, "response_format": "wma"}, MODELS, lenient=True)


def test_a_message_does_not_repeat_megabytes() -> None:
    many = dict.fromkeys(map(str, range(100_000)), 1)
    for fields in ({"response_format": "x" * 1_000_000}, {"x" * 1_000_000: 1}, many):
        with pytest.raises(InvalidRequest) as caught:
            parse({**LEAST, **fields}, MODELS)
        assert len(str(caught.value)) < 1_000


def test_another_model_is_not_found() -> None:
    with pytest.raises(NotFound, match="no model 'piper': served is chatterbox, turbo"):
        parse({**LEAST, "model": "piper"}, MODELS)
