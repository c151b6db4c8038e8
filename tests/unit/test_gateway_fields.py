"""Requests in OpenAI's terms."""

from __future__ import annotations

import base64
import inspect
from typing import Any

import pytest

from chatterbox_client import NotFound
from chatterbox_client.request import stream_request
from chatterbox_gateway.dialects.openai import SpeechBody, served_model
from chatterbox_gateway.output import FORMATS
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.gateway_fakes import MODELS, asked, call, gateway_of

LEAST = {"model": "tts-1", "input": "Hello.", "voice": "anna"}


def body(**fields: Any) -> SpeechBody:
    return SpeechBody.model_validate({**LEAST, **fields})


def test_openais_own_fields_are_enough() -> None:
    fields = body()
    assert (fields.input, fields.voice, fields.response_format, fields.speed) == ("Hello.", "anna", "mp3", 1.0)
    assert (fields.sent(), fields.options(), fields.ignored()) == ("stream", {}, [])


def test_all_arguments_of_the_client_are_fields() -> None:
    assert set(inspect.signature(stream_request).parameters) - {"text"} <= set(SpeechBody.model_fields)
    literal = SpeechBody.model_json_schema()["properties"]["response_format"]["enum"]
    assert literal == list(FORMATS)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("tts-1-hd", "chatterbox"),
        ("gpt-4o-mini-tts", "chatterbox"),
        ("chatterbox", "chatterbox"),
        ("turbo", "turbo"),
        (None, "chatterbox"),
    ],
)
def test_a_model_is_ours_or_openais(name: str | None, served: str) -> None:
    assert served_model(name, list(MODELS)) == served


def test_another_model_is_not_found() -> None:
    with pytest.raises(NotFound, match="no model 'piper': served is chatterbox, turbo"):
        served_model("piper", list(MODELS))


@pytest.mark.parametrize(
    ("voice", "named"),
    [
        ("anna", b"anna"),
        ({"id": "anna"}, b"anna"),
        (None, None),
        ("", None),
        ("default", b"default"),
    ],
)
def test_a_voice_is_a_name_or_openais_object(voice: Any, named: bytes | None) -> None:
    transport = FakeAsyncTransport()
    assert call(gateway_of(transport), "POST", "/v1/audio/speech", json={**LEAST, "voice": voice}).status_code == 200
    assert asked(transport)[1].get("voice") == named


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
    assert body(**fields).sent() == sent


def test_the_clients_own_arguments_are_fields_too() -> None:
    clip = base64.b64encode(b"RIFF").decode()
    fields = {"exaggeration": 0.7, "seed": 7, "language": "fr", "first_chunk_tokens": 5, "reference_audio": clip}
    request = body(**fields, speed=1.0, instructions="", top_k=None)
    assert request.options() == {**fields, "reference_audio": clip.encode()}, "the server decodes it"
    assert request.ignored() == []


@pytest.mark.parametrize("voice", ["alloy", "Alloy", "default", None, "anna"])
def test_a_clip_replaces_the_voice_that_openais_client_has_to_send(voice: str | None) -> None:
    transport = FakeAsyncTransport()
    fields = {**LEAST, "voice": voice, "reference_audio": "UklGRg=="}
    assert call(gateway_of(transport), "POST", "/v1/audio/speech", json=fields).status_code == 200
    named = asked(transport)[1].get("voice")
    assert named == (b"anna" if voice == "anna" else None), "the server refuses both"


def test_unknown_fields_and_instructions_are_ignored_with_a_warning() -> None:
    transport = FakeAsyncTransport()
    fields = {**LEAST, "instructions": "Whisper.", "user": "u", "mo\nod": 1, "seed": 7}
    answer = call(gateway_of(transport), "POST", "/v1/audio/speech", json=fields)
    assert answer.status_code == 200
    assert answer.headers["Warning"] == '299 chatterbox-gateway "ignored: instructions, mo?od, user"'
    assert asked(transport)[1]["seed"] == 7
    answer = call(gateway_of(transport), "POST", "/v1/audio/speech", json=LEAST)
    assert "Warning" not in answer.headers


