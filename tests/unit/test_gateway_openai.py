"""The gateway for OpenAI's API, called by OpenAI's own client, over transports that answer at once or a server that
speaks Triton's protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import struct
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from chatterbox_client import InvalidRequest, NotFound, ServerError, Timeout, Unavailable
from chatterbox_client.transports import open_async_transport
from tests.unit.client_fakes import FakeAsyncTransport, fake_server, spoken_chunks
from tests.unit.gateway_fakes import (
    PCM,
    SPEECH,
    Breaking,
    Endless,
    WithVoices,
    asked,
    call,
    connected,
    gateway_of,
    serving,
)

GUARDED = ("/v1/models", "/v1/audio/voices", "/v1/nowhere", "/metrics", "/status", "/model/info")
FIRST = {"first_chunk_tokens": 13}


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def test_speech_is_streamed() -> None:
    transport = FakeAsyncTransport()
    with (
        serving(lambda: transport) as url,
        client_of(url) as client,
        client.audio.speech.with_streaming_response.create(**SPEECH) as answer,
    ):
        assert answer.headers["Content-Type"] == "audio/pcm"
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert b"".join(answer.iter_bytes()) == PCM
    assert asked(transport) == ("chatterbox_stream", {"text": b"Hello.", "voice": b"anna", **FIRST})
    assert transport.sync.closed


def test_a_whole_answer_has_its_length() -> None:
    transport = FakeAsyncTransport()
    with serving(lambda: transport) as url, client_of(url) as client:
        answer = client.audio.speech.create(**SPEECH, extra_body={"stream": False, "seed": 7, "exaggeration": 0.5})
        assert answer.response.headers["Content-Length"] == str(len(PCM))
        assert answer.read() == PCM
    assert asked(transport) == (
        "chatterbox",
        {"text": b"Hello.", "voice": b"anna", "seed": 7, "exaggeration": 0.5},
    )


def test_events_carry_the_audio_and_the_counts() -> None:
    with serving(FakeAsyncTransport) as url:
        answer = httpx.post(f"{url}/audio/speech", json={**SPEECH, "stream_format": "sse"})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == PCM
    usage = {"input_tokens": 6, "output_tokens": 3, "total_tokens": 9}
    assert done == {"type": "speech.audio.done", "usage": usage}


class SpeakingWords(FakeAsyncTransport):
    """Chunks of 40 ms, each with a word; the second one is played twice as fast."""

    async def stream(self, *_: Any) -> AsyncGenerator[dict[str, Any], None]:
        for index, chunk in enumerate(spoken_chunks()):
            word = {"word": "abc"[index], "start": 0.04 * index, "end": 0.04 * index + 0.02, "span": [index, index + 1]}
            stats = {**json.loads(chunk["stats"].item()), **({"rate": 2.0} if index == 1 else {})}
            yield {**chunk, "words": bytes_of([word]), "stats": bytes_of(stats)}


def bytes_of(value: Any) -> np.ndarray[Any, Any]:
    return np.array([[json.dumps(value).encode()]], dtype=np.object_)


def test_words_are_events_with_the_times_at_which_they_are_played() -> None:
    with serving(SpeakingWords) as url:
        body = {**SPEECH, "stream_format": "sse", "word_times": True, "speed": 0.5}
        answer = httpx.post(f"{url}/audio/speech", json=body)
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    words = [word for event in events if event["type"] == "speech.audio.words" for word in event["words"]]
    assert [(word["word"], word["start"], word["end"]) for word in words] == [
        ("a", 0.0, 0.04),
        ("b", 0.08, 0.1),
        ("c", 0.12, 0.16),
    ]
    assert words[1]["span"] == [1, 2]


def test_word_times_without_events_are_refused() -> None:
    refused = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", json={**SPEECH, "word_times": True})
    assert refused.status_code == 400
    assert "word_times needs stream_format: sse" in refused.text


@pytest.mark.parametrize(("stored", "spoken"), [(("anna", "nova"), b"nova"), (("anna",), None), ((), None)])
def test_openais_voice_is_the_stored_one_or_the_built_in(stored: tuple[str, ...], spoken: bytes | None) -> None:
    transport = WithVoices(*stored)
    for name in ("nova", "Nova"):
        transport.sync.calls.clear()
        body = {**SPEECH, "voice": name, "model": "turbo"}
        assert call(gateway_of(transport), "POST", "/v1/audio/speech", json=body).status_code == 200
    model, values = asked(transport)
    assert (model, values.get("voice")) == ("turbo_stream", spoken)


@pytest.mark.parametrize("clip", ["data:audio/wav;base64,UklG\r\nRg==", "\u00e9x"])
def test_a_clip_is_handed_on_as_it_is_sent(clip: str) -> None:
    """The server decodes it, and says what is wrong with it."""
    transport = FakeAsyncTransport()
    body = {"input": "Hello.", "reference_audio": clip}
    assert call(gateway_of(transport), "POST", "/v1/audio/speech", json=body).status_code == 200
    assert asked(transport)[1] == {"text": b"Hello.", "reference_audio": clip.encode("ascii", "replace"), **FIRST}


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("top_p is above 1"), 400, "invalid_request_error"),
        (NotFound("there is no voice 'anna'"), 404, "invalid_request_error"),
        (Unavailable("the queue is full"), 503, "server_error"),
        (Timeout("no answer within 10 s"), 504, "server_error"),
        (ServerError("the engine has ended"), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"stream_format": "sse"}])
def test_what_the_server_refuses_is_refused_in_its_words(
    error: Exception, status: int, kind: str, fields: dict[str, Any]
) -> None:
    answer = call(gateway_of(FakeAsyncTransport(error)), "POST", "/v1/audio/speech", json={**SPEECH, **fields})
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": str(error), "type": kind, "param": None, "code": None}}
    assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "parsing the body"),
        (b"[" * 200_000, "parsing the body"),
        (b"[]", "the body: input should be"),
        (b"", "the body: field required"),
        (b'{"input": "Hi.", "speed": 5}', "speed: input should be less than or equal to 4, not 5"),
    ],
)
def test_a_wrong_body_is_refused(request_body: bytes, message: str) -> None:
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", content=request_body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_not_compressed_as_it_says_is_refused() -> None:
    headers = {"Content-Encoding": "gzip"}
    answer = call(gateway_of(FakeAsyncTransport()), "POST", "/v1/audio/speech", content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_unknown_paths_methods_and_bodies_too_large_are_errors_in_the_same_form() -> None:
    with serving(FakeAsyncTransport) as url:
        answers = [
            httpx.get(f"{url}/audio/transcriptions"),
            httpx.put(f"{url}/audio/speech"),
            httpx.post(f"{url}/audio/speech", content=bytes(65 << 20)),
        ]
    assert [answer.status_code for answer in answers] == [404, 405, 413]
    assert all(answer.json()["error"]["message"] for answer in answers)
    assert answers[1].headers["Allow"] == "GET, POST"


def test_a_stream_that_breaks_is_not_taken_for_a_whole_one() -> None:
    with serving(Breaking) as url, client_of(url) as client:
        with httpx.stream("POST", f"{url}/audio/speech", json=SPEECH) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.TransportError):
                answer.read()
        with pytest.raises(openai.APIConnectionError):
            client.audio.speech.create(**SPEECH)
        with connected(url, SPEECH) as connection, pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("full", [True, False])  # whether the reader has let all buffers fill
def test_a_client_that_disconnects_is_no_error(caplog: pytest.LogCaptureFixture, full: bool) -> None:
    caplog.set_level(logging.INFO)
    transport = Endless()
    with serving(lambda: transport) as url:
        with connected(url, SPEECH) as connection:
            assert connection.recv(1_000)
            if full:
                assert transport.idle.wait(20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert transport.ended.wait(20)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    (fields,) = [vars(record)["fields"] for record in caplog.records if record.name == "chatterbox.gateway"]
    assert (fields["status"], fields["outcome"]) == (200, "disconnected")


def test_a_client_that_does_not_read_is_disconnected_after_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    transport = Endless()
    with serving(lambda: transport, timeout=0.5) as url, connected(url, SPEECH) as connection:
        assert connection.recv(1_000)
        assert transport.ended.wait(20)
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: connection.recv(1 << 20), b""))
    (fields,) = [vars(record)["fields"] for record in caplog.records if record.name == "chatterbox.gateway"]
    assert fields["outcome"] == "broken"
    assert fields["reason"] == "the client did not read a piece within 0.5 s"


def test_a_stream_of_events_that_breaks_says_so() -> None:
    with serving(Breaking) as url:
        answer = httpx.post(f"{url}/audio/speech", json={**SPEECH, "stream_format": "sse"})
    first, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    assert first["type"] == "speech.audio.delta"
    assert (last["type"], last["error"]["message"]) == ("error", "the engine has ended")


def test_a_client_that_disconnects_cancels_its_request() -> None:
    with fake_server() as fake, serving(lambda: open_async_transport(fake.grpc_url, "grpc")) as url:
        with httpx.stream("POST", f"{url}/audio/speech", json={**SPEECH, "input": "endless"}) as answer:
            assert next(answer.iter_bytes())
        assert fake.cancelled.get(timeout=10) == "endless"


def test_a_request_that_waits_for_its_first_chunk_is_cancelled_too() -> None:
    with fake_server() as fake, serving(lambda: open_async_transport(fake.grpc_url, "grpc")) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/audio/speech", json={**SPEECH, "input": "hang"}, timeout=0.5)
        assert fake.cancelled.get(timeout=5) == "hang"  # the front's own timeout is ten seconds


def test_without_a_server_it_is_unavailable() -> None:
    with serving(lambda: open_async_transport("localhost:1", "grpc")) as url, client_of(url) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.audio.speech.create(**SPEECH)
        assert caught.value.status_code == 503
        assert "localhost:1" in str(caught.value)
        assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 503


def test_models_and_voices_are_listed() -> None:
    with serving(lambda: WithVoices("anna", "emma")) as url, client_of(url) as client:
        assert [model.id for model in client.models.list()] == ["chatterbox", "turbo"]
        assert [client.models.retrieve(name).id for name in ("turbo", "tts-1")] == ["turbo", "chatterbox"]
        with pytest.raises(openai.NotFoundError, match="piper"):
            client.models.retrieve("piper")
        assert [model["id"] for model in httpx.get(f"{url}/audio/models").json()["models"]] == ["chatterbox", "turbo"]
        voices = httpx.get(f"{url}/audio/voices").json()["voices"]
    assert voices == [{"id": name, "name": name} for name in ("default", "anna", "emma")]


def test_voices_are_added_and_deleted() -> None:
    transport = WithVoices("anna")
    with serving(lambda: transport, change_voices=True) as url:
        added = httpx.post(f"{url}/audio/voices", data={"name": "anna"}, files={"audio_sample": ("a.wav", b"RIFF")})
        assert added.json() == {"object": "audio.voice", "id": "anna", "name": "anna"}
        assert transport.changes == [("add", "anna", b"RIFF")]
        assert httpx.delete(f"{url}/audio/voices/anna").json()["deleted"] is True
        assert httpx.delete(f"{url}/audio/voices/nobody").status_code == 404
        for wrong in ({"json": {"name": "anna"}}, {"data": {"name": "anna"}}, {"files": {"audio_sample": b"RIFF"}}):
            answer = httpx.post(f"{url}/audio/voices", **wrong)  # type: ignore[arg-type]
            assert (answer.status_code, "field required" in answer.text) == (400, True)
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            assert httpx.post(f"{url}/audio/voices", content=b"x", headers={"Content-Type": kind}).status_code == 400
    with serving(lambda: transport) as url:  # unless it is told so, it changes nothing
        form = {"data": {"name": "anna"}, "files": {"audio_sample": b"RIFF"}}
        assert httpx.post(f"{url}/audio/voices", **form).status_code == 405  # type: ignore[arg-type]
        assert httpx.delete(f"{url}/audio/voices/anna").status_code == 404


def test_a_server_without_stored_voices_has_the_built_in_one() -> None:
    with serving(WithVoices) as url:
        assert httpx.get(f"{url}/audio/voices").json() == {"voices": [{"id": "default", "name": "default"}]}


def test_health_is_the_models() -> None:
    transport = FakeAsyncTransport()
    with serving(lambda: transport, keys=["secret"]) as url:
        health = url.removesuffix("/v1") + "/health"
        assert httpx.get(health).json()["status"] == "ok"
        transport.sync.is_ready = False
        assert httpx.get(health).status_code == 503


def test_with_keys_only_their_holders_are_answered() -> None:
    transport = FakeAsyncTransport()
    gateway = gateway_of(transport, keys=["anna:first", "second"])
    for key in ("first", "second"):
        headers = {"Authorization": f"Bearer {key}"}
        assert call(gateway, "POST", "/v1/audio/speech", json=SPEECH, headers=headers).content == PCM
    asked_before = len(transport.sync.calls)
    for sent in (b"", b"first", b"Basic first", b"Bearer", b"Bearer \xff", b"Bearer third", b"Bearer anna:first"):
        headers = {b"Authorization": sent}
        answers = [call(gateway, "POST", "/v1/audio/speech", content=b"{", headers=headers)]
        answers += [call(gateway, "GET", path, headers=headers) for path in GUARDED]
        assert {answer.status_code for answer in answers} == {401}
        assert "missing or wrong" in answers[0].json()["error"]["message"]
    assert len(transport.sync.calls) == asked_before
    for path in ("/health", "/", "/docs", "/openapi.json", "/swagger/swagger-ui.css"):
        assert call(gateway, "GET", path).status_code == 200


def test_requests_are_answered_side_by_side() -> None:
    async def request(url: str) -> list[bytes]:
        async with httpx.AsyncClient() as client:
            calls = [client.post(f"{url}/audio/speech", json=SPEECH) for _ in range(40)]
            return [answer.content for answer in await asyncio.gather(*calls)]

    with serving(FakeAsyncTransport) as url:
        assert asyncio.run(request(url)) == [PCM] * 40
