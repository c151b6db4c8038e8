"""`/ws/generate`: a text in, its audio in messages."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
import soundfile

from chatterbox_client import NotFound
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.socket_fakes import PAUSE, SECONDS, Client, Reciter, connected, recited, running

PATH = "/ws/generate"
TEXT = "One is here. Two is too. "


async def until(client: Client, *types: str) -> list[dict[str, Any]]:
    messages = [await client.receive()]
    while messages[-1].get("type") not in types and "closed" not in messages[-1]:
        messages.append(await client.receive())
    return messages


def test_a_sentence_is_a_file() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, PATH) as client:
            await client.send(type="generate", text=TEXT, emotion="happy", stream_mode="sentence", voice="anna", seed=3)
            *chunks, last = await until(client, "complete", "error")
            assert [chunk["type"] for chunk in chunks] == ["audio_chunk", "audio_chunk"]
            assert [(chunk["index"], chunk["sentence_index"]) for chunk in chunks] == [(0, 0), (1, 1)]
            assert [chunk["text"] for chunk in chunks] == ["One is here.", "Two is too."]
            files = [soundfile.read(io.BytesIO(base64.b64decode(it["audio"])), dtype="int16") for it in chunks]
            assert [rate for _, rate in files] == [24_000, 24_000]
            spoken = [recited("One is here."), PAUSE + recited("Two is too.")]
            assert [samples.tobytes() for samples, _ in files] == spoken
            assert all(chunk["generation_time"] >= 0 and chunk["format"] == "wav" for chunk in chunks)
            assert (last["type"], last["chunks"]) == ("complete", 2)
            assert last["audio_duration"] == pytest.approx(2 * SECONDS + 0.3)
            values = [{name: tensor.item() for name, tensor in tensors.items()} for tensors in transport.requests]
            assert {(it["preset"], it["voice"], it["seed"]) for it in values} == {(b"happy", b"anna", 3)}

    asyncio.run(main())


def test_chunks_are_one_stream_of_samples() -> None:
    async def main() -> None:
        async with running(Reciter()) as (_, session), connected(session, PATH) as client:
            for options, divisor in (({}, 1), ({"speed": 2.0}, 2)):
                await client.send(type="generate", text=TEXT, stream_mode="chunk", **options)
                *chunks, last = await until(client, "complete", "error")
                audio = b"".join(base64.b64decode(chunk["audio"]) for chunk in chunks)
                whole = recited("One is here.") + PAUSE + recited("Two is too.")
                assert {chunk["format"] for chunk in chunks} == {"pcm"}
                assert [chunk["index"] for chunk in chunks] == list(range(len(chunks)))
                assert len(audio) == len(whole) // divisor
                assert divisor == 2 or audio == whole
                assert last["audio_duration"] == pytest.approx((2 * SECONDS + 0.3) / divisor, abs=0.001)

    asyncio.run(main())


def test_texts_are_spoken_one_after_the_other_and_stop_ends_them() -> None:
    async def main() -> None:
        transport = Reciter("Long text.")
        async with running(transport) as (_, session), connected(session, PATH) as client:
            await client.send(type="ping")
            assert await client.receive() == {"type": "pong"}
            await client.send(type="generate", text="First.")
            await client.send(type="generate", text="Long text.", stream_mode="chunk")
            await client.send(type="generate", text="Never spoken.")
            await until(client, "complete")
            assert (await client.receive())["sentence_index"] == 0
            await client.send(type="stop")
            stopped = await client.receive()
            assert (stopped["type"], stopped["sent_seconds"]) == ("stopped", pytest.approx(0.04))
            await transport.until()
            assert transport.cancelled == ["Long text."]
            await client.send(type="generate", text="Again.")
            await until(client, "complete")
            assert transport.spoken == ["First.", "Long text.", "Again."]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"text": "Hello."}, "type: field required"),
        ({"type": "sing", "text": "Hello."}, "type: input should be 'generate', not 'sing'"),
        ({"type": "generate"}, "text: field required"),
        ({"type": "generate", "text": "Hello.", "stream_mode": "word"}, "stream_mode: input should be 'sentence' or"),
        ({"type": "generate", "text": "x" * 40_001}, "at most 40,000 characters may wait to be spoken"),
    ],
)
def test_what_is_wrong_is_told_and_the_socket_stays(message: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with running(Reciter()) as (_, session), connected(session, PATH) as client:
            await client.socket.send_str("not JSON")
            assert "the message is not JSON" in (await client.receive())["reason"]
            await client.send(**message)
            error = await client.receive()
            assert error["type"] == "error"
            assert reason in error["reason"]
            await client.send(type="generate", text="Hello.")
            assert (await until(client, "complete"))[-1]["chunks"] == 1

    asyncio.run(main())


def test_the_servers_words_are_passed_on() -> None:
    async def main() -> None:
        failing = FakeAsyncTransport(NotFound("there is no voice 'anna'"))
        async with running(failing) as (_, session), connected(session, PATH) as client:
            await client.send(type="generate", text="Hello.", voice="anna")
            error = await client.receive()
            assert (error["type"], error["reason"], error["status"]) == ("error", "there is no voice 'anna'", 404)

    asyncio.run(main())


def test_a_key_may_come_with_the_first_message() -> None:
    async def main() -> None:
        async with running(Reciter(), keys=("anna:secret",)) as (_, session):
            async with connected(session, PATH) as client:
                await client.send(type="generate", text="Hello.", api_key="secret")
                assert (await until(client, "complete"))[-1]["chunks"] == 1
            async with connected(session, PATH) as client:
                await client.send(type="generate", text="Hello.", api_key="wrong")
                assert (await client.receive())["reason"] == "the API key is missing or wrong"
                assert await client.receive() == {"closed": 1008}

    asyncio.run(main())


def test_a_shutdown_lets_a_text_end() -> None:
    async def main() -> None:
        transport = Reciter("One.")
        async with running(transport) as (gateway, session), connected(session, PATH) as client:
            await client.send(type="generate", text="One.", stream_mode="chunk")
            await client.receive()
            draining = asyncio.create_task(gateway.drain.run(60, asyncio.Event()))
            await asyncio.sleep(0)
            await client.send(type="generate", text="Two.")
            assert (await client.receive())["reason"] == "the server is shutting down"
            transport.gates["One."].set()
            assert (await until(client, "complete"))[-1]["type"] == "complete"
            assert await client.receive() == {"closed": 1012}
            await draining

    asyncio.run(main())
