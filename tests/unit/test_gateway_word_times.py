"""Times of ElevenLabs' routes are the server's word times, if the model can tell them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pytest

from chatterbox_client import InvalidRequest
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_gateway.keys import Limits
from tests.unit.client_fakes import STATS, FakeAsyncTransport, spoken, spoken_chunks
from tests.unit.gateway_fakes import call, gateway_of
from tests.unit.socket_fakes import MULTI, SECONDS, connected, running

TEXT = "Hi you."
WORDS = [
    {"word": "Hi", "start": 0.01, "end": 0.03, "span": [0, 2]},
    {"word": "you.", "start": 0.06, "end": 0.1, "span": [3, 7]},
]
STARTS = [10, 20, 30, 60, 73, 86, 100, 110]
"""Milliseconds: of "Hi you. "."""


def listed(words: Any) -> np.ndarray:
    """JSON as an output."""
    return np.array([[json.dumps(words).encode()]], dtype=np.object_)


class Timed(FakeAsyncTransport):
    """Tells when words are spoken, or refuses to."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__({**spoken(), "words": listed(WORDS)})
        self.refuses = refuses
        self.asked: list[bool] = []

    def note(self, tensors: Tensors) -> None:
        self.asked.append("word_times" in tensors)
        if self.refuses and self.asked[-1]:
            raise InvalidRequest("word_times: it is not known which heads of this model follow the text")

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        self.note(tensors)
        answer = await super().infer(model, tensors, outputs, timeout, context)
        return {name: answer[name] for name in outputs}

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        self.note(tensors)
        for number, chunk in enumerate(spoken_chunks()):
            words = {0: WORDS[:1], 1: [], 2: WORDS[1:]}[number]
            yield {**chunk, "words": listed(words)} if "words" in outputs else chunk


class Rated(Timed):
    """Its last third is played at twice the speed."""

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        stats = {**STATS, "rates": [(1_920, 1.0), (960, 2.0)]}
        return {**await super().infer(model, tensors, outputs, timeout, context), "stats": listed(stats)}


def test_times_are_those_of_the_audio_that_is_sent() -> None:
    path = "/v1/text-to-speech/anna/with-timestamps?output_format=pcm_24000"
    body = {"text": f" {TEXT}", "voice_settings": {"speed": 0.5}}
    times = call(gateway_of(Rated()), "POST", path, json=body).json()["alignment"]
    starts, ends = times["character_start_times_seconds"], times["character_end_times_seconds"]
    assert [starts[at] for at in (0, 3)] == [0.02, 0.12]
    assert [ends[at] for at in (5, 7)] == [0.18, 0.2]


@pytest.mark.parametrize("path", ["with-timestamps", "stream/with-timestamps"])
def test_a_text_that_is_asked_for_twice_counts_once(path: str) -> None:
    gateway = gateway_of(Timed(refuses=True), limits=Limits(characters=len(TEXT)))
    assert call(gateway, "POST", f"/v1/text-to-speech/anna/{path}", json={"text": TEXT}).status_code == 200


def test_a_refusal_that_quotes_the_name_does_not_end_the_times() -> None:
    transport = Timed()
    transport.sync.result = InvalidRequest("language is 'word_times'; it must be en")
    gateway = gateway_of(transport)
    for _ in range(2):
        answer = call(gateway, "POST", "/v1/text-to-speech/anna/with-timestamps", json={"text": TEXT})
        assert answer.status_code == 400
    assert transport.asked == [True, True]


@pytest.mark.parametrize("path", ["with-timestamps", "stream/with-timestamps"])
def test_routes_tell_the_servers_times(path: str) -> None:
    transport = Timed()
    path = f"/v1/text-to-speech/anna/{path}?output_format=pcm_24000"
    answer = call(gateway_of(transport), "POST", path, json={"text": TEXT})
    timed = [json.loads(line)["alignment"] for line in answer.text.splitlines()]
    starts = [start for times in timed if times for start in times["character_start_times_seconds"]]
    assert [round(1_000 * start) for start in starts] == STARTS
    assert transport.asked == [True]


def test_sockets_tell_the_servers_times() -> None:
    async def main() -> None:
        path = f"{MULTI}&sync_alignment=true"
        async with running(Timed()) as (_, session), connected(session, path) as client:
            await client.send(text=TEXT, context_id="a")
            await client.send(flush=True, context_id="a")
            await client.send(close_context=True, context_id="a")
            _, messages = await client.until_final()
            timed = [message["alignment"] for message in messages if message.get("alignment")]
            assert [start for times in timed for start in times["charStartTimesMs"]] == STARTS
            assert ["".join(times["chars"]) for times in timed] == ["Hi ", "you. "]
            assert messages[-1]["words"] == [{name: word[name] for name in ("word", "start", "end")} for word in WORDS]

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["sentence", "chunk"])
@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_the_socket_of_other_servers_tells_them_too(mode: str, speed: float) -> None:
    async def main() -> None:
        transport = Timed()
        async with running(transport) as (_, session), connected(session, "/ws/generate") as client:
            await client.send(type="generate", text=f"{TEXT} {TEXT}", stream_mode=mode, speed=speed)
            while (await client.receive())["type"] != "complete":
                pass
            await client.send(type="stop")
            stopped = await client.receive()
            assert [word["word"] for word in stopped["words"]] == ["Hi", "you."] * 2
            begin = SECONDS + 0.3  # of the second sentence, after the silence between the two
            starts = [at / speed for at in (0.01, 0.06, begin + 0.01, begin + 0.06)]
            assert [word["start"] for word in stopped["words"]] == pytest.approx(starts, abs=0.0011)
            assert [stopped["words"][-1]["end"], stopped["sent_seconds"]] == pytest.approx(
                [(begin + 0.1) / speed, (begin + SECONDS) / speed], abs=0.0011
            )
            assert transport.asked == [True, True]

    asyncio.run(main())


def test_a_model_that_cannot_tell_them_is_asked_once() -> None:
    transport = Timed(refuses=True)
    gateway = gateway_of(transport)
    for path in ("with-timestamps", "stream/with-timestamps", "with-timestamps"):
        answer = call(gateway, "POST", f"/v1/text-to-speech/anna/{path}?output_format=pcm_24000", json={"text": TEXT})
        assert answer.status_code == 200
        chars = [json.loads(line)["alignment"] for line in answer.text.splitlines()]
        assert "".join(char for times in chars if times for char in times["characters"]) == f"{TEXT} "
    assert transport.asked == [True, False, False, False]
