"""A thousand connections at once, a hundred of which hardly read: nobody waits for them or reads ahead for them."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest

from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from tests.unit.client_fakes import FakeAsyncTransport, spoken_chunks
from tests.unit.gateway_fakes import serving

CONNECTIONS, SLOW = 1_000, 100
CHUNKS = 4
"""Of an answer; those to slow readers never end."""
BYTES = 48_000
"""Of a chunk: one second."""
MOST = 16_000_000
"""Bytes for a reader that does not read: the kernel keeps some megabytes for each connection."""
ROUNDS = 5
"""In which every slow reader reads one byte."""


class Counting(FakeAsyncTransport):
    """Streams of silence. Counts by text what has been taken of each, and what has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, int] = {}
        self.ended: list[str] = []
        self.all_ended = threading.Event()

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        text = tensors["text"].item().decode()
        first, *_, last = spoken_chunks()
        silence = np.zeros((1, BYTES // 2), np.float32)
        try:
            for number in itertools.count(1) if text.startswith("slow") else range(1, CHUNKS + 1):
                self.taken[text] = number
                yield {**(last if number == CHUNKS and not text.startswith("slow") else first), "audio": silence}
        finally:
            self.ended.append(text)
            if len(self.ended) == CONNECTIONS:
                self.all_ended.set()


async def connect(address: tuple[str, int], text: str, buffer: int | None) -> socket.socket:
    """A connection that has asked for a stream. buffer: bytes that the kernel keeps for it."""
    made = socket.socket()
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, address)
    body = json.dumps({"input": text, "response_format": "pcm"}).encode()
    head = (
        f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await loop.sock_sendall(made, head.encode() + body)
    return made


async def read_all(connection: socket.socket) -> int:
    """Bytes until the connection is closed."""
    loop, size = asyncio.get_running_loop(), 0
    while part := await loop.sock_recv(connection, 1 << 16):
        size += len(part)
    connection.close()
    return size


async def listen(address: tuple[str, int], slow: list[socket.socket]) -> list[int]:
    """What the others read while the slow ones read a byte now and then."""
    loop = asyncio.get_running_loop()
    slow += await asyncio.gather(*(connect(address, f"slow {number}", 4096) for number in range(SLOW)))
    sizes: list[int] = []
    names = [f"other {number}" for number in range(CONNECTIONS - SLOW)]
    for turn in range(ROUNDS):
        for connection in slow:
            assert len(await loop.sock_recv(connection, 1)) == 1
        others = [await connect(address, name, None) for name in names[turn::ROUNDS]]
        sizes += await asyncio.gather(*map(read_all, others))
    return sizes


@pytest.mark.full
def test_slow_readers_delay_nobody_and_are_not_read_ahead_for() -> None:
    transport = Counting()
    slow: list[socket.socket] = []
    with serving(lambda: transport, timeout=600.0) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        sizes = asyncio.run(listen((host, int(port)), slow))
        assert len(sizes) == CONNECTIONS - SLOW
        assert min(sizes) > CHUNKS * BYTES, "audio and the head of the response"
        assert len(transport.ended) == CONNECTIONS - SLOW, "the slow ones are under way"
        taken = [count for text, count in transport.taken.items() if text.startswith("slow")]
        assert len(taken) == SLOW
        assert max(taken) * BYTES < MOST, "the gateway waits for its reader"
        for connection in slow:
            connection.close()
        assert transport.all_ended.wait(60), "a reader that leaves ends its stream"
