"""The front that is told to end: nobody new, and those under way finish or are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from chatterbox_client import Audio
from chatterbox_client.request import Tensors
from chatterbox_gateway.server import SpeechApi
from tests.unit.client_fakes import SAMPLES, STATS, TOKENS, FakeAsyncTransport, spoken_chunks

PCM = Audio(SAMPLES, 24_000, TOKENS, STATS).to_bytes("s16")
CUT_OFF = "the server is shutting down: the request did not finish in the time that was left for it"
LONG = 60.0


class Gated(FakeAsyncTransport):
    """Speaks no further than the first chunk before the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def infer(self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None) -> Tensors:
        self.asked.set()
        await self.gate.wait()
        return await super().infer(model, tensors, outputs, timeout)

    async def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[Tensors, None]:
        first, *rest = spoken_chunks()
        yield first
        await self.gate.wait()
        for chunk in rest:
            yield chunk


class Front:
    """A front and a client of it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, transport: Gated, api: SpeechApi) -> None:
        self.transport, self.api = transport, api
        self._url, self._session = url, session

    async def speak(self, **options: Any) -> aiohttp.ClientResponse:
        body = {"input": "Hello.", "response_format": "pcm", **options}
        return await self._session.post(f"{self._url}/v1/audio/speech", json=body)

    async def health(self) -> int:
        async with self._session.get(f"{self._url}/health") as answer:
            return answer.status

    def drain(self, seconds: float, hurry: asyncio.Event | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.api.drain.run(seconds, hurry or asyncio.Event()))


@asynccontextmanager
async def front() -> AsyncIterator[Front]:
    transport = Gated()
    api = SpeechApi(transport, ["chatterbox"], timeout=LONG)
    runner = web.AppRunner(api.application(), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session:
            yield Front(f"http://{host}:{port}", session, transport, api)
    finally:
        await runner.cleanup()


def test_those_under_way_finish_while_nobody_new_is_taken() -> None:
    async def main() -> None:
        async with front() as it:
            stream = await it.speak()
            first = await stream.content.readany()
            whole = asyncio.create_task(it.speak(stream=False))
            await it.transport.asked.wait()
            draining = it.drain(LONG)
            await asyncio.sleep(0)
            refused = await it.speak()
            assert refused.status == 503
            assert (await refused.json())["error"]["message"] == "the server is shutting down"
            assert await it.health() == 503
            assert not draining.done()
            it.transport.gate.set()
            assert first + await stream.read() == PCM
            assert await (await whole).read() == PCM
            await draining

    asyncio.run(main())


@pytest.mark.parametrize("second_signal", [False, True])
def test_those_that_take_too_long_are_told(second_signal: bool) -> None:
    async def main() -> None:
        async with front() as it:
            events = await it.speak(stream_format="sse")
            await events.content.readany()
            audio = await it.speak()
            await audio.content.readany()
            whole = asyncio.create_task(it.speak(stream=False))
            await it.transport.asked.wait()
            hurry = asyncio.Event()
            draining = it.drain(LONG if second_signal else 0.0, hurry)
            if second_signal:
                hurry.set()
            await draining
            (event,) = (line for line in (await events.read()).decode().splitlines() if line)
            assert json.loads(event.removeprefix("data: "))["error"]["message"] == CUT_OFF
            with pytest.raises(aiohttp.ClientError):
                await audio.read()
            refused = await whole
            assert (refused.status, (await refused.json())["error"]["message"]) == (503, CUT_OFF)

    asyncio.run(main())
