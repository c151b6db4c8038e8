"""Streams through the real tritonserver with the real client."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import operator
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    Timeout,
    concatenate,
)
from chatterbox_engine.launcher.regions import SHARED_MEMORY
from chatterbox_engine.launcher.server import ServerFailed, ServerOptions, TritonServer
from chatterbox_engine.synthesis.streaming import ChunkPolicy
from tests.server.cancelled import LONG, requests_cancelled
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


@pytest.fixture(scope="module")
def small(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with two slots, where a leaked slot is soon noticed."""
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_MAX_SLOTS": "2"}
    log = tmp_path_factory.mktemp("small") / "triton.log"
    with TritonServer(ServerOptions(environment=environment, log=log)) as running:
        yield running


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


def test_leaving_the_loop_by_break_or_exception_cancels_the_request(small: TritonServer) -> None:
    with Client(small.grpc_url, "grpc", timeout=60) as client, requests_cancelled(small, 4, 4):
        for _ in range(3):
            for chunk in client.stream(LONG * 5, max_seconds=40.0):
                assert chunk.index == 0
                break
        with pytest.raises(KeyError):
            leave_with_an_error(client)


def leave_with_an_error(client: Client) -> None:
    for _ in client.stream(LONG * 5, max_seconds=40.0):
        raise KeyError


def test_a_unary_grpc_call_that_times_out_is_cancelled_too(small: TritonServer) -> None:
    def wait(client: Client) -> None:
        with pytest.raises(Timeout):
            client.speak(LONG * 5, max_seconds=40.0)

    hasty = Client(small.grpc_url, "grpc", timeout=0.5)
    with hasty as client, ThreadPoolExecutor(4) as pool, requests_cancelled(small, 4, 4):
        list(pool.map(wait, [client] * 4))


async def collect(stream: AsyncIterator[Chunk]) -> Audio:
    return concatenate([chunk async for chunk in stream])


async def cancellations(server: TritonServer, count: int) -> None:
    """Cancels `count` streams at random moments and checks that they do not affect as many streams and unary calls."""
    draw, places = random.Random(5), asyncio.Semaphore(16)

    async def cancel(client: AsyncClient, seed: int) -> None:
        async with places:
            stream = client.stream(LONG * 5, seed=seed, max_seconds=40.0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(collect(stream), draw.uniform(0.0, 0.5))

    async def speak(client: AsyncClient, kind: int) -> Audio:
        if kind == 0:
            return await client.speak(GREETING, seed=kind, max_seconds=1.0)
        return await collect(client.stream(GREETING, seed=kind, max_seconds=1.0))

    async def check(client: AsyncClient, number: int, alone: list[Audio]) -> None:
        async with places:
            audio, expected = await speak(client, number % 4), alone[number % 4]
        assert np.abs(audio.samples - expected.samples).max() < 1e-4, f"call {number}"

    async with AsyncClient(server.grpc_url, "grpc", timeout=280) as client:
        alone = [await speak(client, kind) for kind in range(4)]
        calls = [(cancel(client, number), check(client, number, alone)) for number in range(count)]
        await asyncio.gather(*itertools.chain(*calls))


@dataclass(frozen=True)
class Held:
    """Resources of the models' processes, one entry each."""

    threads: tuple[int, ...]
    files: tuple[int, ...]
    regions: tuple[int, ...]
    shared: tuple[int, ...]
    """Bytes of these regions; the Python backend grows them when they are full."""

    @classmethod
    def by(cls, server: TritonServer) -> Held:
        folders = [Path(f"/proc/{pid}") for pid in server.stub_pids]
        regions = [_regions(folder) for folder in folders]
        return cls(
            tuple(len(list((folder / "task").iterdir())) for folder in folders),
            tuple(len(list((folder / "fd").iterdir())) for folder in folders),
            tuple(map(len, regions)),
            tuple(sum(sizes.values()) for sizes in regions),
        )

    def grown(self, before: Held) -> list[str]:
        """Names of the resources that have grown."""
        return [name for name in vars(self) if any(map(operator.gt, getattr(self, name), getattr(before, name)))]


def _regions(process: Path) -> Counter[str]:
    """Bytes of each region that a process has mapped, by inode: the launcher takes their names away."""
    found: Counter[str] = Counter()
    for line in (process / "maps").read_text().splitlines():
        if str(SHARED_MEMORY) in line:
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            found[line.split()[4]] += end - begin
    return found


def check_cancellations(server: TritonServer, count: int) -> None:
    held = []
    for cancelled in (8, count):  # the first round allocates everything that is allocated on demand
        with requests_cancelled(server, cancelled // 2, cancelled):  # some never reach the server
            asyncio.run(cancellations(server, cancelled))
        held.append(Held.by(server))
    before, after = held
    assert not after.grown(before), held


def test_streams_cancelled_at_random_moments_leak_nothing_and_do_not_affect_others(small: TritonServer) -> None:
    check_cancellations(small, 12)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_hundred_streams_cancelled_at_random_moments_leak_nothing(small: TritonServer) -> None:
    check_cancellations(small, 200)


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


def test_slow_readers_hold_no_slot_and_slow_nobody(small: TritonServer) -> None:
    with Client(small.grpc_url, "grpc", timeout=120) as client:
        slow = [client.stream(LONG, seed=seed, max_seconds=10.0) for seed in range(2)]  # as many as there are slots
        firsts = [next(stream) for stream in slow]
        for seed in range(4):
            assert concatenate(list(client.stream(GREETING, seed=seed, max_seconds=1.0))).duration <= 1.0
        for first, rest in zip(firsts, slow, strict=True):
            samples = concatenate([first, *rest]).samples
            assert samples.nbytes > 1 << 19, "more than gRPC takes for a reader that does not read"


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
