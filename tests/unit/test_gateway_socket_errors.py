"""Bad messages to ElevenLabs' sockets get the protocol's errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatterbox_client import NotFound
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.socket_fakes import MULTI, SINGLE, Reciter, connected, recited, refused, running


@pytest.mark.parametrize("path", [SINGLE, MULTI])
@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("not JSON", "the message is not JSON"),
        ("[1]", "the message is not a JSON object"),
        ('{"text": 3}', "text: input should be a valid string, not 3"),
        ('{"text": " ", "voice_settings": {"stability": 2}}', "stability: input should be less than or equal to 1"),
    ],
)
def test_bad_messages_end_the_socket_with_an_error(path: str, message: str, words: str) -> None:
    async def main() -> None:
        async with running(Reciter()) as (_, session), connected(session, path) as client:
            await client.socket.send_str(message)
            error, end = await refused(client)
            assert (error["error"], error["code"]) == ("invalid_input_message", 1008)
            assert words in error["message"]
            assert end == {"closed": 1008}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("output_format=wma_1", "invalid_output_format", "output_format is 'wma_1'; it must be mp3_RATE_KBPS"),
        ("output_format=pcm_7", "invalid_output_format", "its rate must be from 8000 to 48000"),
        ("output_format=mp3_44000_32", "invalid_output_format", "sample_rate is 44000; mp3 has 8000"),
        ("output_format=mp3_44100_999", "invalid_output_format", "its bit rate must be from 16 to 256"),
        ("model_id=gpt", "model_not_found", "there is no model 'gpt'"),
        ("inactivity_timeout=soon", "invalid_parameters", "inactivity_timeout: input should be a valid number"),
    ],
)
def test_a_query_that_cannot_be_served_is_told(query: str, error: str, words: str) -> None:
    async def main() -> None:
        path = f"/v1/text-to-speech/anna/multi-stream-input?{query}"
        async with running(Reciter()) as (_, session), connected(session, path) as client:
            told, end = await refused(client)
            assert told["error"] == error
            assert words in told["message"]
            assert end == {"closed": 1008}

    asyncio.run(main())


@pytest.mark.parametrize("message", [{"flush": True}, {"close_context": True}])
def test_an_unknown_context_is_an_error_that_leaves_the_others(message: dict[str, Any]) -> None:
    async def main() -> None:
        async with running(Reciter()) as (_, session), connected(session) as client:
            await client.send(context_id="x", **message)
            error = await client.receive()
            assert (error["error"], error["contextId"]) == ("context_not_found", "x")
            await client.send(text="", context_id="x")  # a keep-alive
            await client.send(text="One. ", flush=True, context_id="a")
            assert (await client.receive())["audio"]

    asyncio.run(main())


def test_text_after_the_end_is_an_error_and_is_not_spoken() -> None:
    async def main() -> None:
        for path, names in ((MULTI, {"context_id": "a"}), (SINGLE, {})):
            transport = Reciter("One.")
            async with running(transport) as (_, session), connected(session, path) as client:
                await client.send(text="One.", **names)
                await client.send(flush=True, **names)
                await client.send(**({"close_context": True, **names} if names else {"text": ""}))
                assert (await client.receive())["audio"]
                await client.send(text="Two.", **names)
                error = await client.receive()
                assert (error["error"], error["code"]) == ("context_closed", 1008)
                transport.gates["One."].set()
                await client.until_final()
                assert transport.spoken == ["One."]

    asyncio.run(main())


@pytest.mark.parametrize("path", [SINGLE, MULTI])
def test_too_much_text_is_an_error(path: str) -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, path) as client:
            await client.send(text="word " * 200_000, context_id="a")
            error = await client.receive()
            assert (error["error"], error["code"]) == ("text_too_long", 1008)
            assert "at most 40,000 characters of a context may wait" in error["message"]
            assert transport.spoken == []

    asyncio.run(main())


def test_an_error_of_the_server_ends_its_context() -> None:
    async def main() -> None:
        failing = FakeAsyncTransport(NotFound("there is no voice 'anna'"))
        async with running(failing) as (_, session):
            async with connected(session) as client:
                await client.send(text="One. ", flush=True, context_id="a")
                error, final = await refused(client)
                assert (error["error"], error["contextId"]) == ("not_found", "a")
                assert error["message"] == "there is no voice 'anna'"
                assert final["isFinal"]
            async with connected(session, SINGLE) as client:
                await client.send(text="One. ", flush=True)
                error, end = await refused(client)
                assert (error["error"], end) == ("not_found", {"closed": 1008})

    asyncio.run(main())


def test_a_socket_without_messages_is_closed_and_a_silent_context_ends() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session):
            for path in (SINGLE, MULTI):
                async with connected(session, f"{path}&inactivity_timeout=0.05") as client:
                    error, end = await refused(client)
                    assert (error["error"], end) == ("input_timeout_exceeded", {"closed": 1008})
            async with connected(session, f"{MULTI}&inactivity_timeout=0.05") as client:
                await client.send(text="One", context_id="a")
                audio, _ = await client.until_final()
                assert audio == recited("One")

    asyncio.run(main())
