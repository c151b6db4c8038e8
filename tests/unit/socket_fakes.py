"""Stand-ins for the tests of the gateway's sockets: a server that recites, and a gateway in the test's event loop."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np

from chatterbox_client import InvalidRequest
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_gateway.app import Gateway
from chatterbox_gateway.server import Server, listen
from tests.unit.client_fakes import FakeAsyncTransport, spoken_chunks
from tests.unit.gateway_fakes import WithVoices, gateway_of

SECONDS = 0.12
"""Of each sentence: three chunks of 40 ms."""

PAUSE = bytes(2 * 7_200)
"""Silence after a sentence: 0.3 s."""

MULTI = "/v1/text-to-speech/anna/multi-stream-input?output_format=pcm_24000"
SINGLE = "/v1/text-to-speech/anna/stream-input?output_format=pcm_24000"


def recited(text: str) -> bytes:
    """The samples that the server speaks for a text: a level that is the text's own."""
    level = (sum(text.encode()) % 100 + 1) / 200
    return (np.full(int(SECONDS * 24_000), level, np.float32) * 32_767).round().astype("<i2").tobytes()


class Reciter(WithVoices):
    """Speaks each text as `recited`, without word times. A text of `held` waits after its first chunk until its gate
    is opened."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.gates = {text: asyncio.Event() for text in held}
        self.spoken: list[str] = []
        self.requests: list[Tensors] = []
        self.cancelled: list[str] = []
        self.under_way: set[str] = set()
        self.changed = asyncio.Event()

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        if "word_times" in tensors:
            raise InvalidRequest("word_times: unknown")
        text = tensors["text"].item().decode()
        self.requests.append(tensors)
        self.spoken.append(text)
        self.under_way.add(text)
        self.changed.set()
        try:
            if not any(char.isalnum() for char in text):
                raise InvalidRequest("text has nothing to speak: it holds no letter and no digit")
            samples = np.frombuffer(recited(text), "<i2").astype(np.float32) / 32_767
            for number, chunk in enumerate(spoken_chunks()):
                if number == 1 and text in self.gates:
                    await self.gates[text].wait()
                yield {**chunk, "audio": samples[None, number * 960 : (number + 1) * 960]}
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(text)
            raise
        finally:
            self.under_way.discard(text)
            self.changed.set()

    async def until(self, *under_way: str) -> None:
        """Waits until exactly these texts are spoken."""
        while self.under_way != set(under_way):
            self.changed.clear()
            await self.changed.wait()


class Client:
    """A client of a socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, **message: Any) -> None:
        await self.socket.send_json(message)

    async def receive(self) -> dict[str, Any]:
        """The next message; a close is told as its code."""
        received = await asyncio.wait_for(self.socket.receive(), 20)
        if received.type == aiohttp.WSMsgType.TEXT:
            message: dict[str, Any] = received.json()
            return message
        return {"closed": self.socket.close_code}

    async def until_final(self) -> tuple[bytes, list[dict[str, Any]]]:
        """The audio up to the last message of a context, and all messages."""
        messages = []
        while not messages or not (messages[-1].get("isFinal") or "closed" in messages[-1]):
            messages.append(await self.receive())
        audio = [base64.b64decode(message["audio"]) for message in messages if message.get("audio")]
        return b"".join(audio), messages


@asynccontextmanager
async def running(
    transport: FakeAsyncTransport, timeout: float = 10.0, **settings: Any
) -> AsyncIterator[tuple[Gateway, aiohttp.ClientSession]]:
    """A gateway on a free port, in this event loop, and clients of it."""
    gateway = gateway_of(transport, timeout=timeout, **settings)
    with listen("127.0.0.1", 0) as listening:
        server = Server(gateway, grace_seconds=0)
        serving = asyncio.create_task(server._serve([listening]))  # without its signals, which are the process's
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with aiohttp.ClientSession(url) as session:
                yield gateway, session
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def connected(session: aiohttp.ClientSession, path: str = MULTI, **options: Any) -> AsyncIterator[Client]:
    async with session.ws_connect(path, **options) as socket:
        yield Client(socket)


async def refused(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """An error and what follows it."""
    return await client.receive(), await client.receive()
