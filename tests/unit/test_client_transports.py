"""The four transports through `tritonclient`, against a server in this process that speaks Triton's protocols."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from chatterbox_client import (
    AsyncClient,
    ChatterboxClientError,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    ServerError,
    Timeout,
    Unavailable,
)
from chatterbox_client.transports.convert import unreachable
from tests.unit.client_fakes import METADATA, SAMPLES, STATS, TOKENS, FakeServer, fake_server

WAYS = [(kind, protocol) for kind in (Client, AsyncClient) for protocol in ("http", "grpc")]
every_way = pytest.mark.parametrize(("kind", "protocol"), WAYS, ids=lambda part: getattr(part, "__name__", part))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address that nobody else can take and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def url(server: FakeServer, protocol: str) -> str:
    return server.http_url if protocol == "http" else server.grpc_url


def call(
    kind: Any, address: str | None, protocol: str, method: str, *args: Any, timeout: float = 30, **options: Any
) -> Any:
    """One call of a fresh client of either kind."""
    if kind is Client:
        with Client(address, protocol, timeout=timeout) as client:  # type: ignore[arg-type]
            return getattr(client, method)(*args, **options)

    async def once() -> Any:
        async with AsyncClient(address, protocol, timeout=timeout) as client:  # type: ignore[arg-type]
            return await getattr(client, method)(*args, **options)

    return asyncio.run(once())


@every_way
def test_speech_comes_back_and_the_request_arrived_as_it_was_given(
    server: FakeServer, kind: Any, protocol: str
) -> None:
    audio = call(kind, url(server, protocol), protocol, "speak", "Grüße", seed=-3, top_k=4, reference_audio=b"\0x\0")
    np.testing.assert_array_equal(audio.samples, SAMPLES)
    np.testing.assert_array_equal(audio.speech_tokens, TOKENS)
    assert (audio.sample_rate, audio.stats) == (24_000, STATS)
    assert server.received[-1] == {
        "text": ("BYTES", [1, 1], b"\7\0\0\0" + "Grüße".encode()),
        "reference_audio": ("BYTES", [1, 1], b"\3\0\0\0\0x\0"),
        "seed": ("INT64", [1, 1], struct.pack("<q", -3)),
        "top_k": ("INT32", [1, 1], struct.pack("<i", 4)),
    }


@every_way
@pytest.mark.parametrize("method", ["speak", "stream"])
def test_an_id_and_headers_accompany_one_request(server: FakeServer, kind: Any, protocol: Any, method: str) -> None:
    async def run() -> None:
        async with AsyncClient(url(server, protocol), protocol) as plain:
            for client in (plain.with_context("call-7", {"X-Trace": "1"}), plain):
                if method == "speak":
                    await client.speak("Hello.")
                else:
                    assert [chunk async for chunk in client.stream("Hello.")]

    if kind is AsyncClient:
        asyncio.run(run())
    else:
        with Client(url(server, protocol), protocol) as plain:
            for client in (plain.with_context("call-7", {"X-Trace": "1"}), plain):
                assert client.speak("Hello.") if method == "speak" else list(client.stream("Hello."))
    assert [identity if "call" in identity else "" for identity in server.ids[-2:]] == ["call-7", ""]
    assert [headers.get("x-trace") for headers in server.metadata[-2:]] == ["1", None]


@every_way
def test_ready_and_metadata_are_the_same_over_both_protocols(server: FakeServer, kind: Any, protocol: str) -> None:
    assert call(kind, url(server, protocol), protocol, "ready") is True
    assert call(kind, url(server, protocol), protocol, "metadata") == METADATA


@every_way
@pytest.mark.parametrize(
    ("http_status", "code", "error"),
    [
        ("400", "INVALID_ARGUMENT", InvalidRequest),
        ("404", "NOT_FOUND", NotFound),
        ("503", "UNAVAILABLE", Unavailable),
        ("500", "INTERNAL", ServerError),
    ],
)
def test_a_status_becomes_its_error_with_the_servers_message(
    server: FakeServer, kind: Any, protocol: str, http_status: str, code: str, error: type[ChatterboxClientError]
) -> None:
    with pytest.raises(ChatterboxClientError) as caught:
        call(kind, url(server, protocol), protocol, "speak", http_status)
    assert type(caught.value) is error
    assert caught.value.message == f"refused with {http_status}"
    assert caught.value.status == (http_status if protocol == "http" else code)


@every_way
@pytest.mark.parametrize("method", ["speak", "ready", "metadata"])
def test_a_closed_port_is_connection_failed(closed_port: str, kind: Any, protocol: str, method: str) -> None:
    with pytest.raises(ConnectionFailed, match=closed_port) as caught:
        call(kind, closed_port, protocol, method, *(["Hi."] if method == "speak" else []))
    assert caught.value.status is None


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("port", [8000, 8001, 9000])
def test_the_usual_port_of_the_other_protocol_is_pointed_out(protocol: str, port: int) -> None:
    message = str(unreachable(f"tts:{port}", protocol, "refused"))
    assert message.startswith(f"tts:{port}: refused")
    assert ("is usually the port of" in message) == ((protocol, port) in (("http", 8001), ("grpc", 8000)))


@pytest.mark.parametrize("address", ["ipv4:10.0.0.1:8000,10.0.0.2:8000", "10.0.0.1:8000,10.0.0.2:8000", "dns:tts:8000"])
def test_several_servers_are_for_grpc_alone(address: str) -> None:
    with pytest.raises(InvalidRequest, match="several addresses are for gRPC alone"):
        Client(address)


SCHEMES = [("http", "http://"), ("http", "HTTP://"), ("grpc", "grpc://")]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("protocol", "scheme"), SCHEMES)
def test_a_scheme_may_stand_before_an_address(server: FakeServer, kind: Any, protocol: str, scheme: str) -> None:
    address = f"{scheme}{url(server, protocol)}{'/' if protocol == 'http' else ''}"
    assert call(kind, address, protocol, "speak", "Hi.").stats == STATS


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("protocol", "address", "reason"),
    [
        ("http", "grpc://tts:8001", "is an address for the protocol grpc"),
        ("grpc", "https://tts:8000", "is an address for the protocol http"),
        ("http", "ftp://tts", "give host:port, or begin it with http://, https://, grpc:// or grpcs://"),
        ("grpc", "grpc://tts:8001/path", "has no path"),
    ],
)
def test_an_address_of_something_else_is_a_typed_error(kind: Any, protocol: Any, address: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        kind(address, protocol)


@every_way
@pytest.mark.parametrize("method", ["speak", "stream"])
def test_the_schemes_of_tls_begin_a_handshake(kind: Any, protocol: str, method: str) -> None:
    greetings: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        greetings.put(connection.recv(3))

        thread = threading.Thread(target=greet)
        thread.start()
        address = f"{protocol}s://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises((ConnectionFailed, Timeout)):
            ask(kind, address, protocol, method)
        assert greetings.get(timeout=30) == b"\x16\x03\x01"  # a ClientHello's record
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def ask(kind: Any, address: str, protocol: str, method: str) -> None:
    """Speaks or streams."""
    if method == "speak":
        call(kind, address, protocol, "speak", "Hi.", timeout=5)
    elif kind is Client:
        with Client(address, protocol, timeout=5) as client:  # type: ignore[arg-type]
            list(client.stream("Hi."))
    else:

        async def listen() -> None:
            async with AsyncClient(address, protocol, timeout=5) as client:  # type: ignore[arg-type]
                async for _ in client.stream("Hi."):
                    pass

        asyncio.run(listen())


@every_way
def test_an_address_comes_from_the_protocols_own_variable(
    server: FakeServer, closed_port: str, monkeypatch: pytest.MonkeyPatch, kind: Any, protocol: str
) -> None:
    for name, own in (("CHATTERBOX_URL", "http"), ("CHATTERBOX_GRPC_URL", "grpc")):
        monkeypatch.setenv(name, url(server, protocol) if own == protocol else closed_port)
    assert call(kind, None, protocol, "speak", "Hi.").stats == STATS
    with pytest.raises(ConnectionFailed):
        call(kind, closed_port, protocol, "speak", "Hi.")


@every_way
def test_a_server_that_does_not_answer_is_a_timeout(server: FakeServer, kind: Any, protocol: str) -> None:
    with pytest.raises(Timeout, match=r"no answer within 0\.2 s"):
        call(kind, url(server, protocol), protocol, "speak", "hang", timeout=0.2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_connection_that_breaks_before_the_answer_is_connection_failed(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            listener.close()  # so that a client that tries again, as geventhttpclient 2.4 does, is refused
            connection.recv(65_536)
            connection.close()

        address = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectionFailed, match=address):
            call(kind, address, "http", "speak", "Hi.")
        thread.join()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_client_serves_sixteen_threads_at_once(server: FakeServer, protocol: Any) -> None:
    before = len(server.received)
    with Client(url(server, protocol), protocol) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda number: client.speak(f"Number {number}."), range(48)))
    for audio in answers:
        np.testing.assert_array_equal(audio.samples, SAMPLES)
    texts = {request["text"][2][4:].decode() for request in server.received[before:]}
    assert texts == {f"Number {number}." for number in range(48)}


def test_several_servers_take_requests_in_turn_and_one_that_was_stopped_takes_none() -> None:
    def received(servers: Sequence[FakeServer]) -> list[int]:
        counts = [len(server.received) for server in servers]
        for server in servers:
            server.received.clear()
        return counts

    def ask(client: Client, count: int) -> None:
        for _ in range(count):
            client.speak("Hi.")
            list(client.stream("Hi."))

    with fake_server() as first, contextlib.ExitStack() as stack:
        second = stack.enter_context(fake_server())
        with Client(f"ipv4:{first.grpc_url},{second.grpc_url}", "grpc", timeout=30) as client:
            ask(client, 20)  # the first ones may go to whichever is connected first
            received((first, second))
            ask(client, 4)
            assert received((first, second)) == [4, 4]
            stack.close()  # the second server
            ask(client, 4)
            assert received((first, second)) == [8, 0]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_async_client_has_many_requests_under_way(server: FakeServer, protocol: Any) -> None:
    async def speak() -> list[Any]:
        async with AsyncClient(url(server, protocol), protocol) as client:
            return await asyncio.gather(*(client.speak(f"Number {number}.") for number in range(48)))

    for audio in asyncio.run(speak()):
        np.testing.assert_array_equal(audio.samples, SAMPLES)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts file descriptors in /proc")  # noqa: PTH112
def test_short_lived_threads_leave_no_file_descriptors_behind(server: FakeServer) -> None:
    def descriptors() -> list[str]:
        targets = []
        for entry in os.scandir("/proc/self/fd"):
            try:
                targets.append(os.readlink(entry.path))  # noqa: PTH115
            except FileNotFoundError:
                continue  # the scan's own
        return [target for target in targets if "event" in target or "pipe" in target]  # a gevent hub's

    with Client(server.http_url) as client:
        client.speak("First.")  # loads what is loaded once
        before = len(descriptors())
        for _ in range(10):
            thread = threading.Thread(target=client.speak, args=("Hi.",))
            thread.start()
            thread.join()
        assert len(descriptors()) == before