def test_a_strict_gateway_refuses_them() -> None:
    gateway = gateway_of(FakeAsyncTransport(), strict=True)
    for fields, names in (({"pitch": 2, "mood": 1}, "mood, pitch"), ({"instructions": "Whisper."}, "instructions")):
        answer = call(gateway, "POST", "/v1/audio/speech", json={**LEAST, **fields})
        assert answer.status_code == 400
        assert f"unknown field {names}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": None}, "input: field required"),
        ({"input": ""}, "input: string should have at least 1 character"),
        ({"input": 3}, "input: input should be a valid string, not 3"),
        ({"model": 3}, "model: input should be a valid string"),
        ({"voice": 3}, "voice.str: input should be a valid string, not 3"),
        ({"voice": {"name": "anna"}}, "voice.CustomVoice: field required"),
        ({"language": 3}, "language: input should be a valid string"),
        ({"response_format": "wma"}, "response_format: input should be 'mp3', 'opus'"),
        ({"stream_format": "websocket"}, "stream_format: input should be 'audio' or 'sse'"),
        ({"stream_format": ["sse"]}, "stream_format: "),
        ({"stream": "perhaps"}, "stream: input should be a valid boolean"),
        ({"stream": False, "stream_format": "sse"}, "sse needs stream"),
        ({"stream": False, "chunk_tokens": 25}, "chunk_tokens: this response is not streamed"),
        ({"speed": 0.2}, "speed: input should be greater than or equal to 0.25, not 0.2"),
        ({"speed": 4.1}, "speed: input should be less than or equal to 4, not 4.1"),
        ({"sample_rate": 7_999}, "sample_rate: input should be greater than or equal to 8000"),
        ({"response_format": "opus", "sample_rate": 22_050}, "sample_rate is 22050; opus has 8000, 12000"),
        ({"reference_audio": 7}, "reference_audio: input should be a valid string"),
        ({"exaggeration": "much"}, "exaggeration: input should be a valid number"),
        ({"seed": 2**63}, "seed must be an integer of 64 bits"),
    ],
)
def test_errors_name_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", json={**LEAST, **fields})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_text_that_is_not_unicode_is_refused() -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", content=b'{"input": "\\ud83d"}')
    assert answer.status_code == 400
    assert "input: input should be a valid string, unable to parse" in answer.json()["error"]["message"]


def test_a_message_does_not_repeat_megabytes() -> None:
    many = {f"x{number}": 1 for number in range(10_000)}
    wrong = dict.fromkeys(("speed", "seed", "top_k", "top_p", "min_p", "voice", "stream", "model"), "x" * 100_000)
    gateway = gateway_of(FakeAsyncTransport(), strict=True)
    for fields in ({"response_format": "x" * 1_000_000}, {"x" * 1_000_000: 1}, many, wrong):
        answer = call(gateway, "POST", "/v1/audio/speech", json={**LEAST, **fields})
        assert answer.status_code == 400
        assert len(answer.json()["error"]["message"]) < 1_500
    ignored = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", json={**LEAST, **many})
    assert len(ignored.headers["Warning"]) < 500


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_same_request_as_a_query(method: str) -> None:
    transport = FakeAsyncTransport()
    fields: dict[str, Any] = {**LEAST, "response_format": "pcm", "speed": "1", "seed": "7", "other": "1"}
    how = {"json": fields} if method == "POST" else {"params": fields}
    answer = call(gateway_of(transport), method, "/v1/audio/speech", **how)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/pcm")
    assert answer.headers["Warning"] == '299 chatterbox-gateway "ignored: other"'
    expected = {"text": b"Hello.", "voice": b"anna", "seed": 7, "first_chunk_tokens": 13}
    assert asked(transport) == ("chatterbox_stream", expected)


def test_the_first_chunk_is_the_gateways_or_the_requests() -> None:
    transport = FakeAsyncTransport()
    gateway = gateway_of(transport, first_chunk_tokens=5)
    for fields, size in (({}, 5), ({"first_chunk_tokens": 3}, 3)):
        transport.sync.calls.clear()
        assert call(gateway, "POST", "/v1/audio/speech", json={**LEAST, **fields}).status_code == 200
        assert asked(transport)[1]["first_chunk_tokens"] == size
