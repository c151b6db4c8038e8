"""`chatterbox-gateway` in front of a real server, called by OpenAI's own client."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest

from chatterbox_client import Client
from chatterbox_engine.launcher.server import TritonServer
from chatterbox_gateway.output import FORMATS
from tests.server.cancelled import LONG, requests_cancelled
from tests.server.front import Front

pytestmark = pytest.mark.server

SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Hello from the other side."}
SEED = {"seed": 3, "max_seconds": 2.0}


@pytest.fixture
def client(front: Front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{front.address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def seconds(file: bytes) -> float:
    """Of the audio in a file."""
    with av.open(io.BytesIO(file)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def test_a_stream_of_pcm_is_the_clients_stream(server: TritonServer, client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(**SPEECH, response_format="pcm", extra_body=SEED) as answer:
        pieces = list(answer.iter_bytes())
    with Client(server.grpc_url, "grpc") as ours:
        chunks = [chunk.to_bytes() for chunk in ours.stream(SPEECH["input"], first_chunk_tokens=13, **SEED)]
    assert len(pieces) > 1
    assert len(chunks) > 1
    sent, expected = (np.frombuffer(b"".join(parts), dtype="<i2").astype(int) for parts in (pieces, chunks))
    assert len(sent) == len(expected)
    assert np.abs(sent - expected).max() <= 4  # a chunk's batch decides its last bits


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if FORMATS[name].container in ("mp3", "ogg", "adts", "wav", "flac")]
)
@pytest.mark.parametrize("stream", [True, False])
def test_every_format_has_all_of_the_audio(
    server: TritonServer, client: openai.OpenAI, name: Any, stream: bool
) -> None:
    answer = client.audio.speech.create(**SPEECH, response_format=name, extra_body={**SEED, "stream": stream})
    assert answer.response.headers["Content-Type"] == FORMATS[name].content_type
    with Client(server.http_url) as ours:
        expected = ours.speak(SPEECH["input"], **SEED).duration
    assert seconds(answer.read()) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"voice": "nobody"}, openai.NotFoundError, "nobody"),
        ({"voice": "v" * 20_000}, openai.NotFoundError, "there is no voice 'vvv"),
        ({"input": "..."}, openai.BadRequestError, "nothing to speak"),
        ({"model": "piper"}, openai.NotFoundError, "piper"),
        ({"input": ""}, openai.BadRequestError, "input: string should have at least 1 character"),
        ({"extra_body": {"top_k": 5}}, openai.BadRequestError, "top_k"),
        ({"extra_body": {"first_chunk_tokens": -1}}, openai.BadRequestError, "first_chunk_tokens"),
        ({"speed": 5.0}, openai.BadRequestError, "speed: input should be less than or equal to 4"),
        ({"extra_body": {"exaggeration": 3}}, openai.BadRequestError, "exaggeration is 3; it must be from 0 to 2"),
    ],
)
def test_refusals_have_openais_errors(client: openai.OpenAI, fields: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        client.audio.speech.create(**{**SPEECH, **fields})


def test_a_stored_voice_is_listed_and_spoken(server: TritonServer, front: Front, client: openai.OpenAI) -> None:
    with Client(server.http_url) as ours:
        clip = ours.speak("A clip of the voice.", max_seconds=3.0, seed=1).to_bytes("wav")
        ours.voices.add("openai-test", clip)
        try:
            listed = httpx.get(f"http://{front.address}/v1/audio/voices").json()["voices"]
            spoken = client.audio.speech.create(**{**SPEECH, "voice": "openai-test"}, extra_body=SEED)
        finally:
            ours.voices.delete("openai-test")
    assert {"id": "openai-test", "name": "openai-test"} in listed
    assert seconds(spoken.read()) > 0


def test_a_client_that_disconnects_cancels_its_request(server: TritonServer, front: Front) -> None:
    endless = {**SPEECH, "input": LONG * 5, "max_seconds": 40.0}
    with requests_cancelled(server, 2, 2):
        for fields in ({"response_format": "pcm"}, {"response_format": "mp3"}):
            with httpx.stream("POST", f"http://{front.address}/v1/audio/speech", json={**endless, **fields}) as answer:
                assert next(answer.iter_bytes())


def test_it_is_ready_when_the_server_is(front: Front) -> None:
    health = httpx.get(f"http://{front.address}/health").json()
    assert (health["status"], health["device"]) == ("ok", "cpu")


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 2.0])
def test_another_speed_changes_the_length(client: openai.OpenAI, speed: float) -> None:
    lengths = [
        len(client.audio.speech.create(**SPEECH, response_format="pcm", speed=factor, extra_body=SEED).read())
        for factor in (1.0, speed)
    ]
    assert lengths[1] == pytest.approx(lengths[0] / speed, rel=0.02)


@pytest.mark.parametrize("name", ["ulaw", "alaw"])
def test_telephones_get_eight_kilohertz(front: Front, client: openai.OpenAI, name: Any) -> None:
    whole = client.audio.speech.create(**SPEECH, response_format="pcm", extra_body=SEED).read()
    telephone = client.audio.speech.create(**SPEECH, response_format=name, extra_body=SEED)
    assert telephone.response.headers["Content-Type"] == FORMATS[name].content_type
    assert len(telephone.read()) == pytest.approx(len(whole) / 2 / 3, abs=2)


def test_the_first_chunk_is_half_a_second(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(**SPEECH, response_format="pcm", extra_body=SEED) as answer:
        assert len(next(answer.iter_bytes())) >= 24_000


def test_an_address_plays_in_an_audio_element(front: Front) -> None:
    query = {"input": "Hello.", "response_format": "wav", **SEED}
    answer = httpx.get(f"http://{front.address}/v1/audio/speech", params=query)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "audio/wav")
    assert seconds(answer.content) > 0
