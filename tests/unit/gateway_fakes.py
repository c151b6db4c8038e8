"""Stand-ins for the gateway's tests: transports that answer at once, and a gateway run as the command runs it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from chatterbox_client import Audio, NotFound, ServerError
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_client.transports import AsyncTransport
from chatterbox_gateway.app import Gateway, create
from chatterbox_gateway.server import Server, listen
from chatterbox_gateway.settings import Settings
from tests.unit.client_fakes import SAMPLES, STATS, TOKENS, FakeAsyncTransport, spoken_chunks

PCM = Audio(SAMPLES, 24_000, TOKENS, STATS).to_bytes("s16")
SPEECH: dict[str, Any] = {"model": "tts-1", "input": "Hello.", "voice": "anna", "response_format": "pcm"}
MODELS = ("chatterbox", "turbo")


class WithVoices(FakeAsyncTransport):
    """Knows the voices that it is given; without any it is a server that left that model out."""

    def __init__(self, *voices: str) -> None:
        super().__init__()
        self.voices = voices
        self.changes: list[tuple[str, str, bytes]] = []

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        if model != "chatterbox_voices":
            return await super().infer(model, tensors, outputs, timeout, context)
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
    """A stream that ends with an error after its first chunk."""

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        async for answer in super().stream(model, tensors, outputs, timeout, context):
            yield answer
            raise ServerError("the engine has ended")


class Endless(FakeAsyncTransport):
    """A stream that has a second of noise whenever it is asked for more. `idle`: nobody has asked for 0.3 s."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.ended = threading.Event(), threading.Event()

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
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
def serving(make: Callable[[], AsyncTransport], timeout: float = 10.0, **settings: Any) -> Iterator[str]:
    """The base URL of a gateway, run as the command runs it, in a thread of its own."""
    with listen("127.0.0.1", 0) as listening:
        gateway = create(make(), Settings(models=MODELS, timeout=timeout, **settings))
        server = Server(gateway, grace_seconds=0)
        thread = threading.Thread(target=asyncio.run, args=[server.serve([listening])])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def gateway_of(transport: AsyncTransport, **settings: Any) -> Gateway:
    """A gateway without a socket."""
    return create(transport, Settings(**{"models": MODELS, "timeout": 10.0, **settings}))


def client_within(gateway: Gateway) -> httpx.AsyncClient:
    """A client of it. Its responses are complete when they are returned."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway.asgi), base_url="http://localhost")


def call(gateway: Gateway, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, answered."""

    async def run() -> httpx.Response:
        async with client_within(gateway) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def connected(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has asked for speech as an old proxy does: the end of the body is a hang-up."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    content = json.dumps(body).encode()
    head = f"POST /v1/audio/speech HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def asked(transport: FakeAsyncTransport) -> tuple[str, dict[str, Any]]:
    """The one request that reached it: model and values, without the gateway's own way to read texts."""
    [(model, tensors, _, _)] = transport.sync.calls
    values = {name: tensor.item() for name, tensor in tensors.items()}
    assert (values.pop("text_normalization"), values.pop("markup")) == (b"plain", b"auto_rate")
    return model, values
