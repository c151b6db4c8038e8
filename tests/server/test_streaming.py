"""Streams through the real tritonserver with the real client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_client import (
    AsyncClient,
    Audio,
    ChatterboxClientError,
    Chunk,
    Client,
    InvalidRequest,
    NotFound,
    concatenate,
)
from chatterbox_engine.launcher.server import ServerFailed, ServerOptions, TritonServer
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from tests.server.cancelled import LONG
from tests.server.conftest import Spoken

pytestmark = pytest.mark.server

GREETING = "Hello there, how are you today?"


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url, "grpc", timeout=120) as it:
        yield it


@pytest.fixture
def family_client(spoken: Spoken) -> Iterator[Client]:
    """The streaming client of every family in turn."""
    with spoken.client("grpc") as it:
        yield it


def test_a_stream_has_the_tokens_and_the_length_of_the_whole_answer(family_client: Client) -> None:
    whole = family_client.speak(GREETING, seed=7)
    chunks = list(family_client.stream(GREETING, seed=7))
    assert len(chunks) > 1
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks[0].speech_tokens) == ChunkPolicy().first
    audio = concatenate(chunks)
    np.testing.assert_array_equal(audio.speech_tokens, whole.speech_tokens)
    assert audio.samples.shape == whole.samples.shape
    assert [chunk.stats for chunk in chunks[:-1]] == [{}] * (len(chunks) - 1)
    assert set(audio.stats) == set(whole.stats) | {"chunks"}
    assert audio.stats["chunks"] == len(chunks)
    assert 0 < audio.stats["ttfa_ms"] < audio.stats["total_ms"]


def test_a_stream_of_one_chunk_is_the_whole_answer(family_client: Client) -> None:
    whole = family_client.speak(GREETING, seed=7)
    (chunk,) = family_client.stream(GREETING, seed=7, first_chunk_tokens=750)
    assert np.abs(chunk.samples - whole.samples).max() < 1e-4
    np.testing.assert_array_equal(chunk.speech_tokens, whole.speech_tokens)


def test_the_same_seed_gives_the_same_stream(family_client: Client) -> None:
    first, again = (concatenate(list(family_client.stream(GREETING, seed=3, chunk_tokens=7))) for _ in range(2))
    assert np.abs(first.samples - again.samples).max() < 1e-4


def test_long_text_sounds_in_order_with_the_pauses_of_the_whole_answer(family_client: Client) -> None:
    whole = family_client.speak(LONG, seed=5, max_seconds=3.0)
    audio = concatenate(list(family_client.stream(LONG, seed=5, max_seconds=3.0)))
    assert audio.stats["segments"] == whole.stats["segments"] > 1
    np.testing.assert_array_equal(audio.speech_tokens, whole.speech_tokens)
    assert audio.samples.shape == whole.samples.shape
    silent = (whole.samples == 0) & np.r_[False, whole.samples[:-1] == 0]
    assert np.abs(audio.samples[silent]).mean() < 1e-3


def test_streams_together_each_equal_the_same_stream_alone(family_client: Client) -> None:
    def speak(number: int) -> Audio:
        text = " ".join(["One more sentence of a growing text."] * (1 + number % 3))
        return concatenate(list(family_client.stream(text, seed=number, max_seconds=5.0)))

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(speak, range(6)))
    for number, audio in enumerate(together):
        alone = speak(number)
        np.testing.assert_array_equal(audio.speech_tokens, alone.speech_tokens, err_msg=f"stream {number}")
        difference = np.abs(audio.samples - alone.samples).max()
        assert difference < 1e-4, f"stream {number}: {difference:.2e}"


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"text": " "}, InvalidRequest, "text is empty"),
        ({"voice": "nobody"}, NotFound, "nobody"),
        ({"first_chunk_tokens": 0}, InvalidRequest, "first_chunk_tokens is 0"),
        ({"chunk_tokens": 751}, InvalidRequest, "chunk_tokens is 751"),
        ({"temperature": -1.0}, InvalidRequest, "temperature is -1"),
        ({"top_k": 5}, InvalidRequest, "top_k"),
    ],
    ids=repr,
)
def test_a_wrong_stream_is_refused_with_the_typed_error(
    client: Client, inputs: dict[str, Any], error: type[ChatterboxClientError], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(client.stream(**{"text": GREETING, **inputs}))


def test_a_stream_of_a_model_that_is_not_there_is_refused_as_a_call_is(server: TritonServer) -> None:
    with Client(server.grpc_url, "grpc", model="nothing") as client:
        with pytest.raises(NotFound, match="unknown model"):
            list(client.stream(GREETING))
        with pytest.raises(NotFound, match="unknown model"):
            client.speak(GREETING)


def test_a_stream_with_an_input_that_the_server_does_not_know_is_refused_as_a_call_is(server: TritonServer) -> None:
    with Client(server.grpc_url, "grpc") as client:
        transport: Any = client._transport
        inputs = {"text": np.array([[b"Hi."]], dtype=object), "mood": np.ones((1, 1), dtype=np.float32)}
        with pytest.raises(InvalidRequest, match="unexpected inference input 'mood'"):
            list(transport.stream("chatterbox_stream", inputs, ("audio",), 60.0))
        with pytest.raises(InvalidRequest, match="unexpected inference input 'mood'"):
            transport.infer("chatterbox", inputs, ("audio",), 60.0)


@pytest.mark.full
def test_refused_streams_whose_clients_leave_at_once_do_not_end_the_server(server: TritonServer) -> None:
    program = (
        "import sys\n"
        "from chatterbox_client import Client, NotFound\n"
        "for _ in range(2000):\n"
        "    with Client(sys.argv[1], 'grpc', timeout=60) as client:\n"
        "        try:\n"
        "            list(client.stream('Hello.', voice='nobody'))\n"
        "        except NotFound:\n"
        "            pass\n"
    )
    clients = [subprocess.Popen([sys.executable, "-c", program, server.grpc_url]) for _ in range(4)]
    assert [client.wait() for client in clients] == [0] * 4


def test_asyncio_streams_side_by_side(server: TritonServer) -> None:
    async def speak(client: AsyncClient, seed: int) -> Audio:
        return concatenate([chunk async for chunk in client.stream(GREETING, seed=seed)])

    async def main() -> list[Audio]:
        async with AsyncClient(server.grpc_url, "grpc") as client:
            with pytest.raises(NotFound):
                await anext(aiter(client.stream(GREETING, voice="nobody")))
            return await asyncio.gather(*(speak(client, seed) for seed in range(4)))

    assert [audio.seed for audio in asyncio.run(main())] == [0, 1, 2, 3]


def generate_stream(server: TritonServer, **inputs: Any) -> list[dict[str, Any]]:
    """Triton's endpoint of server-sent events."""
    url = f"http://{server.http_url}/v2/models/chatterbox_stream/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(inputs).encode(), method="POST")) as answer:
        lines = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
    return [json.loads(line) for line in lines]


