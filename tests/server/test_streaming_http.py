"""Streams of the real client over HTTP, through Triton's `generate_stream`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from chatterbox_client import AsyncClient, Chunk, Client, InvalidRequest, NotFound, Timeout, concatenate
from chatterbox_engine.launcher.server import TritonServer
from tests.clips import encoded, tone
from tests.server.cancelled import LONG, requests_cancelled

pytestmark = pytest.mark.server

GREETING = "Hello there, how are you today?"
both = pytest.mark.parametrize("kind", [Client, AsyncClient])


def stream(kind: Any, server: TritonServer, *args: Any, chunks: int = 99, timeout: float = 120, **options: Any) -> Any:
    """The first chunks of a stream of a fresh client of either kind."""
    taken: list[Chunk] = []
    if kind is Client:
        with Client(server.http_url, timeout=timeout) as client:
            for chunk in client.stream(*args, **options):
                taken.append(chunk)
                if len(taken) == chunks:
                    break
        return taken

    async def listen() -> None:
        async with (
            AsyncClient(server.http_url, timeout=timeout) as client,
            contextlib.aclosing(client.stream(*args, **options)) as answers,
        ):
            async for chunk in answers:
                taken.append(chunk)
                if len(taken) == chunks:
                    break

    asyncio.run(listen())
    return taken


@both
def test_a_stream_over_http_is_that_over_grpc(server: TritonServer, kind: Any) -> None:
    options: dict[str, Any] = {"seed": 7, "temperature": 0.3, "reference_audio": encoded(tone(1.0)), "max_seconds": 2.0}
    with Client(server.grpc_url, "grpc", timeout=120) as client:
        expected = list(client.stream(GREETING, **options))
    found = stream(kind, server, GREETING, **options)
    assert [chunk.index for chunk in found] == [chunk.index for chunk in expected]
    one, other = concatenate(found), concatenate(expected)
    np.testing.assert_array_equal(one.speech_tokens, other.speech_tokens)
    np.testing.assert_allclose(one.samples, other.samples, atol=1e-4)
    assert one.seed == 7


@both
def test_errors_are_typed(server: TritonServer, kind: Any) -> None:
    with pytest.raises(NotFound, match="there is no voice 'nobody'"):
        stream(kind, server, GREETING, voice="nobody")
    with pytest.raises(InvalidRequest, match="temperature is 9"):
        stream(kind, server, GREETING, temperature=9.0)
    with requests_cancelled(server, 1, 1), pytest.raises(Timeout, match="no answer within"):
        stream(kind, server, LONG * 5, max_seconds=40.0, timeout=0.5)


@both
def test_leaving_the_loop_cancels_the_request(server: TritonServer, kind: Any) -> None:
    with requests_cancelled(server, 1, 1):
        assert len(stream(kind, server, LONG * 5, max_seconds=40.0, chunks=1)) == 1
