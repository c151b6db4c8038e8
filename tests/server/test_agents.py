"""Agents on a real server: text in pieces by the gateway's sockets and the client, interruptions, many contexts."""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chatterbox_client import AsyncClient, Client
from chatterbox_engine.launcher.server import TritonServer
from tests.server.cancelled import requests_cancelled
from tests.server.front import Front

pytestmark = pytest.mark.server

TEXT = "Good evening, Dr. Smith. It is 3.5 degrees. "
SENTENCES = ("Good evening, Dr. Smith.", "It is 3.5 degrees.")
PAUSE = bytes(2 * 7_200)
QUERY = "output_format=pcm_24000&seed=7&model_id=eleven_turbo_v2_5"
MULTI = f"/v1/text-to-speech/default/multi-stream-input?{QUERY}"
READ_AS = {"text_normalization": "plain", "markup": "none", "first_chunk_tokens": 13}
"""How the gateway asks for a sentence of a socket."""


def alone(server: TritonServer, sentences: Sequence[str]) -> bytes:
    """The sentences spoken one by one, with the silence between them."""
    with Client(server.grpc_url, "grpc", timeout=120) as client:
        spoken = [
            b"".join(chunk.to_bytes() for chunk in client.stream(sentence, seed=7, **READ_AS)) for sentence in sentences
        ]
    return PAUSE.join(spoken)


async def contexts(socket: aiohttp.ClientWebSocketResponse, until: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The messages of each context, until these have ended."""
    found: dict[str, list[dict[str, Any]]] = {}
    while until:
        message = await socket.receive_json(timeout=120)
        assert "error" not in message, message
        found.setdefault(message["contextId"], []).append(message)
        if message["isFinal"]:
            until.discard(message["contextId"])
    return found


def audio(messages: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(message["audio"]) for message in messages if message["audio"])


async def say(socket: aiohttp.ClientWebSocketResponse, name: str, text: str) -> None:
    """A text word by word, its end, and the end of its context."""
    for word in text.split():
        await socket.send_json({"text": f"{word} ", "context_id": name})
    await socket.send_json({"flush": True, "context_id": name})
    await socket.send_json({"close_context": True, "context_id": name})


def test_a_turn_is_the_audio_of_its_sentences_spoken_one_by_one(server: TritonServer, front: Front) -> None:
    async def main() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(f"http://{front.address}") as session, session.ws_connect(MULTI) as socket:
            await say(socket, "turn", TEXT)
            return (await contexts(socket, {"turn"}))["turn"]

    messages = asyncio.run(main())
    expected = alone(server, SENTENCES)
    assert audio(messages) == expected
    final = messages[-1]
    assert final["sent_seconds"] == pytest.approx(len(expected) / 48_000, abs=0.001)
    assert [word["word"] for word in final["words"]] == TEXT.split()
    times = [time for word in final["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert times[-1] <= final["sent_seconds"] + 0.001


def test_the_client_speaks_pieces_as_their_sentences(server: TritonServer) -> None:
    expected = alone(server, SENTENCES)
    pieces = [TEXT[start : start + 5] for start in range(0, len(TEXT), 5)]
    with Client(server.grpc_url, "grpc", timeout=120) as client:
        assert b"".join(chunk.to_bytes() for chunk in client.stream(pieces, seed=7, **READ_AS)) == expected

    async def main() -> bytes:
        async with AsyncClient(server.grpc_url, "grpc", timeout=120) as client:
            return b"".join([chunk.to_bytes() async for chunk in client.stream(pieces, seed=7, **READ_AS)])

    assert asyncio.run(main()) == expected


def test_an_interruption_frees_the_slots_of_both_sentences(server: TritonServer, front: Front) -> None:
    async def main() -> dict[str, Any]:
        async with aiohttp.ClientSession(f"http://{front.address}") as session, session.ws_connect(MULTI) as socket:
            await socket.send_json({"text": TEXT * 20, "context_id": "turn"})
            await socket.receive_json(timeout=120)
            await socket.send_json({"close_context": True, "context_id": "turn"})
            return (await contexts(socket, {"turn"}))["turn"][-1]

    with requests_cancelled(server, 1, 2):
        final = asyncio.run(main())
    assert final["interrupted"]
    assert 0 < final["sent_seconds"] < 60


def test_a_connection_that_is_dropped_frees_the_slots(server: TritonServer, front: Front) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(f"http://{front.address}") as session:
            socket = await session.ws_connect(MULTI)
            for name in ("a", "b"):
                await socket.send_json({"text": TEXT * 20, "context_id": name})
            await socket.receive_json(timeout=120)

    with requests_cancelled(server, 1, 4):
        asyncio.run(main())


def test_the_classic_socket(server: TritonServer, front: Front) -> None:
    async def main() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(f"http://{front.address}") as session:
            socket = await session.ws_connect("/ws/generate")
            body = {"type": "generate", "text": TEXT, "seed": 7, "max_seconds": 2.0, "stream_mode": "chunk"}
            await socket.send_json({**body, "emotion": "happy"})
            messages = [await socket.receive_json(timeout=120)]
            while messages[-1]["type"] == "audio_chunk":
                messages.append(await socket.receive_json(timeout=120))
            await socket.close()
            return messages

    *chunks, last = asyncio.run(main())
    assert last["type"] == "complete", last
    assert [chunk["index"] for chunk in chunks] == list(range(last["chunks"]))
    assert {chunk["sentence_index"] for chunk in chunks} == {0, 1}
    spoken = sum(len(base64.b64decode(chunk["audio"])) for chunk in chunks) / 48_000
    assert spoken == pytest.approx(last["audio_duration"], abs=0.001)


EXECUTOR_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""That asyncio's executor has at most; it starts them one by one, as they are needed."""


@dataclass(frozen=True)
class Held:
    """What the gateway's process holds."""

    threads: int
    files: int

    @classmethod
    def by(cls, front: Front) -> Held:
        folder = Path(f"/proc/{front.pid}")
        return cls(len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir())))


