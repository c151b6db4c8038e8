"""The gateway by itself, over a transport that answers at once: time to first audio, slow readers, memory.

Time to first audio is the time from the request to the first byte of the body, of clients that read at once: with and
without a hundred connections beside them that read one byte a second, in turns, in one run. Memory is that of the
gateway's process after many requests, a whole answer and a stream in turn.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from bench.report import Report, Row, say
from chatterbox_client.request import Tensors
from chatterbox_client.transports import AsyncTransport
from chatterbox_gateway.app import create
from chatterbox_gateway.server import Server, listen
from chatterbox_gateway.settings import Settings

SLOW = 100
TOGETHER = 8
"""Clients that read at once."""
TURNS, ROUNDS = 5, 40
"""Turns with and without slow readers, and requests of each client in a turn."""
REQUESTS = 10_000
STEPS = 10
CHUNK = np.zeros((1, 24_000), np.float32)
CHUNKS = 10
ENDLESS = "An endless text."
SETTLED = 0.05
"""Seconds of the gateway's processor time in a second, once the slow readers' buffers are full."""

Address = tuple[str, int]


class Silence(AsyncTransport):
    """A server that has a second of silence whenever it is asked for."""

    async def infer(self, *_: Any, **__: Any) -> Tensors:
        """See `AsyncTransport`."""
        return _answer({"rtf": 0.1})

    async def stream(self, *request: Any, **_: Any) -> AsyncGenerator[Tensors, None]:
        """See `AsyncTransport`. What slow readers ask for never ends."""
        endless = request[1]["text"].item() == ENDLESS.encode()
        for index in itertools.count() if endless else range(CHUNKS):
            last = not endless and index == CHUNKS - 1
            answer = _answer({"rtf": 0.1} if last else {})
            yield {**answer, "chunk_index": np.array([[index]], np.int32), "is_last": np.array([[last]])}

    async def ready(self, *_: Any, **__: Any) -> bool:
        """See `AsyncTransport`."""
        return True

    async def metadata(self, *_: Any, **__: Any) -> Any:
        """See `AsyncTransport`."""
        return {}

    async def close(self) -> None:
        """See `AsyncTransport`."""


def _answer(stats: dict[str, Any]) -> dict[str, Any]:
    return {
        "audio": CHUNK,
        "sample_rate": np.array([[24_000]], np.int32),
        "speech_tokens": np.zeros((1, 25), np.int32),
        "stats": np.array([[json.dumps(stats).encode()]], dtype=np.object_),
    }


def main() -> None:
    report = Report("gateway", notes={"slow readers": SLOW, "clients": TOGETHER, "requests": REQUESTS})
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=[child], daemon=True)
    process.start()
    address = parent.recv()
    running = psutil.Process(process.pid)
    measure_first_audio(report, address, running)
    measure_memory(report, address, running)
    process.terminate()
    process.join()
    report.write(draw)


def _serve(ready: Connection) -> None:
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    with listen("127.0.0.1", 0) as listening:
        ready.send(listening.getsockname())
        gateway = create(Silence(), Settings(timeout=600.0))
        asyncio.run(Server(gateway, grace_seconds=0).serve([listening]))


def measure_first_audio(report: Report, address: Address, running: psutil.Process) -> None:
    """Milliseconds to first audio, without slow readers and with them, in turns."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(TURNS):
        for slow in (False, True):
            found[slow] += asyncio.run(_turn(address, running, SLOW if slow else 0))
        say(f"gateway: turn {turn + 1} of {TURNS}")
    for name, share in (("p50", 50), ("p95", 95)):
        alone, beside = (statistics.quantiles(found[slow], n=100)[share - 1] for slow in (False, True))
        report.add(f"first audio, {name}", ours=beside, upstream=alone, unit="ms", more=False)


async def _turn(address: Address, running: psutil.Process, slow: int) -> list[float]:
    readers = [await _ask(address, input=ENDLESS) for _ in range(slow)]
    stop = asyncio.Event()
    reading = asyncio.create_task(_read_slowly(readers, stop))
    await _settle(running)
    times = await asyncio.gather(*(_listen(address) for _ in range(TOGETHER)))
    stop.set()
    await reading
    for reader in readers:
        reader.close()
    return [time for each in times for time in each]


async def _settle(running: psutil.Process) -> None:
    busy = 1.0
    while busy > SETTLED:
        before = sum(running.cpu_times()[:2])
        await asyncio.sleep(1.0)
        busy = sum(running.cpu_times()[:2]) - before


async def _listen(address: Address) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        connection = await _ask(address)
        loop, first = asyncio.get_running_loop(), b""
        while b"\r\n\r\n" not in first or first.endswith(b"\r\n\r\n"):
            first += await loop.sock_recv(connection, 1 << 16)
        times.append(1000 * (time.perf_counter() - began))
        while await loop.sock_recv(connection, 1 << 16):
            pass
        connection.close()
    return times


async def _read_slowly(readers: Sequence[socket.socket], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        for reader in readers:
            await loop.sock_recv(reader, 1)
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except asyncio.TimeoutError:
            continue


async def _ask(address: Address, **fields: Any) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, address)
    body = json.dumps({"input": "Hello there.", "response_format": "pcm", **fields}).encode()
    lines = ("POST /v1/audio/speech HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}")
    await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def measure_memory(report: Report, address: Address, running: psutil.Process) -> None:
    """Megabytes of the gateway after more and more requests; the first step warms up."""
    first = 0.0
    for step in range(1, STEPS + 1):
        asyncio.run(_requests(address, REQUESTS // STEPS))
        megabytes = running.memory_info().rss / 1e6
        first = first or megabytes
        case = f"memory after {step * REQUESTS // STEPS:,} requests"
        report.add(case, ours=megabytes, upstream=first, unit="MB", more=False)
        say(f"gateway: {case}: {megabytes:.1f} MB")


async def _requests(address: Address, count: int) -> None:
    async def some(number: int) -> None:
        for turn in range(number):
            connection = await _ask(address, stream=turn % 2 == 0)
            while await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
                pass
            connection.close()

    await asyncio.gather(*(some(count // TOGETHER) for _ in range(TOGETHER)))


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Memory by requests."""
    memory = [row["ours"] for row in rows if row["unit"] == "MB"]
    axes.plot([(step + 1) * REQUESTS // STEPS for step in range(len(memory))], memory, marker="o")
    axes.set_ylim(0)
    axes.set_xlabel("requests")
    axes.set_ylabel("MB")
