"""The front for OpenAI's API, asked by OpenAI's own client; behind it transports that answer at once, or a server that
speaks Triton's protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import numpy as np
import openai
import pytest
from aiohttp import web

from chatterbox_client import Audio, InvalidRequest, NotFound, ServerError, Timeout, Unavailable
from chatterbox_client.request import Tensors
from chatterbox_client.transports import AsyncTransport, open_async_transport
from chatterbox_gateway.server import SpeechApi
from tests.unit.client_fakes import SAMPLES, STATS, TOKENS, FakeAsyncTransport, fake_server, spoken_chunks

PCM = Audio(SAMPLES, 24_000, TOKENS, STATS).to_bytes("s16")
SPEECH: dict[str, Any] = {"model": "tts-1", "input": "Hello.", "voice": "anna", "response_format": "pcm"}


class WithVoices(FakeAsyncTransport):
    """Knows the voices that it is given; without any it is a server that left that model out."""

    def __init__(self, *voices: str) -> None:
        super().__init__()
        self.voices = voices
        self.changes: list[tuple[str, str, bytes]] = []

    async def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        if model != "chatterbox_voices":
            return await super().infer(model, tensors, outputs, timeout)
        entries = [
            {"voice": name, "bytes": 1, "content_hash": "", "created_at": "", "updated_at": ""} for name in self.voices
        ]
        if not self.voices:
            raise NotFound("Request for unknown model: 'chatterbox_voices' is not found")
        if tensors["action"].item() == b"list":
            return {"result": np.array([[json.dumps(entries)]], dtype=np.object_)}
        if tensors["action"].item() == b"add":
            self.changes.append(("add", tensors["voice"].item().decode(), tensors["audio"].item()))
        named = [entry for entry in entries if entry["voice"].encode() == tensors["voice"].item()]
        if not named:
            raise NotFound("there is no such voice")
        return {"result": np.array([[json.dumps(named[0])]], dtype=np.object_)}


class Breaking(FakeAsyncTransport):
    """A stream that ends with an error behind its first chunk."""

    async def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[Tensors, None]:
        async for answer in super().stream(model, tensors, outputs, timeout):
            yield answer
            raise ServerError("the engine has ended")


class Endless(FakeAsyncTransport):
    """A stream that has a second of noise whenever it is asked for more. `idle`: nobody has asked for 0.3 s."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.ended = threading.Event(), threading.Event()

    async def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[Tensors, None]:
        noise = np.random.default_rng(0).uniform(-1, 1, (1, 24_000)).astype(np.float32)
        loop = asyncio.get_running_loop()
        try:
            while True:
                waiting = loop.call_later(0.3, self.idle.set)
                yield {**spoken_chunks()[0], "audio": noise}
                waiting.cancel()
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()


