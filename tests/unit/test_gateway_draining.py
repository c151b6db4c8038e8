"""Shutdown of the gateway: new requests are refused, those in progress finish or get an error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_gateway.app import Gateway
from chatterbox_gateway.server import Server, listen
from tests.unit.client_fakes import FakeAsyncTransport, spoken_chunks
from tests.unit.gateway_fakes import PCM, SPEECH, gateway_of

CUT_OFF = "the server is shutting down: the request did not finish in the time that was left for it"
LONG = 60.0


class Gated(FakeAsyncTransport):
    """Speaks no further than the first chunk before the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        self.asked.set()
        await self.gate.wait()
        return await super().infer(model, tensors, outputs, timeout, context)

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        first, *rest = spoken_chunks()
        yield first
        await self.gate.wait()
        for chunk in rest:
            yield chunk


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Gated, Gateway, httpx.AsyncClient]]:
    """A gateway on a free port, in this event loop."""
    transport = Gated()
    gateway = gateway_of(transport, timeout=LONG)
    with listen("127.0.0.1", 0) as listening:
        server = Server(gateway, grace_seconds=0)
        serving = asyncio.create_task(server._serve([listening]))  # without its signals, which are the process's
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, timeout=LONG) as client:
                yield transport, gateway, client
        finally:
            server.should_exit = True
            await serving


def drain(gateway: Gateway, seconds: float, hurry: asyncio.Event | None = None) -> asyncio.Task[None]:
    return asyncio.create_task(gateway.drain.run(seconds, hurry or asyncio.Event()))


async def begin(client: httpx.AsyncClient, **fields: Any) -> tuple[httpx.Response, AsyncIterator[bytes], bytes]:
    """A stream, the rest of it, and its first piece."""
    request = client.build_request("POST", "/v1/audio/speech", json={**SPEECH, **fields})
    answer = await client.send(request, stream=True)
    pieces = answer.aiter_raw()
    return answer, pieces, await anext(pieces)


def test_requests_in_progress_finish_and_new_ones_are_refused() -> None:
    async def main() -> None:
        async with running() as (transport, gateway, client):
            _, pieces, first = await begin(client)
            whole = asyncio.create_task(client.post("/v1/audio/speech", json={**SPEECH, "stream": False}))
            await transport.asked.wait()
            draining = drain(gateway, LONG)
            await asyncio.sleep(0)
            refused = await client.post("/v1/audio/speech", json=SPEECH)
            assert refused.status_code == 503
            assert refused.json()["error"]["message"] == "the server is shutting down"
            assert (await client.get("/health")).status_code == 503
            assert (await client.get("/metrics")).status_code == 200
            assert not draining.done()
            transport.gate.set()
            assert first + b"".join([piece async for piece in pieces]) == PCM
            assert (await whole).content == PCM
            await draining

    asyncio.run(main())


@pytest.mark.parametrize("second_signal", [False, True])
def test_requests_that_take_too_long_get_an_error(second_signal: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with running() as (transport, gateway, client):
            _, events, _ = await begin(client, stream_format="sse")
            _, audio, _ = await begin(client)
            whole = asyncio.create_task(client.post("/v1/audio/speech", json={**SPEECH, "stream": False}))
            await transport.asked.wait()
            hurry = asyncio.Event()
            draining = drain(gateway, LONG if second_signal else 0.0, hurry)
            if second_signal:
                hurry.set()
            await draining
            text = b"".join([piece async for piece in events]).decode()
            (event,) = (line for line in text.splitlines() if line)
            assert json.loads(event.removeprefix("data: "))["error"]["message"] == CUT_OFF
            with pytest.raises(httpx.TransportError):
                await anext(audio)
            refused = await whole
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, CUT_OFF)

    asyncio.run(main())
    ended = [vars(record)["fields"] for record in caplog.records if record.name == "chatterbox.gateway"]
    assert sorted((fields["status"], fields["outcome"]) for fields in ended) == [
        (200, "broken"),
        (200, "broken"),
        (503, "refused"),
    ]
