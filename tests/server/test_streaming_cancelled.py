"""Streams whose clients leave or read slowly: on a server with two slots, where a leaked slot is soon noticed."""

from __future__ import annotations

import asyncio
import itertools
import operator
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from chatterbox_client import (
    AsyncClient,
    Audio,
    Chunk,
    Client,
    Timeout,
    concatenate,
)
from chatterbox_engine.launcher.regions import SHARED_MEMORY
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from tests.conftest import CheckpointOf
from tests.server.cancelled import LONG, requests_cancelled

pytestmark = pytest.mark.server

GREETING = "Hello there, how are you today?"


@pytest.fixture(scope="module", params=["tiny", "tiny-flash"])  # a token at a time, and a block in passes
def small(
    request: pytest.FixtureRequest, checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server with two slots, where a leaked slot is soon noticed."""
    environment = {"CHATTERBOX_CHECKPOINT": str(checkpoint_of(request.param).path), "CHATTERBOX_MAX_SLOTS": "2"}
    log = tmp_path_factory.mktemp("small") / "triton.log"
    with TritonServer(ServerOptions(environment=environment, log=log)) as running:
        yield running


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


def test_slow_readers_hold_no_slot_and_slow_nobody(small: TritonServer) -> None:
    with Client(small.grpc_url, "grpc", timeout=120) as client:
        slow = [client.stream(LONG, seed=seed, max_seconds=10.0) for seed in range(2)]  # as many as there are slots
        firsts = [next(stream) for stream in slow]
        for seed in range(4):
            assert concatenate(list(client.stream(GREETING, seed=seed, max_seconds=1.0))).duration <= 1.0
        for first, rest in zip(firsts, slow, strict=True):
            samples = concatenate([first, *rest]).samples
            assert samples.nbytes > 1 << 19, "more than gRPC takes for a reader that does not read"