def test_json_callers_get_events_with_raw_samples(server: TritonServer, client: Client) -> None:
    audio = concatenate(list(client.stream(GREETING, seed=3, max_seconds=1.0)))
    events = generate_stream(server, text=GREETING, seed=3, max_seconds=1.0, format="s16")
    data = b"".join(base64.b64decode(event["audio_base64"]) for event in events)
    np.testing.assert_allclose(np.frombuffer(data, dtype="<i2") / 32767, audio.samples, atol=1e-4)
    assert [event["is_last"] for event in events] == [False] * (len(events) - 1) + [True]
    assert json.loads(events[-1]["stats"])["seed"] == 3
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate_stream(server, text=GREETING, format="mp3")
    refusal = caught.value.read().decode()
    assert "INVALID_ARGUMENT: format is 'mp3'; a stream's must be one of pcm, s16" in refusal
    caught.value.close()


def many_streams(server: TritonServer, count: int, clients: int) -> None:
    failures: list[str] = []

    def speak(number: int) -> None:
        try:
            if number % 10 == 9:
                seconds = client.speak(GREETING, seed=number, max_seconds=0.6).duration
            else:
                seconds = concatenate(list(client.stream(GREETING, seed=number, max_seconds=0.6))).duration
            assert 0 < seconds <= 0.6
        except (ChatterboxClientError, ValueError, AssertionError) as error:
            failures.append(f"{number}: {error!r}")

    with Client(server.grpc_url, "grpc", timeout=120) as client, ThreadPoolExecutor(clients) as pool:
        list(pool.map(speak, range(count)))
    assert not failures, failures[:5]


def test_thirty_streams_at_fifteen_clients_all_end(server: TritonServer) -> None:
    many_streams(server, 30, 15)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_ten_thousand_streams_at_sixty_four_clients_all_end(server: TritonServer) -> None:
    many_streams(server, 10_000, 64)


def test_streams_fail_within_a_second_when_the_engine_is_killed(tiny_path: Path, tmp_path: Path) -> None:
    options = ServerOptions(environment={"CHATTERBOX_CHECKPOINT": str(tiny_path)}, log=tmp_path / "triton.log")
    started = threading.Barrier(9)
    ends: list[tuple[float, str]] = []

    def listen(client: Client) -> None:
        stream: Iterator[Chunk] = client.stream(LONG * 5, max_seconds=40.0)
        next(stream)
        started.wait(60)
        try:
            for _ in stream:
                pass
        except ChatterboxClientError as error:
            ends.append((time.monotonic(), error.message))

    server = TritonServer(options)
    server.start()
    try:
        with Client(server.grpc_url, "grpc", timeout=60) as client, ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(listen, client)
            started.wait(60)
            killed = time.monotonic()
            kill_engine(server)
        assert len(ends) == 8
        assert all("engine has ended" in message for _, message in ends), ends
        assert max(end for end, _ in ends) - killed < 1.0
        with pytest.raises(ServerFailed):
            server.wait()
    finally:
        server.stop()


def test_an_engine_that_cannot_start_ends_the_server_with_its_own_error(tmp_path: Path) -> None:
    environment = {"CHATTERBOX_CHECKPOINT": str(tmp_path / "nothing")}
    with pytest.raises(ServerFailed, match=r"CheckpointError: .*nothing: no such folder"):
        TritonServer(ServerOptions(environment=environment, log=tmp_path / "triton.log")).start()


def kill_engine(server: TritonServer) -> None:
    (engine,) = (pid for pid in server.stub_pids if b"chatterbox/" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(engine, signal.SIGKILL)


def test_the_front_loads_no_torch(server: TritonServer) -> None:
    maps = [
        Path(f"/proc/{pid}/maps").read_text()
        for pid in server.stub_pids
        if b"chatterbox_stream" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(maps) == 1
    assert "libtorch" not in maps[0]
