"""Disconnects, keys, limits, origins and shutdowns of sockets."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest

from chatterbox_gateway.keys import Limits
from tests.unit.gateway_fakes import Endless
from tests.unit.socket_fakes import MULTI, PAUSE, Reciter, connected, recited, refused, running


def test_a_client_that_disconnects_cancels_its_contexts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        transport = Reciter("One.", "Two.")
        async with running(transport) as (_, session):
            async with connected(session) as client:
                await client.send(text="One. ", flush=True, context_id="a")
                await client.send(text="Two. ", flush=True, context_id="b")
                await client.receive()
                await client.receive()
            await transport.until()
            assert sorted(transport.cancelled) == ["One.", "Two."]

    asyncio.run(main())
    lines = [vars(record)["fields"] for record in caplog.records if record.name == "chatterbox.gateway"]
    assert {line["route"] for line in lines} == {"WS /v1/text-to-speech/{voice}/multi-stream-input"}
    turns, socket = lines[:-1], lines[-1]
    assert [(line["characters"], line["outcome"], line["voice"]) for line in turns] == [(4, "disconnected", "anna")] * 2
    assert all(line["id"].startswith(f"{socket['id']}-") and line["ttfa"] > 0 for line in turns)
    assert (socket["status"], socket["outcome"]) == (101, "disconnected")


KEYS = {"keys": ("anna:secret", "berta:other")}


def test_keys_hold_for_sockets() -> None:
    async def main() -> None:
        async with running(Reciter(), **KEYS) as (_, session):
            for headers in ({"xi-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    await session.ws_connect(MULTI, headers=headers)
                assert error.value.status == 401
            for headers in ({"xi-api-key": "secret"}, {"Authorization": "Bearer other"}):
                async with connected(session, headers=headers) as client:
                    await client.send(text="One. ", flush=True, context_id="a")
                    assert (await client.receive())["audio"]
            for key, name in (("", "missing_api_key"), ("wrong", "invalid_api_key")):
                async with connected(session) as client:
                    await client.send(text=" ", context_id="a", **({"xi_api_key": key} if key else {}))
                    told, end = await refused(client)
                    assert (told["error"], end) == (name, {"closed": 1008})
            async with connected(session) as client:
                await client.send(**{"text": "One. ", "flush": True, "context_id": "a", "xi-api-key": "secret"})
                assert (await client.receive())["audio"]

    asyncio.run(main())


def test_a_context_of_another_socket_cannot_be_reached() -> None:
    async def main() -> None:
        transport = Reciter("One.")
        async with (
            running(transport, **KEYS) as (_, session),
            connected(session, headers={"xi-api-key": "secret"}) as anna,
            connected(session, headers={"xi-api-key": "other"}) as berta,
        ):
            await anna.send(text="One.", flush=True, context_id="a")
            await anna.receive()
            await berta.send(context_id="a", close_context=True)
            assert (await berta.receive())["error"] == "context_not_found"
            transport.gates["One."].set()
            await anna.send(flush=True, context_id="a")
            await anna.send(close_context=True, context_id="a")
            audio, _ = await anna.until_final()
            assert audio == recited("One.")[1_920:]

    asyncio.run(main())


def test_limits_hold_for_contexts() -> None:
    async def main() -> None:
        transport = Reciter("One.", "Two.")
        async with running(transport, limits=Limits(requests=1)) as (_, session), connected(session) as client:
            await client.send(text="One. Two. Three ", context_id="a")
            await transport.until("One.", "Two.")  # two sentences are one request
            await client.receive()
            await client.send(text="Other. ", flush=True, context_id="b")
            error, final = await refused(client)
            assert (error["error"], error["contextId"]) == ("too_many_concurrent_requests", "b")
            assert final["contextId"] == "b"
            assert "Other." not in transport.spoken
        async with running(Reciter(), limits=Limits(characters=10)) as (_, session), connected(session) as client:
            await client.send(text="One two. Three four. ", flush=True, context_id="a")
            _, messages = await client.until_final()
            assert messages[-2]["error"] == "too_many_concurrent_requests"
            assert "this key has 10 characters per minute" in messages[-2]["message"]

    asyncio.run(main())


def test_a_client_that_does_not_read_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        transport = Endless()
        async with running(transport, timeout=0.3) as (_, session), connected(session) as client:
            await client.send(text="One. ", flush=True, context_id="a")
            assert await asyncio.to_thread(transport.ended.wait, 20)

    asyncio.run(main())
    reasons = [vars(record)["fields"].get("reason") for record in caplog.records if record.name == "chatterbox.gateway"]
    assert "the client did not read a message within 0.3 s" in reasons


def test_pages_of_foreign_origins_get_no_socket() -> None:
    async def main() -> None:
        async with running(Reciter(), origins=frozenset(["https://app.example.com"])) as (_, session):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await session.ws_connect(MULTI, headers={"Origin": "https://evil.example.com"})
            assert error.value.status == 403
            async with connected(session, headers={"Origin": "https://app.example.com"}) as client:
                await client.send(text="One. ", flush=True, context_id="a")
                assert (await client.receive())["audio"]

    asyncio.run(main())


def test_a_shutdown_lets_turns_end_and_closes_sockets() -> None:
    async def main() -> None:
        transport = Reciter("One.")
        async with (
            running(transport) as (gateway, session),
            connected(session) as idle,
            connected(session) as busy,
        ):
            await busy.send(text="One.", context_id="a", flush=True)
            await busy.receive()
            await idle.send(text=" ")
            await idle.send(text="", close_context=True)
            await idle.receive()
            draining = asyncio.create_task(gateway.drain.run(60, asyncio.Event()))
            assert await idle.receive() == {"closed": 1012}
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await session.ws_connect(MULTI)
            assert error.value.status == 503
            await busy.send(text=" ", context_id="b")
            assert (await busy.receive())["error"] == "socket_closing"
            await busy.send(text=" Two.", context_id="a")
            transport.gates["One."].set()
            await busy.send(flush=True, context_id="a")
            await busy.send(close_context=True, context_id="a")
            audio, _ = await busy.until_final()
            assert audio == recited("One.")[1_920:] + PAUSE + recited("Two.")
            assert await busy.receive() == {"closed": 1012}
            await draining

    asyncio.run(main())


def test_a_turn_that_takes_too_long_is_cut_by_the_shutdown() -> None:
    async def main() -> None:
        transport = Reciter("One.")
        async with running(transport) as (gateway, session), connected(session) as client:
            await client.send(text="One.", context_id="a", flush=True)
            await client.receive()
            await gateway.drain.run(0, asyncio.Event())
            error = await client.receive()
            assert (error["error"], error["contextId"]) == ("system_busy", "a")
            assert "shutting down" in error["message"]
            final, end = await refused(client)
            assert final["isFinal"]
            assert end == {"closed": 1012}
            assert transport.cancelled == ["One."]

    asyncio.run(main())
