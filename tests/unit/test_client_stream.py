"""Streams of both clients: chunks, errors in the middle, and leaving early."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import inspect
import json
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grpc.aio
import numpy as np
import pytest

from chatterbox_client import (
    AsyncClient,
    ChatterboxClientError,
    Chunk,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    ServerError,
    Timeout,
    Unavailable,
    concatenate,
)
from chatterbox_client.errors import from_status
from chatterbox_client.request import STREAM_OUTPUTS
from chatterbox_client.transports import sse
from chatterbox_client.transports.grpc_stream import read_message
from tests.unit.client_fakes import (
    SAMPLES,
    STATS,
    TOKENS,
    TRITONS_OWN,
    FakeAsyncTransport,
    FakeServer,
    FakeTransport,
    fake_server,
)

WAIT = 20.0
both = pytest.mark.parametrize("kind", [Client, AsyncClient])
WAYS = [(kind, protocol) for kind in (Client, AsyncClient) for protocol in ("grpc", "http")]
every_way = pytest.mark.parametrize(("kind", "protocol"), WAYS, ids=lambda part: getattr(part, "__name__", part))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


def chunks(
    kind: Any, server: FakeServer | str, *args: Any, protocol: Any = "grpc", stop_after: int = 99, **options: Any
) -> list[Chunk]:
    """The chunks of one stream of a fresh client of either kind; leaves after some."""
    taken: list[Chunk] = []
    timeout = options.pop("timeout", 30)
    address = server if isinstance(server, str) else server.grpc_url if protocol == "grpc" else server.http_url
    if kind is Client:
        with Client(address, protocol, timeout=timeout) as client:
            for chunk in client.stream(*args, **options):
                taken.append(chunk)
                if len(taken) == stop_after:
                    break
        return taken

    async def listen() -> None:
        async with (
            AsyncClient(address, protocol, timeout=timeout) as client,
            contextlib.aclosing(client.stream(*args, **options)) as stream,
        ):
            async for chunk in stream:
                taken.append(chunk)
                if len(taken) == stop_after:
                    break

    asyncio.run(listen())
    return taken


@both
def test_chunks_come_as_the_server_sent_them_and_make_a_whole(server: FakeServer, kind: Any) -> None:
    taken = chunks(kind, server, "Grüße", seed=-3, first_chunk_tokens=4, chunk_tokens=9)
    assert [(chunk.index, chunk.is_last, chunk.duration) for chunk in taken] == [
        (0, False, 0.04),
        (1, False, 0.04),
        (2, True, 0.04),
    ]
    assert [chunk.stats for chunk in taken] == [{}, {}, STATS]
    audio = concatenate(taken)
    np.testing.assert_array_equal(audio.samples, SAMPLES)
    np.testing.assert_array_equal(audio.speech_tokens, TOKENS)
    assert audio.stats == STATS
    assert b"".join(chunk.to_bytes() for chunk in taken) == audio.to_bytes("s16")
    assert {name: int.from_bytes(raw, "little", signed=True) for name, (_, _, raw) in server.received[-1].items()} == {
        "text": int.from_bytes(b"\7\0\0\0" + "Grüße".encode(), "little"),
        "seed": -3,
        "first_chunk_tokens": 4,
        "chunk_tokens": 9,
    }


@every_way
@pytest.mark.parametrize(
    ("text", "error"),
    [("400", InvalidRequest), ("404", NotFound), ("503", Unavailable), ("500", ServerError), ("break", ServerError)],
)
def test_a_status_in_the_stream_is_its_typed_error(
    server: FakeServer, kind: Any, protocol: str, text: str, error: type[ChatterboxClientError]
) -> None:
    with pytest.raises(ChatterboxClientError) as caught:
        chunks(kind, server, text, protocol=protocol)
    assert type(caught.value) is error
    assert caught.value.message == (
        "the process of the engine has ended" if text == "break" else f"refused with {text}"
    )


@pytest.mark.parametrize(
    ("text", "there", "error"), [("404", True, NotFound), ("hang", True, Timeout), ("Hi.", False, ConnectionFailed)]
)
def test_an_error_leaves_nothing_that_keeps_its_connection(
    server: FakeServer, text: str, there: bool, error: type[ChatterboxClientError]
) -> None:
    """One that its own traceback refers to would, until it is collected; under gevent that can be too late."""
    gc.disable()
    try:
        client = Client(server.grpc_url if there else "127.0.0.1:9", "grpc", timeout=0.5)
        transport: Any = client._transport
        channel = weakref.ref(transport._streams)
        with client, pytest.raises(error) as caught:
            list(client.stream(text))
        del client, transport, caught
        assert channel() is None
    finally:
        gc.enable()


@every_way
@pytest.mark.parametrize(("text", "status"), TRITONS_OWN.items())
def test_tritons_own_message_in_the_stream_is_its_typed_error(
    server: FakeServer, kind: Any, protocol: str, text: str, status: str | None
) -> None:
    with pytest.raises(ChatterboxClientError) as caught:
        chunks(kind, server, text, protocol=protocol)
    status = status or ("400" if protocol == "http" else None)
    assert type(caught.value) is type(from_status(text, status))
    assert (caught.value.message, caught.value.status) == (text, status)


@every_way
def test_a_stream_that_ends_before_its_last_chunk_is_an_error(server: FakeServer, kind: Any, protocol: str) -> None:
    with pytest.raises(ServerError, match="before its last chunk"):
        chunks(kind, server, "short", protocol=protocol)


@every_way
def test_a_stream_that_takes_too_long_is_a_timeout(server: FakeServer, kind: Any, protocol: str) -> None:
    with pytest.raises(Timeout, match=r"no answer within 0\.2 s"):
        chunks(kind, server, "hang", timeout=0.2, protocol=protocol)


@every_way
def test_a_server_that_is_not_there_is_connection_failed(kind: Any, protocol: str) -> None:
    with pytest.raises(ConnectionFailed):
        chunks(kind, "127.0.0.1:9", "Hi.", protocol=protocol)


@every_way
def test_leaving_the_loop_gives_the_request_up(server: FakeServer, kind: Any, protocol: str) -> None:
    while not server.cancelled.empty():
        server.cancelled.get()
    threads = threading.active_count()
    assert len(chunks(kind, server, "endless", stop_after=2, protocol=protocol)) == 2
    assert server.cancelled.get(timeout=WAIT) == "endless"
    assert threading.active_count() <= threads + 1  # grpc keeps one of its own


@both
def test_over_http_chunks_are_those_of_grpc_in_16_bits(server: FakeServer, kind: Any) -> None:
    over_grpc, over_http = (chunks(kind, server, "Grüße", seed=-3, protocol=protocol) for protocol in ("grpc", "http"))
    for mine, theirs in zip(over_http, over_grpc, strict=True):
        np.testing.assert_allclose(mine.samples, theirs.samples, atol=2e-5)
        np.testing.assert_array_equal(mine.speech_tokens, theirs.speech_tokens)
        assert (mine.index, mine.is_last, mine.stats) == (theirs.index, theirs.is_last, theirs.stats)
        assert mine.samples.dtype == np.float32


@both
def test_over_http_a_request_is_json(server: FakeServer, kind: Any) -> None:
    chunks(kind, server, "Hi.", reference_audio=b"RIFF\0\xff", temperature=0.5, chunk_tokens=9, protocol="http")
    clip = base64.b64encode(b"RIFF\0\xff").decode()
    expected = {"text": "Hi.", "reference_audio": clip, "temperature": 0.5, "chunk_tokens": 9, "format": "s16"}
    assert server.json[-1] == expected


def test_events_are_put_together_from_any_pieces() -> None:
    events = sse.Events(STREAM_OUTPUTS)
    event = {
        "audio_base64": base64.b64encode(b"\1\0\2\0").decode(),
        "sample_rate": 24_000,
        "speech_tokens": [5, 6],
        "stats": "{}",
        "chunk_index": 0,
        "is_last": False,
    }
    data = f": a comment\r\n\r\ndata: {json.dumps(event)}\n\n".encode() * 2
    found = [tensors for at in range(len(data)) for tensors in events.feed(data[at : at + 1])]
    assert [tensors["speech_tokens"].tolist() for tensors in found] == [[[5, 6]]] * 2
    assert not events.complete
    for wrong in (b"data: no json\n", b'data: {"audio_base64": ""}\n', b"data: 7\n"):
        with pytest.raises(ServerError, match="not of this contract"):
            events.feed(wrong)


@pytest.mark.parametrize("wrong", [{"chunk_tokens": 2**31}, {"first_chunk_tokens": 1.5}, {"seed": 2**63}], ids=repr)
def test_a_value_its_tensor_cannot_carry_is_refused_when_called(wrong: dict[str, Any]) -> None:
    transport = FakeTransport()
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Client(transport=transport).stream("Hi.", **wrong)
    assert not transport.calls


def test_the_model_the_outputs_and_the_timeout_reach_the_transport() -> None:
    transport = FakeAsyncTransport()

    async def listen() -> list[Chunk]:
        client = AsyncClient(model="turbo", timeout=7, transport=transport)
        return [chunk async for chunk in client.stream("Hi.", voice="emma")]

    assert len(asyncio.run(listen())) == 3
    model, tensors, outputs, timeout = transport.sync.calls[0]
    assert (model, set(tensors), timeout) == ("turbo_stream", {"text", "voice"}, 7)
    assert set(outputs) == {"audio", "sample_rate", "speech_tokens", "stats", "chunk_index", "is_last"}


def test_an_unfinished_stream_is_not_concatenated() -> None:
    first = next(Client(transport=FakeTransport()).stream("Hi."))
    for unfinished in ([], [first]):
        with pytest.raises(ValueError, match="last chunk is missing"):
            concatenate(unfinished)


def test_stream_takes_what_speak_takes_and_the_chunk_sizes() -> None:
    speak, stream = (inspect.signature(method).parameters for method in (Client.speak, Client.stream))
    extra = {"first_chunk_tokens", "chunk_tokens"}
    assert {name: str(it) for name, it in stream.items() if name not in {*extra, "text"}} == {
        name: str(it) for name, it in speak.items() if name != "text"
    }
    assert str(stream["text"]) == "text: 'str | Iterable[str] | AsyncIterable[str]'"
    assert set(stream) - set(speak) == extra
    assert str(inspect.signature(AsyncClient.stream).parameters) == str(stream)


def test_a_task_that_is_cancelled_cancels_its_call_and_not_the_read() -> None:
    """gRPC leaks the memory of a read that is cancelled."""

    class Call:
        def __init__(self) -> None:
            self.cancelled, self.ended = asyncio.Event(), ""

        def cancel(self) -> None:
            self.cancelled.set()

        async def read(self) -> object:
            self.ended = "cut off"
            await self.cancelled.wait()
            self.ended = "by the call"
            return grpc.aio.EOF

    async def cancel() -> Call:
        call = Call()
        task = asyncio.create_task(read_message(call))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return call

    assert asyncio.run(cancel()).ended == "by the call"