@contextmanager
def serving(
    make: Callable[[], AsyncTransport], timeout: float = 10.0, cancel: bool = True, **options: Any
) -> Iterator[str]:
    """The base URL of a front, run as the command runs it, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        api = SpeechApi(make(), ["chatterbox", "turbo"], timeout=timeout, **options)
        runner = web.AppRunner(api.application(), handler_cancellation=cancel, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def connected(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has asked for speech as an old proxy does: the end of the body is a hang-up."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    content = json.dumps(body).encode()
    head = f"POST /v1/audio/speech HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def asked(transport: FakeAsyncTransport) -> tuple[str, dict[str, Any]]:
    """The one request that reached it: model and values."""
    [(model, tensors, _, _)] = transport.sync.calls
    return model, {name: tensor.item() for name, tensor in tensors.items()}


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
    assert asked(transport) == ("chatterbox_stream", {"text": b"Hello.", "voice": b"anna"})
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
    assert answer.headers["Content-Type"] == "text/event-stream"
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == PCM
    usage = {"input_tokens": 6, "output_tokens": 3, "total_tokens": 9}
    assert done == {"type": "speech.audio.done", "usage": usage}


@pytest.mark.parametrize(("stored", "spoken"), [(("anna", "nova"), b"nova"), (("anna",), None), ((), None)])
def test_openais_voice_is_the_stored_one_or_the_built_in(stored: tuple[str, ...], spoken: bytes | None) -> None:
    transport = WithVoices(*stored)
    with serving(lambda: transport) as url, client_of(url) as client:
        client.audio.speech.create(**{**SPEECH, "voice": "nova", "model": "turbo"})
    model, values = asked(transport)
    assert (model, values.get("voice")) == ("turbo_stream", spoken)


@pytest.mark.parametrize("clip", ["data:audio/wav;base64,UklG\r\nRg==", "\u00e9\ud83d"])
def test_a_clip_is_handed_on_as_it_is_sent(clip: str) -> None:
    """The server decodes it, and says what is wrong with it."""
    transport = FakeAsyncTransport()
    with serving(lambda: transport) as url:
        body = json.dumps({"input": "Hello.", "reference_audio": clip})
        assert httpx.post(f"{url}/audio/speech", content=body).status_code == 200
    assert asked(transport)[1] == {"text": b"Hello.", "reference_audio": clip.encode("ascii", "replace")}


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
    with (
        serving(lambda: FakeAsyncTransport(error)) as url,
        client_of(url) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.audio.speech.create(**SPEECH, extra_body=fields)
    assert caught.value.status_code == status
    assert caught.value.body == {"message": str(error), "type": kind, "param": None, "code": None}


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 200_000, "the body is not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"input": "Hi.", "speed": 2}', "speed"),
    ],
)
def test_a_wrong_body_is_refused(request_body: bytes, message: str) -> None:
    with serving(FakeAsyncTransport) as url:
        answer = httpx.post(f"{url}/audio/speech", content=request_body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_not_compressed_as_it_says_is_refused() -> None:
    with serving(FakeAsyncTransport) as url:
        answer = httpx.post(f"{url}/audio/speech", content=b"{}", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_unknown_paths_methods_and_bodies_too_large_are_errors_in_the_same_form() -> None:
    with serving(FakeAsyncTransport) as url:
        answers = [
            httpx.get(f"{url}/audio/transcriptions"),
            httpx.get(f"{url}/audio/speech"),
            httpx.post(f"{url}/audio/speech", content=bytes(65 << 20)),
        ]
    assert [answer.status_code for answer in answers] == [404, 405, 413]
    assert all(answer.json()["error"]["message"] for answer in answers)
    assert answers[1].headers["Allow"] == "POST"


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


@pytest.mark.parametrize("cancel", [True, False])  # when a write fails first, nothing is cancelled
@pytest.mark.parametrize("full", [True, False])  # whether the reader has let all buffers fill
def test_hanging_up_is_no_error(caplog: pytest.LogCaptureFixture, cancel: bool, full: bool) -> None:
    transport = Endless()
    with serving(lambda: transport, cancel=cancel) as url:
        with connected(url, SPEECH) as connection:
            assert connection.recv(1_000)
            if full:
                assert transport.idle.wait(20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert transport.ended.wait(20)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_reader_that_takes_nothing_is_not_waited_for_without_end(caplog: pytest.LogCaptureFixture) -> None:
    transport = Endless()
    with serving(lambda: transport, timeout=0.5) as url, connected(url, SPEECH) as connection:
        assert connection.recv(1_000)
        assert transport.ended.wait(20)
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert "the client did not read a piece within 0.5 s" in caplog.text


def test_a_stream_of_events_that_breaks_says_so() -> None:
    with serving(Breaking) as url:
        answer = httpx.post(f"{url}/audio/speech", json={**SPEECH, "stream_format": "sse"})
    first, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    assert first["type"] == "speech.audio.delta"
    assert (last["type"], last["error"]["message"]) == ("error", "the engine has ended")


def test_who_goes_away_gives_the_request_up() -> None:
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
            assert (answer.status_code, "audio_sample" in answer.text) == (400, True)
        for kind in ("multipart/form-data", "application/x-www-form-urlencoded; charset=none"):
            assert httpx.post(f"{url}/audio/voices", content=b"x", headers={"Content-Type": kind}).status_code == 400
    with serving(lambda: transport) as url:  # unless it is told so, it changes nothing
        form = {"data": {"name": "anna"}, "files": {"audio_sample": b"RIFF"}}
        assert httpx.post(f"{url}/audio/voices", **form).status_code == 405  # type: ignore[arg-type]
        assert httpx.delete(f"{url}/audio/voices/anna").status_code == 404


def test_a_lenient_front_speaks_all_the_same() -> None:
    with serving(FakeAsyncTransport, lenient=True) as url, client_of(url) as client:
        assert client.audio.speech.create(**SPEECH, speed=1.5, instructions="Whisper.").read() == PCM


def test_a_server_without_stored_voices_has_the_built_in_one() -> None:
    with serving(WithVoices) as url:
        assert httpx.get(f"{url}/audio/voices").json() == {"voices": [{"id": "default", "name": "default"}]}


def test_health_is_the_models() -> None:
    transport = FakeAsyncTransport()
    with serving(lambda: transport, keys=["secret"]) as url:
        health = url.removesuffix("/v1") + "/health"
        assert httpx.get(health).json() == {"status": "ok"}
        transport.sync.is_ready = False
        assert httpx.get(health).status_code == 503


def test_with_keys_nobody_else_is_answered() -> None:
    transport = FakeAsyncTransport()
    with serving(lambda: transport, keys=["first", "second"]) as url:
        for key in ("first", "second"):
            assert client_of(url, key).audio.speech.create(**SPEECH).read() == PCM
        asked_before = len(transport.sync.calls)
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client_of(url, "third").audio.speech.create(**SPEECH)
        for sent in (b"", b"first", b"Basic first", b"Bearer", b"Bearer \xff"):
            header = {b"Authorization": sent}
            answers = [httpx.post(f"{url}/audio/speech", json=SPEECH, headers=header)]
            answers += [httpx.get(f"{url}/{path}", headers=header) for path in ("models", "audio/voices", "nowhere")]
            assert {answer.status_code for answer in answers} == {401}
        assert len(transport.sync.calls) == asked_before


def test_requests_are_answered_side_by_side() -> None:
    async def ask(url: str) -> list[bytes]:
        async with aiohttp.ClientSession() as session:

            async def one() -> bytes:
                async with session.post(f"{url}/audio/speech", json=SPEECH) as answer:
                    return await answer.read()

            return await asyncio.gather(*(one() for _ in range(40)))

    with serving(FakeAsyncTransport) as url:
        assert asyncio.run(ask(url)) == [PCM] * 40