class Crowd:
    """Sockets that open and close contexts at random; some drop their connection."""

    def __init__(self, front: Front, expected: bytes, draw: random.Random) -> None:
        self._front = front
        self._expected = expected
        self._draw = draw
        self.spoken = self.interrupted = self.dropped = 0

    async def run(self, sockets: int, each: int) -> None:
        drops = [number < sockets // 5 for number in range(sockets)]
        self._draw.shuffle(drops)
        await asyncio.gather(*(self._socket(each, drop) for drop in drops))

    async def _socket(self, count: int, drop: bool) -> None:
        async with aiohttp.ClientSession(f"http://{self._front.address}") as session:
            socket = await session.ws_connect(MULTI)
            for number in range(count - drop):
                await self._context(socket, f"context-{number}")
            if drop:
                await socket.send_json({"text": TEXT, "context_id": "last", "flush": True})
                await asyncio.sleep(self._draw.uniform(0, 0.3))
                assert session.connector is not None
                await session.connector.close()  # without a closing handshake
                self.dropped += 1
            else:
                await socket.close()

    async def _context(self, socket: aiohttp.ClientWebSocketResponse, name: str) -> None:
        if self._draw.random() < 0.1:
            await say(socket, name, TEXT)
            messages = (await contexts(socket, {name}))[name]
            assert audio(messages) == self._expected
            self.spoken += 1
            return
        await socket.send_json({"text": TEXT, "context_id": name})
        await asyncio.sleep(self._draw.uniform(0, 0.3))
        await socket.send_json({"close_context": True, "context_id": name})
        messages = (await contexts(socket, {name}))[name]
        assert messages[-1]["interrupted"]
        assert self._expected.startswith(audio(messages))
        self.interrupted += 1


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_500_contexts_over_50_sockets_leak_nothing_and_do_not_affect_each_other(
    server: TritonServer, front: Front
) -> None:
    expected, draw = alone(server, SENTENCES), random.Random(5)
    warm, crowd = Crowd(front, expected, draw), Crowd(front, expected, draw)
    asyncio.run(warm.run(50, 2))
    with requests_cancelled(server, 0, 0):
        pass
    held = Held.by(front)
    with requests_cancelled(server, 1, 1_000):
        asyncio.run(crowd.run(50, 10))
    assert crowd.spoken + crowd.interrupted + crowd.dropped == 500
    assert crowd.dropped == 10
    after = Held.by(front)
    assert after.files <= held.files
    assert after.threads <= held.threads + EXECUTOR_THREADS
